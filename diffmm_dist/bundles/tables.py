"""Lists as tables in original ids, block by block, and the files that they go to."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from diffmm_dist import storage
from diffmm_dist.bundles.asked import Histories
from diffmm_dist.bundles.files import Ints
from diffmm_dist.bundles.ids import Ids
from diffmm_dist.bundles.ranking import Lists, Rule, blocks_of
from diffmm_dist.bundles.recommender import Kind, Recommender
from diffmm_dist.errors import UserError

# What makes a spreadsheet compute a cell, in both widths of East Asian characters, also behind blanks.
_FORMULA = "^[\\s\\x00]*[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]|^[\\t\\r\\n']"


def recommend(
    recommender: Recommender, users: Ints, *, k: int, include_seen: bool = False, rule: Rule | None = None
) -> Iterator[pa.Table]:
    """Yield tables of recommendations: user, rank (from 1), item, score; ids as in the raw data.

    Args:
        recommender: of a bundle.
        users: int64 rows.
        k: recommendations per user; a user who has seen nearly everything gets fewer.
        include_seen: recommend known items too.
        rule: what may be recommended.
    """
    for block in blocks_of(len(users), len(recommender.items)):
        lists = recommender.lists(users[block], k, exclude_seen=not include_seen, rule=rule)
        yield ranked_table("user", recommender.users.of(users[block]), recommender.items, lists)


def fold_in(
    recommender: Recommender, histories: Histories, *, k: int, include_seen: bool = False, rule: Rule | None = None
) -> Iterator[pa.Table]:
    """Yield tables of recommendations to users who are only lists of items, as ``recommend`` does."""
    for block in blocks_of(len(histories.users), len(recommender.items)):
        pairs = histories.pairs.take(np.arange(block.start, block.stop))
        lists = recommender.folded(pairs, k, exclude_seen=not include_seen, rule=rule)
        yield ranked_table("user", histories.users[block], recommender.items, lists)


def similar(recommender: Recommender, kind: Kind, rows: Ints, *, k: int) -> Iterator[pa.Table]:
    """Yield tables of what is the most alike: item, rank (from 1), similar item, score; or the same of users."""
    ids = recommender.ids(kind)
    for block in blocks_of(len(rows), len(ids)):
        lists = recommender.similar(kind, rows[block], k)
        yield ranked_table(ids.kind, ids.of(rows[block]), ids, lists, found=f"similar {ids.kind}")


def ranked_table(kind: str, asked: pa.Array, ids: Ids, lists: Lists, *, found: str = "item") -> pa.Table:
    """Return lists as a table: who asks, rank (from 1), what was found, score.

    Args:
        kind: the name of the column of who asks.
        asked: ids of who asks, one for each list.
        ids: those of what was found.
        lists: rows of these.
        found: the name of the column of what was found.
    """
    listed = lists.rows >= 0
    places, ranks = np.nonzero(listed)
    return pa.table(
        {
            kind: asked.take(pa.array(places)),
            "rank": pa.array(ranks + 1, pa.int32()),
            found: ids.of(lists.rows[listed]),
            "score": lists.scores[listed],
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


def num_formulas(*columns: pa.ChunkedArray) -> int:
    """Return how many ids a spreadsheet would take for formulas, and so have an apostrophe in CSV."""
    texts = (ids for ids in columns if pa.types.is_string(ids.type))
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
    with pq.ParquetWriter(storage.unclosed(file), schema, compression="zstd") as writer:
        yield writer.write_table


@contextmanager
def _csv(file: IO[bytes], schema: pa.Schema) -> Iterator[Write]:
    with csv.CSVWriter(storage.unclosed(file), schema) as writer:
        yield writer.write_table


@contextmanager
def _arrow(file: IO[bytes], schema: pa.Schema) -> Iterator[Write]:
    with pa.ipc.new_file(storage.unclosed(file), schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        yield writer.write_table


@contextmanager
def _jsonl(file: IO[bytes], schema: pa.Schema) -> Iterator[Write]:
    def write(table: pa.Table) -> None:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode())

    yield write


_WRITERS = {"csv": _csv, "parquet": _parquet, "arrow": _arrow, "feather": _arrow, "jsonl": _jsonl}
