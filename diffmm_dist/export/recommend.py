"""Top-K recommendations from a bundle, in original ids, block by block."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.evaluation.evaluator import rank_items
from diffmm_dist.export.bundle import Bundle
from diffmm_dist.words import shown

_USERS_PER_BLOCK = 1024
# What makes a spreadsheet compute a cell, in both widths of East Asian characters, also behind blanks.
_FORMULA = "^[\\s\\x00]*[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]|^[\\t\\r\\n']"
_MOST_NAMED = 5  # ids that a message repeats


def user_rows_of(bundle: Bundle, wanted: Sequence[str]) -> Tensor:
    """Return the row of each user, once each, int64.

    Args:
        bundle: the bundle.
        wanted: original ids as text.

    Raises:
        UserError: naming the ids that the bundle does not have.
    """
    known = bundle.user_ids
    if pa.types.is_integer(known.type):
        others = [text for text in wanted if not _is_id(text)]
        if others:
            raise UserError(f"user ids of this bundle are whole numbers, not {_named(others)}")
    ids = pa.array(wanted, pa.string()).cast(known.type)
    rows = pc.index_in(ids, value_set=known).to_pylist()
    unknown = [one for one, row in zip(ids.to_pylist(), rows, strict=True) if row is None]
    if unknown:
        raise UserError(f"the bundle has no user {_named(unknown)}; its ids look like {shown(known[0].as_py())}")
    return torch.tensor(list(dict.fromkeys(rows)), dtype=torch.int64)


def _is_id(text: str) -> bool:
    """Tell a whole number that fits 64 bits."""
    return re.fullmatch(r"-?[0-9]{1,19}", text) is not None and -(2**63) <= int(text) < 2**63


def _named(ids: Sequence[str | int]) -> str:
    more = f" and {len(ids) - _MOST_NAMED:,} more" if len(ids) > _MOST_NAMED else ""
    return ", ".join(shown(one) for one in ids[:_MOST_NAMED]) + more


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


def file_format(out: str) -> str:
    """Return the format in which recommendations are written to a file, by its ending.

    Raises:
        UserError: it has another ending.
    """
    ending = out.rpartition("/")[2].rpartition(".")[2].lower()
    if ending not in _WRITERS or "." not in out.rpartition("/")[2]:
        known = ", ".join(f".{name}" for name in _WRITERS)
        raise UserError(f"--out {out} must end in one of {known}, which says how it is written")
    return ending


def write_recommendations(tables: Iterator[pa.Table], out: str, *, raw_ids: bool = False) -> int:
    """Write tables to one file, which appears when it is complete, in the format of its ending; return the rows.

    Args:
        tables: what to write.
        out: the file.
        raw_ids: write ids into CSV as they are, also where a spreadsheet would take one for a formula.

    Raises:
        UserError: it has another ending, or cannot be written.
    """
    rows = 0
    writer = _WRITERS[file_format(out)]
    if file_format(out) == "csv" and not raw_ids:
        tables = map(_for_spreadsheets, tables)
    first = next(tables)
    with storage.replacing_file(out) as file, writer(file, first.schema) as write:
        for table in chain([first], tables):
            write(table)
            rows += table.num_rows
    return rows


def num_formulas(bundle: Bundle) -> int:
    """Return how many ids of a bundle a spreadsheet would take for formulas, and so have an apostrophe in CSV."""
    texts = (ids for ids in (bundle.user_ids, bundle.item_ids) if pa.types.is_string(ids.type))
    return sum(pc.sum(pc.match_substring_regex(ids, _FORMULA)).as_py() or 0 for ids in texts)


def _for_spreadsheets(table: pa.Table) -> pa.Table:
    """Put an apostrophe before texts that a spreadsheet would compute, and before those that begin with one.

    So what begins with an apostrophe loses it, and is what it was.
    """
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = pc.replace_substring_regex(table.column(place), _FORMULA, "'\\0")
            table = table.set_column(place, field.name, column)
    return table


Write = Callable[[pa.Table], Any]


@contextmanager
def _parquet(file: IO[bytes], schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(_sink(file), schema, compression="zstd") as writer:
        yield writer.write_table


@contextmanager
def _csv(file: IO[bytes], schema: pa.Schema) -> Iterator[Write]:
    with csv.CSVWriter(_sink(file), schema) as writer:
        yield writer.write_table


@contextmanager
def _arrow(file: IO[bytes], schema: pa.Schema) -> Iterator[Write]:
    with pa.ipc.new_file(_sink(file), schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        yield writer.write_table


@contextmanager
def _jsonl(file: IO[bytes], schema: pa.Schema) -> Iterator[Write]:
    def write(table: pa.Table) -> None:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode())

    yield write


_WRITERS = {"csv": _csv, "parquet": _parquet, "arrow": _arrow, "feather": _arrow, "jsonl": _jsonl}


def _sink(file: IO[bytes]) -> pa.PythonFile:
    """Return a file for a writer, which must not close it: what has failed would appear as if it were complete."""
    return pa.PythonFile(_NotToBeClosed(file), mode="w")


class _NotToBeClosed:
    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write
        self.flush = file.flush

    def close(self) -> None:
        """Leave it open."""
