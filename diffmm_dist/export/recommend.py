"""Top-K recommendations from a bundle, in original ids, block by block."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.evaluation.evaluator import rank_items
from diffmm_dist.export.bundle import Bundle

_USERS_PER_BLOCK = 1024


def user_rows_of(bundle: Bundle, wanted: Sequence[str]) -> Tensor:
    """Return the row of each user, int64.

    Args:
        bundle: the bundle.
        wanted: original ids as text.

    Raises:
        UserError: naming the ids that the bundle does not have.
    """
    known = bundle.user_ids
    try:
        ids = pa.array(wanted, pa.string()).cast(known.type)
    except pa.ArrowInvalid as error:
        raise UserError(f"user ids of this bundle are whole numbers, not '{','.join(wanted)}'") from error
    rows = pc.index_in(ids, value_set=known)
    unknown = [name for name, row in zip(wanted, rows.to_pylist(), strict=True) if row is None]
    if unknown:
        raise UserError(f"the bundle has no user {', '.join(unknown)}; its ids look like '{known[0]}'")
    return torch.tensor(rows.to_pylist(), dtype=torch.int64)


def recommend(bundle: Bundle, users: Tensor, *, k: int, include_seen: bool = False) -> Iterator[pa.Table]:
    """Yield tables of recommendations: user, rank (from 1), item, score; ids as in the raw data.

    Args:
        bundle: the bundle.
        users: int64 rows.
        k: recommendations per user; a user who has seen nearly everything gets fewer.
        include_seen: recommend known items too.
    """
    masked = [] if include_seen else [bundle.seen]
    users_UD, items_ID = bundle.user_embeddings, bundle.item_embeddings
    blocks = rank_items(users_UD, items_ID, users, masked=masked, k=k, batch_size=_USERS_PER_BLOCK)
    for block, scores, items in blocks:
        listed = items >= 0
        ranks = torch.arange(1, items.shape[1] + 1).expand_as(items)
        yield pa.table(
            {
                "user": bundle.user_ids.take(block[:, None].expand_as(items)[listed].numpy()),
                "rank": pa.array(ranks[listed].numpy(), pa.int32()),
                "item": bundle.item_ids.take(items[listed].numpy()),
                "score": scores[listed].numpy(),
            }
        )


def write_recommendations(tables: Iterator[pa.Table], out: str) -> int:
    """Write tables to one Parquet file, which appears when it is complete; return the number of rows."""
    rows = 0
    with storage.replacing_file(out) as file:
        writer: pq.ParquetWriter | None = None
        for table in tables:
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
            rows += table.num_rows
        if writer is not None:
            writer.close()
    return rows
