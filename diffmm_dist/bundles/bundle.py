"""A bundle as it is read: ids, embeddings, and what users know already (docs/data-format.md)."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.bundles.files import ITEMS, SEEN, SEEN_SCHEMA, USERS, Marker, read_marker, read_table
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.bundles.rows import Rows, read_embedded
from diffmm_dist.data.checks import check_ids
from diffmm_dist.errors import DamagedError


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle of U users, I items and embeddings of width d.

    Attributes:
        user_ids: original ids, int64 or string, in row order.
        item_ids: likewise.
        user_rows: float32 (U, d).
        item_rows: float32 (I, d).
        seen: the items that each user knows already.
        marker: what bundle.json says.
    """

    user_ids: pa.ChunkedArray
    item_ids: pa.ChunkedArray
    user_rows: Rows
    item_rows: Rows
    seen: Pairs
    marker: Marker


def read_bundle(uri: str) -> Bundle:
    """Read a bundle, comparing each file with its checksum; the embeddings of a local one are mapped.

    Raises:
        UserError: there is none, or a file of it is missing.
        DamagedError: a file of it is not what was exported, or its embeddings are not finite.
    """
    marker = read_marker(uri)
    users = read_embedded(uri, USERS, marker, marker["num_users"])
    items = read_embedded(uri, ITEMS, marker, marker["num_items"])
    if users.rows.largest() * items.rows.largest() * marker["embedding_dim"] > np.finfo(np.float32).max:
        raise DamagedError(f"{uri}: its embeddings are so large that scores are infinite; train the run again")
    seen = read_table(uri, SEEN, marker, [SEEN_SCHEMA], marker["num_seen"])
    pairs = [seen.column(name).to_numpy() for name in ("user", "item")]
    for kind, rows, count in zip(("user", "item"), pairs, (len(users.rows), len(items.rows)), strict=True):
        check_ids(rows, count, kind=kind, where=storage.join(uri, SEEN))
    known = Pairs.of(*pairs, num_rows=len(users.rows), num_items=len(items.rows))
    return Bundle(users.ids, items.ids, users.rows, items.rows, known, marker)
