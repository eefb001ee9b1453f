"""Interactions of a table, cleaned, split and numbered in a temporary database that spills to disk.

The database makes an import's memory independent of the table's size; ids become numbers as early as possible.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.data.importers.arrow_tables import Table, id_array, number_array
from diffmm_dist.data.schema import ROWS_PER_BATCH, SPLITS, Split
from diffmm_dist.errors import UserError

SplitMethod = Literal["random", "leave-last-out", "time", "column"]
SPLIT_METHODS: tuple[SplitMethod, ...] = ("random", "leave-last-out", "time", "column")


@dataclass(frozen=True)
class InteractionColumns:
    """Names of the columns of a table of interactions; None for what it does not have."""

    user: str
    item: str
    timestamp: str | None = None
    rating: str | None = None
    split: str | None = None

    def names(self) -> list[str]:
        """Return the names of the columns that there are."""
        return list(dict.fromkeys(name for name in vars(self).values() if name is not None))


@dataclass(frozen=True)
class SplitRule:
    """How interactions are divided into train, valid and test.

    Attributes:
        method: ``random`` takes a share of every user's interactions; ``leave-last-out`` each user's last for test and
            the one before for valid; ``time`` cuts all interactions at two times; ``column`` reads a column.
        valid_share: part of the interactions for valid, with random and time.
        test_share: the same for test.
        values: what the column holds for train, valid and test.
        seed: of random.
    """

    method: SplitMethod = "random"
    valid_share: float = 0.1
    test_share: float = 0.1
    values: tuple[str, str, str] = ("train", "valid", "test")
    seed: int = 7

    @property
    def by_time(self) -> bool:
        """Whether every interaction must have a time."""
        return self.method in ("leave-last-out", "time")


class Interactions:
    """The interactions of one import, in a temporary database; methods run in the order in which they stand here.

    Args:
        folder: for the database; removed by whoever made it.
        memory_gib: what the database may hold in memory.

    Attributes:
        notes: a sentence for everything that was dropped.
        item_type: of the item ids, int64 or string.
    """

    item_type: pa.DataType

    def __init__(self, folder: str, *, memory_gib: float) -> None:
        self.notes: list[str] = []
        self._database = duckdb.connect(
            os.path.join(folder, "interactions.duckdb"),
            config={
                "memory_limit": f"{int(memory_gib * 1024)}MiB",
                "temp_directory": os.path.join(folder, "spilled"),
                "preserve_insertion_order": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )

    def __enter__(self) -> "Interactions":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def load(self, table: Table, columns: InteractionColumns, rule: SplitRule, *, min_rating: float | None) -> None:
        """Read a table; rows without a user, an item or a sufficient rating are dropped.

        Raises:
            UserError: a column is missing or of a wrong type, or nothing remains.
        """
        table.check_columns(columns.names())
        num_nameless = num_low = 0
        loaded = False
        for batch in table.batches(columns.names()):
            rows = _converted(batch, columns, rule, uri=table.uri)
            named = rows.filter(pc.and_(pc.is_valid(rows["user"]), pc.is_valid(rows["item"])))
            kept = named
            if min_rating is not None:
                kept = named.filter(pc.fill_null(pc.greater_equal(named["rating"], min_rating), False))
            num_nameless += rows.num_rows - named.num_rows
            num_low += named.num_rows - kept.num_rows
            self._append("raw", kept.drop_columns(["rating"]), create=not loaded)
            self.item_type = rows.schema.field("item").type
            loaded = True
        self._note(num_nameless, "rows without user or item")
        self._note(num_low, f"rows with a rating below {min_rating}, or none")
        if not loaded or self._count("raw") == 0:
            raise UserError(f"{table.uri} holds no interaction to import; check the columns and --min-rating")

    def number(self, *, extra_items: Sequence[pa.Array] = ()) -> None:
        """Replace ids by numbers in the order of the ids, and keep one of several rows of the same user and item.

        Args:
            extra_items: ids of items that exist besides those of the interactions.
        """
        run = self._run
        run("create table item_ids as select distinct item as id from raw")
        for ids in extra_items:
            self._append("more_ids", pa.table({"id": ids}), create=True)
            run("insert into item_ids select id from more_ids")
        run("create table users as select id, row_number() over (order by id) - 1 as number "
            "from (select distinct user as id from raw)")  # fmt: skip
        run("create table items as select id, row_number() over (order by id) - 1 as number "
            "from (select distinct id from item_ids)")  # fmt: skip
        before = self._count("raw")
        run("create table pairs as select users.number as user, items.number as item, "
            "min(timestamp) as timestamp, min(split) as split "
            "from raw join users on raw.user = users.id join items on raw.item = items.id group by all")  # fmt: skip
        run("drop table raw")
        self._note(before - self._count("pairs"), "rows that repeat a user and an item; the earliest counts")

    def drop_items(self, allowed: pa.Array, *, reason: str) -> None:
        """Drop the interactions of items other than ``allowed`` (ids)."""
        self._append("allowed", pa.table({"id": allowed}), create=True)
        before = self._count("pairs")
        self._run("delete from pairs where item in (select number from items where id not in (select id from allowed))")
        self._note(before - self._count("pairs"), f"interactions of items {reason}")

    def keep_core(self, k: int) -> None:
        """Drop users and items with fewer than k interactions, again and again until there are none.

        Raises:
            UserError: nothing remains.
        """
        before = self._sizes()
        few = [f"{side} in (select {side} from pairs group by {side} having count(*) < {k})" for side in _SIDES]
        while self._number_from(f"delete from pairs where {' or '.join(few)}"):
            pass
        dropped = [first - last for first, last in zip(before, self._sizes(), strict=True)]
        if self._count("pairs") == 0:
            raise UserError(f"--k-core {k} leaves no interaction; no set of users and items has that many each")
        if any(dropped):
            self.notes.append(
                f"dropped by the {k}-core: {dropped[0]:,} users, {dropped[1]:,} items, {dropped[2]:,} interactions"
            )

    def split(self, rule: SplitRule) -> None:
        """Give every interaction its split.

        Raises:
            UserError: the training or the test split would be empty.
        """
        if rule.method != "column":
            self._run(_SPLIT_QUERIES[rule.method](rule))
            self._run("drop table pairs")
            self._run("alter table divided rename to pairs")
        sizes = {split: self._count(f"pairs where split = {index}") for index, split in enumerate(SPLITS)}
        for split in ("train", "test"):
            if sizes[split] == 0:
                raise UserError(
                    f"the {split} split is empty (train {sizes['train']:,}, valid {sizes['valid']:,}, test "
                    f"{sizes['test']:,} interactions); change the shares, the method or the values of the split"
                )
        if sizes["valid"] == 0:
            self.notes.append("the validation split is empty; training will need eval.protocol=published")

    def final_ids(self, side: Literal["user", "item"], *, all_items: bool = False) -> pa.Array:
        """Number the users or items that remain anew, and return their ids in that order.

        Args:
            side: user or item.
            all_items: keep items without interaction too.
        """
        present = "true" if all_items else f"number in (select distinct {side} from pairs)"
        self._run(
            f"create table final_{side}s as select number, id, row_number() over (order by number) - 1 as final "
            f"from {side}s where {present}"
        )
        table = self._database.sql(f"select id from final_{side}s order by final").to_arrow_table()
        return table["id"].combine_chunks()

    def missing_items(self, available: pa.Array) -> int:
        """Return how many items with interactions are not among ``available`` (ids)."""
        self._append("available", pa.table({"id": available}), create=True)
        return self._count(
            "(select distinct item from pairs) join items on item = number where id not in (select id from available)"
        )

    def batches(self, split: Split) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yield the final numbers of users and items of a split, sorted by user and item, in pieces."""
        rows = self._database.sql(
            f"select u.final as user, i.final as item from pairs join final_users u on pairs.user = u.number "
            f"join final_items i on pairs.item = i.number where split = {SPLITS.index(split)} order by all"
        )
        for batch in rows.to_arrow_reader(ROWS_PER_BATCH):
            yield batch.column(0).to_numpy(), batch.column(1).to_numpy()

    def _append(self, name: str, rows: pa.Table, *, create: bool) -> None:
        self._database.register("arriving", rows)
        verb = f"create or replace table {name} as" if create else f"insert into {name}"
        self._run(f"{verb} select * from arriving")
        self._database.unregister("arriving")

    def _count(self, table: str) -> int:
        return self._number_from(f"select count(*) from {table}")

    def _sizes(self) -> tuple[int, int, int]:
        users, items = (self._number_from(f"select count(distinct {side}) from pairs") for side in _SIDES)
        return users, items, self._count("pairs")

    def _number_from(self, query: str) -> int:
        return int(self._run(query)[0][0])

    def _run(self, query: str) -> list[Any]:
        """Run a query to its end and return its rows."""
        return self._database.execute(query).fetchall()

    def _note(self, count: int, what: str) -> None:
        if count:
            self.notes.append(f"dropped {count:,} {what}")


