"""Rows of interactions as they arrive: converted to the database's types, and dropped where something is missing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.columns import (
    MISSING,
    as_text,
    count_missing_words,
    id_array,
    number_array,
    plain,
    shortened,
    text_array,
    time_array,
)
from diffmm_dist.preparation.importers.splits import SplitRule

_EXAMPLES = 3


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
class Cleaning:
    """What is done to rows as they arrive.

    Attributes:
        min_rating: the lowest rating that counts, None for any.
        timestamp_format: of times that are text, as ``strptime`` has it; None to see from the texts.
        text_ids: ids are text, whatever they look like.
    """

    min_rating: float | None = None
    timestamp_format: str | None = None
    text_ids: bool = False


class Cleaner:
    """Cleans one table, batch by batch, and counts what it drops.

    Args:
        columns: of the table.
        rule: says whether times or splits are needed.
        cleaning: the rest.
        uri: of the table, for errors.
    """

    def __init__(self, columns: InteractionColumns, rule: SplitRule, cleaning: Cleaning, *, uri: str) -> None:
        self._time = columns.timestamp if rule.by_time else None
        self._rating = columns.rating if cleaning.min_rating is not None else None
        self._split = columns.split if rule.method == "column" else None
        self._columns, self._rule, self._cleaning, self._uri = columns, rule, cleaning, uri
        self._dropped: Counter[str] = Counter()
        self._odd: Counter[str] = Counter()

    @property
    def needed(self) -> list[str]:
        """The columns that are read."""
        columns = self._columns
        return InteractionColumns(columns.user, columns.item, self._time, self._rating, self._split).names()

    @property
    def notes(self) -> list[str]:
        """A sentence for each reason for which rows were dropped, and for ids that look like missing values."""
        dropped = [f"dropped {count:,} rows {reason}" for reason, count in self._dropped.items() if count]
        odd = [
            f"{self._uri}: {count:,} rows have an id in column '{name}' that looks like a missing value, such as 'nan' "
            "or 'NULL'; it is taken as an id"
            for name, count in self._odd.items()
            if count
        ]
        return dropped + odd

    def clean(self, batch: pa.RecordBatch) -> pa.Table:
        """Return user, item, timestamp, split and low: whether the rating is too low for the row to count."""
        empty = pa.nulls(batch.num_rows, pa.int64())
        time, uri = self._time, self._uri
        rows = pa.table(
            {
                "user": self._ids(batch, self._columns.user),
                "item": self._ids(batch, self._columns.item),
                "timestamp": time_array(batch[time], name=time, uri=uri) if time else empty,
                "split": self._splits(batch),
                "low": self._low(batch),
            }
        )
        self._check_format(rows.schema.field("timestamp").type)
        rows = self._with(rows, pc.and_(pc.is_valid(rows["user"]), pc.is_valid(rows["item"])), "without user or item")
        if time:
            rows = self._with(rows, pc.is_valid(rows["timestamp"]), "without a time")
        if self._split:
            rows = self._with(rows, pc.is_valid(rows["split"]), "without a split")
        if self._rating:
            self._count_low(rows)
        for name, ids in ((self._columns.user, rows["user"]), (self._columns.item, rows["item"])):
            self._odd[name] += count_missing_words(ids)
        return rows

    def _with(self, rows: pa.Table, present: pa.ChunkedArray, reason: str) -> pa.Table:
        kept = rows.filter(present)
        self._dropped[reason] += rows.num_rows - kept.num_rows
        return kept

    def _count_low(self, rows: pa.Table) -> None:
        reason = f"with a rating below {self._cleaning.min_rating}, or none"
        self._dropped[reason] += pc.sum(rows["low"]).as_py() or 0

    def _ids(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        ids = id_array(batch[name], name=name, uri=self._uri)
        return as_text(ids) if self._cleaning.text_ids else ids

    def _low(self, batch: pa.RecordBatch) -> pa.Array:
        if self._rating is None:
            return pa.repeat(False, batch.num_rows)
        ratings = number_array(batch[self._rating], name=self._rating, uri=self._uri)
        return pc.fill_null(pc.less(ratings, self._cleaning.min_rating), True)

    def _check_format(self, kind: pa.DataType) -> None:
        if self._time and self._cleaning.timestamp_format and not pa.types.is_string(kind):
            raise UserError(
                f"{self._uri}: column '{self._time}' is no text, so --timestamp-format does not apply; leave it out"
            )

    def _splits(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the numbers of the splits, null where the column is missing."""
        if self._split is None:
            return pa.nulls(batch.num_rows, pa.int8())
        column = plain(batch[self._split])
        try:
            texts = column.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"{self._uri}: column '{self._split}' holds {column.type}, but the names of splits are needed"
            ) from error
        numbers = {split_key(value): number for number, value in enumerate(self._rule.values)}
        distinct = pc.unique(texts).drop_null()
        known = [numbers.get(split_key(text)) for text in distinct.to_pylist()]
        missing = pc.is_null(text_array(distinct)).to_pylist()
        unknown = [
            text
            for text, number, is_missing in zip(distinct.to_pylist(), known, missing, strict=True)
            if number is None and not is_missing
        ]
        if unknown:
            self._refuse_splits(unknown)
        return pa.array(known, pa.int8()).take(pc.index_in(texts, value_set=distinct))

    def _refuse_splits(self, unknown: Sequence[str]) -> None:
        shown = ", ".join(repr(shortened(text)) for text in sorted(unknown)[:_EXAMPLES])
        raise UserError(
            f"{self._uri}: column '{self._split}' holds {shown}, which is none of {', '.join(self._rule.values)}; give "
            "the values of train, valid and test with --split-values of `prepare tables`"
        )


def split_key(text: str) -> str:
    """Return a split's value such that 1, 1.0 and ' 1' are the same, and so are True and true."""
    text = text.strip()
    try:
        return f"{float(text):g}" if text not in MISSING else text
    except ValueError:
        return text.lower() if text.lower() in ("true", "false") else text
