"""A dataset without some of its users or items: what a run is trained on that is to meet them for the first time."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.schema import SPLITS
from diffmm_dist.data.writer import dataset_writer

Ints = npt.NDArray[np.int64]


def write_without(dataset: Dataset, out: str, axis: str, rows: Ints) -> None:
    """Write a dataset without some rows of an axis and everything that mentions them; one that is there is replaced.

    The others keep their order and their original ids, and get the numbers that are free.

    Args:
        dataset: what to copy; if it is in parts, the copy is not.
        out: where to write.
        axis: ``users`` or ``items``.
        rows: the rows that are left out.

    Raises:
        UserError: the dataset is damaged, or the place cannot be written.
    """
    manifest = dataset.manifest
    kept = {name: np.ones(count, bool) for name, count in manifest.counts.items()}
    kept[axis][rows] = False
    numbers = {name: np.where(flags, np.cumsum(flags) - 1, -1) for name, flags in kept.items()}
    counts = {name: int(flags.sum()) for name, flags in kept.items()}
    with dataset_writer(
        out,
        num_users=counts.pop("users"),
        num_items=counts.pop("items"),
        axes=counts,
        force=True,
    ) as writer:
        writer.made_by = {**manifest.made_by, "without": {"dataset": manifest.fingerprint, axis: len(rows)}}
        for split in SPLITS:
            for users, items in dataset.stream(split):
                both = _renumbered([users, items], [numbers["users"], numbers["items"]])
                writer.add_interactions(split, *both)
        for name in manifest.modalities:
            for first, values in dataset.stream_features(name):
                writer.add_features(name, values[kept["items"][first : first + len(values)]])
        for name, flags in kept.items():
            first = 0
            for batch in dataset.stream_ids(name):
                writer.add_ids(name, batch.column("id").filter(flags[first : first + batch.num_rows]))
                first += batch.num_rows
        for name, table in manifest.tables.items():
            writer.begin_table(name, table.columns)
            of_columns = [_of_axes(axes, numbers) for axes in table.columns.values()]
            for columns in dataset.stream_table(name):
                writer.add_rows(name, _renumbered(columns, of_columns))


def _of_axes(axes: tuple[str, ...], numbers: Mapping[str, Ints]) -> Ints:
    """Return the new numbers of what a column of a table may hold, the rows of some axes one after the other."""
    found, first = [], 0
    for axis in axes:
        found.append(np.where(numbers[axis] >= 0, numbers[axis] + first, -1))
        first += int((numbers[axis] >= 0).sum())
    return np.concatenate(found)


def _renumbered(columns: "list[Ints] | tuple[Ints, ...]", numbers: list[Ints]) -> list[Ints]:
    """Return the rows of which nothing is left out, by their new numbers."""
    found = [of_column[values] for values, of_column in zip(columns, numbers, strict=True)]
    whole = np.logical_and.reduce([values >= 0 for values in found])
    return [values[whole] for values in found]