_SIDES: tuple[Literal["user"], Literal["item"]] = ("user", "item")


def _random_query(rule: SplitRule) -> str:
    """A share of every user's interactions in an order that the seed decides; one stays in train."""
    return _ranked_query(
        f"md5_number_lower(concat_ws('/', {rule.seed}, user, item))",
        test=f"least(round(size * {rule.test_share}), size - 1)",
        valid=f"least(round(size * {rule.test_share}), size - 1) + round(size * {rule.valid_share})",
    )


def _leave_last_query(rule: SplitRule) -> str:
    """The last for test and the one before for valid, of users with three or more."""
    return _ranked_query("timestamp desc", test="if(size >= 3, 1, 0)", valid="if(size >= 3, 2, 0)")


def _ranked_query(order: str, *, test: str, valid: str) -> str:
    return (
        f"create table divided as select user, item, timestamp, "
        f"case when rank <= {test} then 2 when rank <= {valid} and rank < size then 1 else 0 end as split from ("
        f"select *, row_number() over (partition by user order by {order}, item) as rank, "
        f"count(*) over (partition by user) as size from pairs)"
    )


def _time_query(rule: SplitRule) -> str:
    """Everything after two moments; rows of the same moment stay together."""
    first, second = 1 - rule.valid_share - rule.test_share, 1 - rule.test_share
    return (
        f"create table divided as select user, item, timestamp, "
        f"case when timestamp > cut[2] then 2 when timestamp > cut[1] then 1 else 0 end as split "
        f"from pairs, (select quantile_disc(timestamp, [{first}, {second}]) as cut from pairs)"
    )


