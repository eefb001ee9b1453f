"""Interactions of a table, cleaned, split and numbered in a temporary database that spills to disk.

The database makes an import's memory independent of the table's size; ids become numbers as early as possible.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist.data.schema import SPLITS, Split
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.cleaning import Cleaner, Cleaning, InteractionColumns
from diffmm_dist.preparation.importers.columns import shortened, typed_ids
from diffmm_dist.preparation.importers.database import Database
from diffmm_dist.preparation.importers.report import NO_VALIDATION
from diffmm_dist.preparation.importers.splits import SplitRule, split_query
from diffmm_dist.preparation.importers.times import mixed_zones, time_readings

_SIDES: tuple[Literal["user"], Literal["item"]] = ("user", "item")
_EXAMPLES = 3
_OFF_BY_MUCH = 0.25  # of the size that was asked for


class Interactions:
    """The interactions of one import, in a temporary database; methods run in the order in which they stand here.

    Args:
        folder: for the database; removed by whoever made it.
        memory_gib: what the database may hold in memory.

    Attributes:
        notes: a sentence for everything that was dropped or might surprise.
        database: where they are.
    """

    def __init__(self, folder: str, *, memory_gib: float) -> None:
        self.notes: list[str] = []
        self._time = "timestamp"
        self.database = Database(folder, memory_gib=memory_gib)
        self._run = self.database.run

    def __enter__(self) -> "Interactions":
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def load(self, table: Table, columns: InteractionColumns, rule: SplitRule, cleaning: Cleaning) -> None:
        """Read a table; rows without what is needed of them, or with a low rating, are dropped.

        Raises:
            UserError: a column is missing or of a wrong type, or nothing remains.
        """
        table.check_columns(columns.names())
        cleaner = Cleaner(columns, rule, cleaning, uri=table.uri)
        kind = None
        for batch in table.batches(cleaner.needed):
            rows = cleaner.clean(batch)
            self.database.append("raw", rows, create=kind is None)
            kind = rows.schema.field("timestamp").type
        self.notes += cleaner.notes
        if kind is None or self._count("raw where not low") == 0:
            reasons = "".join(f"; {note}" for note in self.notes)
            cause = "the columns" if cleaning.min_rating is None else "the columns and --min-rating"
            raise UserError(f"{table.uri} holds no interaction to import; check {cause}{reasons}")
        if pa.types.is_string(kind):
            self._time = self._read_times(cleaning.timestamp_format, uri=table.uri, name=str(columns.timestamp))
        for side, name in (("user", columns.user), ("item", columns.item)):
            self._read_ids(side, typed=table.is_text and not cleaning.text_ids, uri=table.uri, name=name)

    def _read_ids(self, side: str, *, typed: bool, uri: str, name: str) -> None:
        """Make the table of ids as they stand in the rows (raw) and as they are meant (id)."""
        self._run(f"create table {side}_ids as select distinct {side} as raw, {side} as id from raw where not low")
        if typed:
            texts = self.database.table(f"select raw from {side}_ids")["raw"]
            ids, notes = typed_ids(texts, column=name, uri=uri)
            self.database.append(f"{side}_ids", pa.table({"raw": texts, "id": ids}), create=True)
            self.notes += notes

    def _read_times(self, timestamp_format: str | None, *, uri: str, name: str) -> str:
        """Return the SQL expression that reads the texts of the times.

        Raises:
            UserError: no way to read them fits all.
        """
        best = (-1, "", "")
        for reading in time_readings(timestamp_format):
            fitting = self._number_from(f"select count({reading.value}) from raw")
            best = max(best, (fitting, reading.words, reading.value), key=lambda found: found[0])
            if fitting == self._count("raw"):
                if reading.words.endswith("8601") and self._run(f"select {mixed_zones()} from raw")[0][0]:
                    raise UserError(f"{uri}: column '{name}' mixes times with a zone and without; give all of them one")
                return reading.value
        fitting, words, value = best
        misfits = self._run(f"select distinct timestamp from raw where ({value}) is null order by 1 limit {_EXAMPLES}")
        shown = ", ".join(repr(shortened(text)) for (text,) in misfits)
        expected = f"times {words}" if timestamp_format else f"{words} like most others" if fitting else "known times"
        raise UserError(
            f"{uri}: column '{name}' holds {shown}, which are not {expected}; mend those rows, or say how all times "
            "are written with --timestamp-format, such as %d.%m.%Y"
        )

    def item_ids(self) -> pa.Array:
        """Return the ids, int64 or string, of the items that have interactions, in their order."""
        return self._column("select distinct id from item_ids order by id")

    def number(self, *, extra_items: Sequence[pa.Array] = ()) -> None:
        """Replace ids by numbers in the order of the ids, and keep one of several rows of the same user and item.

        Args:
            extra_items: ids of items that exist besides those of the interactions.
        """
        run = self._run
        for ids in extra_items:
            self.database.append("more_ids", pa.table({"id": ids}), create=True)
            run("insert into item_ids select null, id from more_ids where id not in (select id from item_ids)")
        for side in _SIDES:
            run(
                f"create table {side}s as select raw, id, dense_rank() over (order by id) - 1 as number from {side}_ids"
            )
        run(f"create table pairs as select users.number as user, items.number as item, "
            f"min({self._time}) filter (where not low) as timestamp, min(split) filter (where not low) as split, "
            f"max(split) filter (where not low) as last_split, bool_or(low) as also_low "
            f"from raw join users on raw.user = users.raw join items on raw.item = items.raw "
            f"group by 1, 2 having not bool_and(low)")  # fmt: skip
        self._note(self._count("raw where not low") - self._count("pairs"),
                   "rows that repeat a user and an item; the earliest counts")  # fmt: skip
        run("drop table raw")
        for condition, what in (
            ("split < last_split", "stand in several splits; each counts in the first of train, valid and test"),
            ("also_low", "have a rating below the lowest that counts too; the other one counts"),
        ):
            if count := self._count(f"pairs where {condition}"):
                self.notes.append(f"{count:,} pairs of user and item {what}")

    def drop_items(self, allowed: pa.Array, *, reason: str) -> None:
        """Drop items other than ``allowed`` (ids), and their interactions."""
        self.database.append("allowed", pa.table({"id": allowed}), create=True)
        before = self._count("pairs")
        self._run("delete from pairs where item in (select number from items where id not in (select id from allowed))")
        self._run("delete from items where id not in (select id from allowed)")
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
            self._run(split_query(rule))
            self._run("drop table pairs")
            self._run("alter table divided rename to pairs")
            if tied := self._number_from("select count(distinct user) from pairs where split > 0 and tied"):
                self.notes.append(
                    f"{tied:,} users had equal times where validation or test begins; --seed decided between them"
                )
        sizes = {split: self._count(f"pairs where split = {index}") for index, split in enumerate(SPLITS)}
        for split in ("train", "test"):
            if sizes[split] == 0:
                why = "; interactions of the same time stay together" if rule.method == "time" else ""
                raise UserError(
                    f"the {split} split is empty (train {sizes['train']:,}, valid {sizes['valid']:,}, test "
                    f"{sizes['test']:,} interactions{why}); change the shares, the method or the values of the split"
                )
        if sizes["valid"] == 0:
            self.notes.append(NO_VALIDATION)
        if rule.method == "time":
            self._note_shares(rule, sizes)

    def _note_shares(self, rule: SplitRule, sizes: dict[Split, int]) -> None:
        """Say so where the splits are of another size than was asked for."""
        total = sum(sizes.values())
        wanted: dict[Split, float] = {"valid": rule.valid_share, "test": rule.test_share}
        if all(
            abs(sizes[split] - total * share) <= max(2, _OFF_BY_MUCH * total * share) for split, share in wanted.items()
        ):
            return
        found = " and ".join(f"{sizes[split] / total:.1%} {split}" for split in wanted)
        asked = " and ".join(f"{share:.1%}" for share in wanted.values())
        self.notes.append(
            f"the splits are {found}, where {asked} were asked for: interactions of the same time stay together"
        )

    def final_ids(self, side: Literal["user", "item"], *, all_items: bool = False) -> pa.Array:
        """Number the users or items that remain anew, and return their ids in that order.

        Args:
            side: user or item.
            all_items: keep items without interaction too.
        """
        present = "true" if all_items else f"number in (select distinct {side} from pairs)"
        self._run(
            f"create table final_{side}s as select number, any_value(id) as id, "
            f"row_number() over (order by number) - 1 as final from {side}s where {present} group by number"
        )
        return self._column(f"select id from final_{side}s order by final")

    def batches(self, split: Split) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yield the final numbers of users and items of a split, sorted by user and item, in pieces."""
        rows = self.database.batches(
            f"select u.final as user, i.final as item from pairs join final_users u on pairs.user = u.number "
            f"join final_items i on pairs.item = i.number where split = {SPLITS.index(split)} order by all"
        )
        for batch in rows:
            yield batch.column(0).to_numpy(), batch.column(1).to_numpy()

    def _column(self, query: str) -> pa.Array:
        """Return the one column of a query."""
        return self.database.table(query).column(0).combine_chunks()

    def _count(self, table: str) -> int:
        return self._number_from(f"select count(*) from {table}")

    def _sizes(self) -> tuple[int, int, int]:
        users, items = (self._number_from(f"select count(distinct {side}) from pairs") for side in _SIDES)
        return users, items, self._count("pairs")

    def _number_from(self, query: str) -> int:
        return int(self._run(query)[0][0])

    def _note(self, count: int, what: str) -> None:
        if count:
            self.notes.append(f"dropped {count:,} {what}")
