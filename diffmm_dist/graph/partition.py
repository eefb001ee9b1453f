"""Partitions of the user-item graph: which part each user and item goes to, and what a partition costs.

Shapes: U users, I items, P parts.
"""

import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffmm_dist.errors import UserError
from diffmm_dist.graph import metis
from diffmm_dist.interrupts import result_of
from diffmm_dist.parallel.group import changed_environment, new_processes
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.sparse import CSR
from diffmm_dist.staging import scratch_folder

# METIS reads memory that it has not written, and cuts by what it finds there. So glibc fills what it hands out, with
# the complement of 255; what a thread has just given back it would hand out as it is, if it kept any.
_ZEROS = "glibc.malloc.perturb=255:glibc.malloc.tcache_count=0"


@dataclass(frozen=True)
class Parts:
    """Which part each node belongs to.

    Attributes:
        users: int64 (U,).
        items: int64 (I,).
        num_parts: P.
    """

    users: Tensor
    items: Tensor
    num_parts: int


class Links(NamedTuple):
    """Further edges of items, and of further nodes, numbered behind the items.

    Attributes:
        heads: int64 (n,).
        tails: int64 (n,).
        num_further: further nodes.
    """

    heads: Tensor
    tails: Tensor
    num_further: int


def random_parts(pairs: CSR, num_parts: int, *, seed: int) -> Parts:
    """Deal users and items out at random, equally many to each part."""
    users = deal(pairs.num_rows, num_parts, seed=seed, kind="users")
    items = deal(pairs.num_columns, num_parts, seed=seed, kind="items")
    return Parts(users, items, num_parts)


def deal(count: int, num_parts: int, *, seed: int, kind: str) -> Tensor:
    """Return the part of each of ``count`` rows of a kind, dealt out at random, equally many to each; int64."""
    return RandomStream.of(seed, "partition", kind).permute(torch.arange(count), count) * num_parts // count


class MetisParts(NamedTuple):
    """What METIS has found.

    Attributes:
        parts: of users and items.
        further: of the further nodes of the links, int64.
        library: that brought METIS, with its version.
    """

    parts: Parts
    further: Tensor
    library: str


def metis_parts(pairs: CSR, num_parts: int, links: Links | None = None) -> MetisParts:
    """Cut as few edges as METIS can, with users, items, further nodes and edges balanced (Karypis and Kumar, 1998).

    It is cut in a process of its own: METIS hears no signal but SIGTERM, which it takes for an error of its own, so it
    must be killed; and the same graph must give the same parts, so all memory must begin as zeros. Of a large graph it
    writes parts into the folder where it is, so it works in one of its own.

    Raises:
        UserError: nothing here brings METIS, or it gives up.
    """
    tunables = ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES"), _ZEROS]))
    environment = changed_environment({"GLIBC_TUNABLES": tunables})
    with environment, scratch_folder("diffmm-metis-") as folder, new_processes(1) as processes:
        try:
            found, library = result_of(processes.submit(_assign_in, folder, _graph(pairs, links), num_parts))
        except BrokenProcessPool as error:
            raise UserError(metis.GAVE_UP) from error
    num_users, num_items = pairs.num_rows, pairs.num_columns
    users, items, further = torch.from_numpy(found).split([num_users, num_items, len(found) - num_users - num_items])
    return MetisParts(Parts(users, items, num_parts), further, library)


def _assign_in(folder: str, graph: metis.Graph, num_parts: int) -> tuple[npt.NDArray[np.int64], str]:
    """Go to a folder, and cut there."""
    os.chdir(folder)
    return metis.assign(graph, num_parts)


def _graph(pairs: CSR, links: Links | None) -> metis.Graph:
    """Return users, items and further nodes as the nodes of one graph."""
    ends = [(pairs.row_ids, pairs.indices + pairs.num_rows)]
    sizes = [pairs.num_rows, pairs.num_columns]
    if links is not None:
        ends.append((links.heads + pairs.num_rows, links.tails + pairs.num_rows))
        sizes.append(links.num_further)
    first, second = (torch.cat(side) for side in zip(*ends, strict=True))
    return metis.Graph(first, second, torch.repeat_interleave(torch.tensor(sizes)))


def partition_report(pairs: CSR, parts: Parts) -> dict[str, float]:
    """Return what a partition costs and how even it is.

    Returns:
        ``cut_edges`` and ``cut_share``: edges between parts. ``halo_rows_mean`` and ``halo_rows_max``: rows of other
        parts that are neighbours of a part's users and items. ``item_halo_rows_mean`` and ``item_halo_rows_max``: the
        items among them, which are what propagation fetches, once, and sends back, once. ``users_balance``,
        ``items_balance`` and ``edges_balance``: the largest part's share of them times P; 1 is even. Edges count for
        their user's part.
    """
    num_parts = parts.num_parts
    user_part, item_part = parts.users[pairs.row_ids], parts.items[pairs.indices]
    cut = user_part != item_part
    item_halo = _distinct_by_part(user_part[cut], pairs.indices[cut], pairs.num_columns, num_parts)
    halo = item_halo + _distinct_by_part(item_part[cut], pairs.row_ids[cut], pairs.num_rows, num_parts)

    return {
        "cut_edges": float(cut.sum()),
        "cut_share": float(cut.to(torch.float64).mean()) if cut.numel() else 0.0,
        "halo_rows_mean": float(halo.mean()),
        "halo_rows_max": float(halo.max()),
        "item_halo_rows_mean": float(item_halo.mean()),
        "item_halo_rows_max": float(item_halo.max()),
        "users_balance": _balance(parts.users, num_parts),
        "items_balance": _balance(parts.items, num_parts),
        "edges_balance": _balance(user_part, num_parts),
    }


def links_report(links: Links, parts: Parts, further: Tensor) -> dict[str, float]:
    """Return ``cut_links_share``, of links between parts, and ``further_balance``, of the parts of further nodes."""
    part = torch.cat([parts.items, further])
    cut = part[links.heads] != part[links.tails]
    return {
        "cut_links_share": float(cut.to(torch.float64).mean()) if cut.numel() else 0.0,
        "further_balance": _balance(further, parts.num_parts),
    }


def _balance(part: Tensor, num_parts: int) -> float:
    return float(torch.bincount(part, minlength=num_parts).max()) * num_parts / max(part.numel(), 1)


def _distinct_by_part(part: Tensor, rows: Tensor, num_rows: int, num_parts: int) -> Tensor:
    """Return how many different rows stand beside each part, float64 (P,)."""
    pairs = torch.unique(part * num_rows + rows)
    return torch.bincount(pairs // max(num_rows, 1), minlength=num_parts).to(torch.float64)