_SPLIT_QUERIES = {"random": _random_query, "leave-last-out": _leave_last_query, "time": _time_query}


def _converted(batch: pa.RecordBatch, columns: InteractionColumns, rule: SplitRule, *, uri: str) -> pa.Table:
    """Return user, item, timestamp, rating and split of a batch in the types of the database."""

    def numbers(name: str | None) -> pa.Array:
        if name is None:
            return pa.nulls(batch.num_rows, pa.float64())
        return number_array(batch[name], name=name, uri=uri)

    timestamps = numbers(columns.timestamp)
    if timestamps.null_count and rule.by_time:
        raise UserError(
            f"{uri}: column '{columns.timestamp}' lacks {timestamps.null_count} times; drop those rows first"
        )
    return pa.table(
        {
            "user": id_array(batch[columns.user], name=columns.user, uri=uri),
            "item": id_array(batch[columns.item], name=columns.item, uri=uri),
            "timestamp": timestamps,
            "rating": numbers(columns.rating),
            "split": _split_numbers(batch, columns.split, rule.values, uri=uri),
        }
    )


def _split_numbers(batch: pa.RecordBatch, name: str | None, values: Sequence[str], *, uri: str) -> pa.Array:
    if name is None:
        return pa.nulls(batch.num_rows, pa.int8())
    column = batch[name]
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    text = column.cast(pa.string())
    numbers = pc.index_in(text, value_set=pa.array(values))
    if numbers.null_count:
        other = text.filter(pc.is_null(numbers))[0]
        raise UserError(
            f"{uri}: column '{name}' holds {other.as_py()!r}, which is none of {', '.join(values)}; give the values of "
            "train, valid and test with --split-values"
        )
    return numbers.cast(pa.int8())
