"""An approximate index of the items, for catalogues too large to be ranked whole: faiss, by inner product.

A bundle holds what takes long to find, in Arrow, and the index is put together from it and the embeddings when it is
loaded, so that nothing of faiss's own format is read from anybody:

    ivf   centroids of clusters, and the cluster of each item; the clusters nearest to a user are searched
    hnsw  the level of each item in a graph, and its neighbours; the graph is searched from the top
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from diffmm_dist.bundles.files import ITEMS, Floats, Ints, Marker, embedding_schemas, read_table
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.bundles.ranking import Flags, Lists
from diffmm_dist.bundles.rows import Rows
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.storage import join

IndexKind = Literal["ivf", "hnsw"]
KINDS: tuple[IndexKind, ...] = ("ivf", "hnsw")
CENTROIDS, CLUSTERS = "index-centroids.arrow", "index-clusters.arrow"
LEVELS, NEIGHBOURS = "index-levels.arrow", "index-neighbours.arrow"
_NUMBERS = pa.schema([pa.field("value", pa.int32(), nullable=False)])
_LINKS = 32  # of an item in the graph, twice as many on its lowest level
_SEARCHED_CLUSTERS, _SEARCHED_ITEMS = 16, 128  # at the least
_SEED = 1234


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError("an index needs faiss: install it with pip install 'diffmm-dist[index]'") from error
    return faiss


class Index:
    """The items of a bundle, searched approximately.

    Args:
        index: of faiss, over all items in the order of their rows.
        num_items: I.
    """

    def __init__(self, index: Any, num_items: int) -> None:
        self._index, self._num_items = index, num_items

    def search(self, asked_BD: Floats, k: int, *, hidden: Pairs | None, allowed: Flags | None) -> Lists:
        """Return about the best items, as ``ranking.best`` does; a list may be shorter than there are items.

        Args:
            asked_BD: who asks.
            k: list length.
            hidden: what is never listed, a row for each who asks.
            allowed: which items may be listed.
        """
        faiss = _faiss()
        most = 0 if hidden is None else int(hidden.counts.max(initial=0))
        length = min(k + most, self._num_items)
        selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if isinstance(self._index, faiss.IndexIVF):
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=min(_SEARCHED_CLUSTERS, self._index.nlist))
        else:
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(_SEARCHED_ITEMS, 2 * length))
        scores, rows = self._index.search(np.ascontiguousarray(asked_BD), length, params=parameters)
        if hidden is not None:
            owners = np.arange(len(asked_BD))[:, None] * self._num_items
            rows = np.where(np.isin(owners + rows, hidden.rows() * self._num_items + hidden.items), -1, rows)
        scores = np.where(rows < 0, -np.inf, scores).astype(np.float32)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return Lists(np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1))


def index_tables(kind: IndexKind, item_rows: Rows) -> dict[str, pa.Table]:
    """Build an index, and return what a bundle holds of it, by the files that it goes to.

    Args:
        kind: of the index.
        item_rows: embeddings (I, d).
    """
    faiss, rows = _faiss(), item_rows.array()
    if kind == "hnsw":
        index = _empty_graph(item_rows.width)
        index.add(rows)
        return {LEVELS: _numbers(faiss.vector_to_array(index.hnsw.levels)),
                NEIGHBOURS: _numbers(faiss.vector_to_array(index.hnsw.neighbors))}  # fmt: skip
    num_clusters = max(1, min(int(4 * np.sqrt(len(rows))), len(rows) // 39))  # faiss wants 39 points in each
    clustering = faiss.Kmeans(item_rows.width, num_clusters, niter=15, seed=_SEED, verbose=False)
    clustering.train(rows)
    clusters = clustering.index.search(rows, 1)[1][:, 0]
    centroids = pa.FixedSizeListArray.from_arrays(pa.array(clustering.centroids.reshape(-1)), item_rows.width)
    return {
        CENTROIDS: pa.table({"id": pa.array(range(num_clusters), pa.int64()), "embedding": centroids}),
        CLUSTERS: _numbers(clusters),
    }


def read_index(uri: str, marker: Marker, item_rows: Rows) -> Index:
    """Put the index of a bundle together, from files that are compared with their checksums.

    Raises:
        UserError: the bundle has none, or faiss is not installed.
        DamagedError: a file is not what was exported.
    """
    counts = marker.get("further", {})
    if CLUSTERS in counts:
        index = _clusters(uri, marker, counts, item_rows)
    elif LEVELS in counts:
        index = _graph(uri, marker, counts, item_rows)
    else:
        raise UserError(f"{uri} has no index; make one with `export RUN --out PLACE --index ivf` (or hnsw)")
    return Index(index, len(item_rows))


def _clusters(uri: str, marker: Marker, counts: Mapping[str, int], item_rows: Rows) -> Any:
    faiss, width = _faiss(), item_rows.width
    table = read_table(uri, CENTROIDS, marker, embedding_schemas(width), counts[CENTROIDS])
    centroids = table.column("embedding").combine_chunks().flatten().to_numpy().reshape(-1, width)
    clusters = _read_numbers(uri, CLUSTERS, marker, counts)
    if len(clusters) != len(item_rows) or not np.isfinite(centroids).all():
        raise DamagedError(f"{join(uri, CLUSTERS)} is damaged: it does not fit {ITEMS}; export the run again")
    _check_range(uri, CLUSTERS, clusters, 0, len(centroids))
    # Clusters are made by distance, or items with long embeddings would lie in one; a user's are those of the highest
    # inner products with their centroids.
    quantizer = faiss.IndexFlatIP(width)
    quantizer.add(np.ascontiguousarray(centroids))
    index = faiss.IndexIVFFlat(quantizer, width, len(centroids), faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    for first, piece in item_rows.blocks():
        rows, ids = np.ascontiguousarray(piece), np.arange(first, first + len(piece))
        places = np.ascontiguousarray(clusters[first : first + len(piece)], np.int64)
        index.add_core(len(rows), *map(faiss.swig_ptr, (rows, ids, places)))
    return index


def _empty_graph(width: int) -> Any:
    faiss = _faiss()
    index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    return index


def _graph(uri: str, marker: Marker, counts: Mapping[str, int], item_rows: Rows) -> Any:
    faiss, index = _faiss(), _empty_graph(item_rows.width)
    levels, neighbours = (_read_numbers(uri, name, marker, counts) for name in (LEVELS, NEIGHBOURS))
    of_level = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level)
    _check_range(uri, LEVELS, levels, 1, len(of_level))
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(of_level[levels], dtype=np.uint64)])
    if len(levels) != len(item_rows) or len(neighbours) != int(offsets[-1]):
        raise DamagedError(f"{join(uri, NEIGHBOURS)} is damaged: it does not fit {ITEMS}; export the run again")
    _check_range(uri, NEIGHBOURS, neighbours, -1, len(item_rows))
    _check_links(uri, levels, neighbours, offsets.astype(np.int64), of_level)
    for _, piece in item_rows.blocks():
        index.storage.add(np.ascontiguousarray(piece))
    for values, place in ((levels, "levels"), (offsets, "offsets"), (neighbours, "neighbors")):
        faiss.copy_array_to_vector(values, getattr(index.hnsw, place))
    index.hnsw.max_level = int(levels.max()) - 1
    index.hnsw.entry_point = int(levels.argmax())
    index.ntotal = len(item_rows)
    return index


def _check_links(uri: str, levels: Ints, neighbours: Ints, offsets: Ints, of_level: Ints) -> None:
    """Raise a ``DamagedError`` if an item has a neighbour on a level that this one does not reach."""
    for level in range(1, int(levels.max(initial=0))):
        there = np.flatnonzero(levels > level)
        places = offsets[there, None] + np.arange(of_level[level], of_level[level + 1])
        linked = neighbours[places]
        if (levels[linked[linked >= 0]] <= level).any():
            raise DamagedError(f"{join(uri, NEIGHBOURS)} is damaged: it leads to what is not there; export it again")


def _numbers(values: Any) -> pa.Table:
    return pa.Table.from_arrays([pa.array(np.asarray(values, np.int32))], schema=_NUMBERS)


def _read_numbers(uri: str, name: str, marker: Marker, counts: Mapping[str, int]) -> Any:
    return read_table(uri, name, marker, [_NUMBERS], counts.get(name, 0)).column("value").to_numpy()


def _check_range(uri: str, name: str, values: Ints, low: int, stop: int) -> None:
    if not len(values) or values.min() < low or values.max() >= stop:
        raise DamagedError(f"{join(uri, name)} is damaged: a value is not in {low} .. {stop - 1}; export the run again")
