"""A dataset rewritten part by part, with its users and items reordered so that each part's rows are contiguous."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.schema import SPLITS
from diffmm_dist.data.writer import DatasetWriter, dataset_writer
from diffmm_dist.sparse import CSR

Ints = npt.NDArray[np.int64]


def write_relabelled(
    dataset: Dataset,
    out: str,
    *,
    user_part: Tensor,
    item_part: Tensor,
    num_parts: int,
    method: Literal["metis", "random"],
    report: dict[str, dict[str, float]],
    force: bool = False,
) -> None:
    """Write a dataset whose part p holds the users and items of part p, each in their former order.

    Args:
        dataset: what to reorder.
        out: where to write.
        user_part: part of each user, int64 (U,).
        item_part: part of each item, int64 (I,).
        num_parts: P.
        method: how the parts were found.
        report: for the manifest.
        force: replace a dataset that is already there.

    Raises:
        UserError: the dataset is damaged, or the place is taken or cannot be written.
    """
    users, items = (torch.argsort(part, stable=True) for part in (user_part, item_part))
    bounds = [[0, *torch.bincount(part, minlength=num_parts).cumsum(0).tolist()] for part in (user_part, item_part)]
    new_items = torch.argsort(items)
    with dataset_writer(out, num_users=dataset.num_users, num_items=dataset.num_items, force=force) as writer:
        writer.made_by = {**dataset.manifest.made_by, "partitioned": dataset.manifest.fingerprint}
        writer.partition = method, report
        contents = _Contents(dataset)
        for part in range(num_parts):
            own_users, own_items = (
                order[bound[part] : bound[part + 1]] for order, bound in zip((users, items), bounds, strict=True)
            )
            if part > 0:
                writer.begin_part(bounds[0][part], bounds[1][part])
            contents.write_part(writer, own_users, own_items, new_items, first_user=bounds[0][part])


class _Contents:
    """All of a dataset in memory, to be written in another order."""

    def __init__(self, dataset: Dataset) -> None:
        self._splits: dict[str, CSR] = {split: dataset.interactions(split) for split in SPLITS}
        self._features = {
            name: dataset.features(name).numpy().astype(entry.dtype)
            for name, entry in dataset.manifest.modalities.items()
        }
        self._ids = {kind: dataset.original_ids(kind).combine_chunks() for kind in ("users", "items")}
        self._order = {"users": dataset.source_rows("users"), "items": dataset.source_rows("items")}

    def write_part(
        self, writer: DatasetWriter, users: Tensor, items: Tensor, new_items: Tensor, *, first_user: int
    ) -> None:
        for split in SPLITS:
            rows = self._splits[split].select(users)
            pairs = CSR.from_pairs(
                rows.row_ids, new_items[rows.indices], num_rows=rows.num_rows, num_columns=rows.num_columns
            )
            writer.add_interactions(split, (pairs.row_ids + first_user).numpy(), pairs.indices.numpy())
        for name, features in self._features.items():
            writer.add_features(name, features[items.numpy()])
        for kind, chosen in (("users", users), ("items", items)):
            writer.add_ids(kind, self._ids[kind].take(chosen.numpy()))
            writer.add_order(kind, self._order[kind][chosen].numpy())
