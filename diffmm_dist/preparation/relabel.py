"""A dataset rewritten with the rows of its axes reordered, so that each part's rows are contiguous.

Every file is read once, some rows at a time, and every row goes to its part as it comes: a part's rows keep their
order, so nothing but the new numbers of the rows is held in memory, whatever the dataset holds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.schema import SPLITS, Split
from diffmm_dist.data.writer import DatasetWriter, dataset_writer

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Order:
    """The new order of an axis.

    Attributes:
        part: of each row, int64 (n,).
        bounds: first new row of each part, and the end of the last.
    """

    part: Ints
    bounds: Ints

    @classmethod
    def of(cls, part: Tensor, num_parts: int) -> "Order":
        """Return the order that puts the parts one after the other, and leaves that of a part's rows as it was."""
        bounds = np.concatenate([[0], np.cumsum(np.bincount(part.numpy(), minlength=num_parts))])
        return cls(part.numpy(), bounds)

    @cached_property
    def new_rows(self) -> Ints:
        """The new number of each row, int64 (n,)."""
        rows = np.empty(len(self.part), np.int64)
        rows[np.argsort(self.part, kind="stable")] = np.arange(len(self.part))
        return rows

    def split(self, first: int, count: int) -> list[tuple[int, Ints]]:
        """Return the parts of ``count`` rows from ``first`` on, with the places of each part's rows among them."""
        return _places(self.part[first : first + count])


def write_relabelled(
    dataset: Dataset,
    out: str,
    *,
    parts: Mapping[str, Tensor],
    num_parts: int,
    method: Literal["metis", "random"],
    report: dict[str, dict[str, float]],
    cut_by: str | None = None,
    force: bool = False,
) -> None:
    """Write a dataset whose part p holds the rows of part p of every axis that is cut, each in their former order.

    Args:
        dataset: what to reorder.
        out: where to write.
        parts: by axis, the part of each row, int64 (n,); other axes stay as they are, whole in the first part's files.
        num_parts: P.
        method: how the parts were found.
        report: for the manifest.
        cut_by: the library that found the parts, for the manifest.
        force: replace a dataset that is already there.

    Raises:
        UserError: the dataset is damaged, or the place is taken or cannot be written.
    """
    manifest = dataset.manifest
    orders = {axis: Order.of(part, num_parts) for axis, part in parts.items()}
    with dataset_writer(
        out,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        axes={name: axis.count for name, axis in manifest.axes.items()},
        bounds={axis: order.bounds.tolist() for axis, order in orders.items()},
        force=force,
    ) as writer:
        writer.made_by = {**manifest.made_by, "partitioned": manifest.fingerprint, "cut_by": cut_by}
        writer.partition = method, report
        for split in SPLITS:
            _write_interactions(dataset, writer, split, orders)
        for name in manifest.modalities:
            _write_features(dataset, writer, name, orders["items"])
        for axis in manifest.counts:
            _write_axis(dataset, writer, axis, orders.get(axis))
        for name in manifest.tables:
            _write_table(dataset, writer, name, orders)


def _write_interactions(dataset: Dataset, writer: DatasetWriter, split: Split, orders: Mapping[str, Order]) -> None:
    """Write a split's interactions, each user's items ascending by their new numbers."""
    users, items = orders["users"], orders["items"]
    for old_users, old_items in _whole_users(dataset.stream(split)):
        rows, columns = users.new_rows[old_users], items.new_rows[old_items]
        order = np.lexsort((columns, rows))
        rows, columns = rows[order], columns[order]
        for part, places in _places(users.part[old_users[order]]):
            writer.add_interactions(split, rows[places], columns[places], part=part)
    writer.finish()


def _write_features(dataset: Dataset, writer: DatasetWriter, name: str, items: Order) -> None:
    for first, rows in dataset.stream_features(name):
        for part, places in items.split(first, len(rows)):
            writer.add_features(name, rows[places], part=part)
    writer.finish()


def _whole_users(stream: Iterator[tuple[Ints, Ints]]) -> Iterator[tuple[Ints, Ints]]:
    """Yield the same interactions, so that all of a user's come together."""
    kept_users, kept_items = np.empty(0, np.int64), np.empty(0, np.int64)
    for users, items in stream:
        users, items = np.concatenate([kept_users, users]), np.concatenate([kept_items, items])
        end = int(np.searchsorted(users, users[-1])) if len(users) else 0
        yield users[:end], items[:end]
        kept_users, kept_items = users[end:], items[end:]
    yield kept_users, kept_items


def _write_axis(dataset: Dataset, writer: DatasetWriter, axis: str, order: Order | None) -> None:
    """Write the original ids of an axis, and the numbers that its rows had before any partition."""
    first = 0
    for batch in dataset.stream_ids(axis):
        if order is None:
            writer.add_ids(axis, batch.column(0))
            continue
        for part, places in order.split(first, batch.num_rows):
            writer.add_ids(axis, batch.column(0).take(pa.array(places)), part=part)
        first += batch.num_rows
    if order is not None:
        source = dataset.source_rows(axis).numpy()
        for part, places in order.split(0, len(source)):
            writer.add_order(axis, source[places], part=part)
    writer.finish()


def _write_table(dataset: Dataset, writer: DatasetWriter, name: str, orders: Mapping[str, Order]) -> None:
    """Write a table's rows with new numbers; a row goes to the part of what its first column names."""
    columns = dataset.manifest.tables[name].columns
    numbered = [_Numbered.of(axes, dataset.manifest.counts, orders) for axes in columns.values()]
    writer.begin_table(name, columns)
    for rows in dataset.stream_table(name):
        new = [column.new(values) for column, values in zip(numbered, rows, strict=True)]
        for part, places in _places(numbered[0].part(rows[0])):
            writer.add_rows(name, [values[places] for values in new], part=part)
    writer.finish()


@dataclass(frozen=True, eq=False)
class _Numbered:
    """The axes that a column numbers, one after the other: by axis, its first number and its order, if it is cut."""

    axes: list[tuple[int, Order | None]]

    @classmethod
    def of(cls, axes: tuple[str, ...], counts: Mapping[str, int], orders: Mapping[str, Order]) -> "_Numbered":
        starts = np.cumsum([0, *(counts[axis] for axis in axes)])
        return cls([(int(start), orders.get(axis)) for start, axis in zip(starts, axes, strict=False)])

    def new(self, values: Ints) -> Ints:
        """Return the new numbers."""
        out: Ints = values.copy()
        for start, order, ours in self._cut(values):
            out[ours] = order.new_rows[values[ours] - start] + start
        return out

    def part(self, values: Ints) -> Ints:
        """Return the parts; what is not cut is in the first."""
        out = np.zeros(len(values), np.int64)
        for start, order, ours in self._cut(values):
            out[ours] = order.part[values[ours] - start]
        return out

    def _cut(self, values: Ints) -> Iterator[tuple[int, Order, npt.NDArray[np.bool_]]]:
        """Yield the first number and the order of each axis that is cut, and which values are its rows."""
        for start, order in self.axes:
            if order is not None:
                yield start, order, (values >= start) & (values < start + len(order.part))


def _places(parts: Ints) -> list[tuple[int, Ints]]:
    """Return each part that occurs, with the places at which it does, ascending."""
    order = np.argsort(parts, kind="stable")
    found, starts = np.unique(parts[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, starts[1:]), strict=True)) if len(found) else []
