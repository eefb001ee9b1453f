"""METIS (Karypis and Kumar, 1998), out of DGL or pymetis, whichever is installed."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from torch import Tensor

from diffmm_dist.errors import UserError
from diffmm_dist.graph.dgl_package import import_dgl
from diffmm_dist.graph.even_parts import even_parts
from diffmm_dist.graph.quiet import quietly

GAVE_UP = "METIS gave up on this graph, or was asked to end; run the command again, or take --method random"
_WITHOUT = "take --method random, or partition where it can be: datasets go anywhere"
_LARGEST = 2**31 - 1  # of the integers that pymetis's METIS counts with


class Graph(NamedTuple):
    """What is to be cut.

    Attributes:
        first: int64 (E,), one end of each edge.
        second: int64 (E,), the other.
        kinds: int64 (N,), the kind of each node; each kind's nodes, and its edge ends, are spread evenly.
    """

    first: Tensor
    second: Tensor
    kinds: Tensor


Cut = Callable[[Graph, int], npt.NDArray[np.int64]]


def library() -> str:
    """Return which library brings METIS here, with its version.

    Raises:
        UserError: none does.
    """
    return _library()[0]


def assign(graph: Graph, num_parts: int) -> tuple[npt.NDArray[np.int64], str]:
    """Return the part of each node (N,), such that few edges are cut, and the library that found them.

    Raises:
        UserError: there is no METIS here, or it gives up.
    """
    name, cut = _library()
    if num_parts == 1:  # METIS ends the process
        return np.zeros(len(graph.kinds), np.int64), name
    return cut(graph, num_parts), name


def _library() -> tuple[str, Cut]:
    try:
        dgl = import_dgl(otherwise=f"install pymetis, or {_WITHOUT}")
    except UserError as error:
        try:
            import pymetis
        except ImportError:
            raise error from None
        return f"METIS of pymetis {version('pymetis')}", partial(_by_pymetis, pymetis)
    return f"METIS of DGL {dgl.__version__}", partial(_by_dgl, dgl)


def _by_dgl(dgl: Any, graph: Graph, num_parts: int) -> npt.NDArray[np.int64]:
    ends = torch.cat([graph.first, graph.second]), torch.cat([graph.second, graph.first])
    both_ways = dgl.graph(ends, num_nodes=len(graph.kinds))
    try:
        with quietly():  # DGL tells how it went, and METIS too
            part = dgl.metis_partition_assignment(both_ways, num_parts, balance_ntypes=graph.kinds, balance_edges=True)
    except dgl.DGLError as error:
        raise UserError(GAVE_UP) from error
    found: npt.NDArray[np.int64] = part.to(torch.int64).numpy()
    return found


def _by_pymetis(pymetis: Any, graph: Graph, num_parts: int) -> npt.NDArray[np.int64]:
    first, second = (torch.cat(ends).numpy() for ends in ((graph.first, graph.second), (graph.second, graph.first)))
    shape = (len(graph.kinds), len(graph.kinds))
    matrix = coo_array((np.ones(len(first), np.int64), (first, second)), shape=shape).tocsr()  # repeated edges add up
    matrix.setdiag(0)
    matrix.eliminate_zeros()
    if matrix.nnz > _LARGEST:
        raise UserError(f"this graph has {matrix.nnz // 2:,} edges, more than METIS of pymetis can count; {_WITHOUT}")
    edge_ends = np.asarray(matrix.sum(axis=1)).ravel()
    try:
        with quietly():
            _, found = pymetis.part_graph(
                num_parts, pymetis.CSRAdjacency(matrix.indptr, matrix.indices), vweights=np.maximum(edge_ends, 1),
                eweights=matrix.data, recursive=False, options=pymetis.Options(seed=0),
            )  # fmt: skip
    except RuntimeError as error:
        raise UserError(GAVE_UP) from error
    return even_parts(matrix, graph.kinds.numpy(), np.asarray(found, np.int64), num_parts)
