"""A trained run measured user by user, beside the list of what most users took."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmm_dist.data.schema import Split
from diffmm_dist.data.training import shard_interactions
from diffmm_dist.evaluation.users import UserFigures, user_figures
from diffmm_dist.sparse import CSR
from diffmm_dist.training.selection import masked_splits
from diffmm_dist.training.trained import TrainedRun


@dataclass(frozen=True, eq=False)
class Measure:
    """What lists are measured against: a split of a run's dataset, and what is masked.

    Attributes:
        rows: users with true items, in the order of their ids, int64 (N,).
        truth: own users x item ids.
        masked: likewise.
        ks: cut-offs.
    """

    rows: Tensor
    truth: CSR
    masked: Sequence[CSR]
    ks: Sequence[int]

    @classmethod
    def of(cls, run: TrainedRun, split: Split, ks: Sequence[int], *, masked: Sequence[Split]) -> "Measure":
        """Read the splits of a run's dataset.

        Args:
            run: the run, in a world of one.
            split: the truth.
            ks: cut-offs.
            masked: splits whose items are never ranked.
        """
        shard = run.data.shard
        truth, *hidden = (shard_interactions(run.dataset, name, shard) for name in (split, *masked))
        rows = torch.nonzero(truth.row_counts).flatten()
        return cls(rows[torch.argsort(shard.user_ids[rows])], truth, hidden, ks)

    @classmethod
    def by_protocol(cls, run: TrainedRun, split: Split, ks: Sequence[int]) -> "Measure":
        """Read what the run's own protocol measures with; the arguments are those of ``of``."""
        return cls.of(run, split, ks, masked=masked_splits(split, run.config.eval.protocol))

    def of_run(self, run: TrainedRun) -> UserFigures:
        """Return the figures of a run's best epoch."""
        users, items = run.model.embeddings()
        return self._figures(users, items[run.data.shard.item_rows])

    def of_most_taken(self, run: TrainedRun) -> UserFigures:
        """Return the figures of one list for all: the items with the most training interactions, falling."""
        counts = run.data.interactions.column_counts.to(torch.float32)
        return self._figures(counts.new_ones(run.data.interactions.num_rows, 1), counts[:, None])

    def _figures(self, users: Tensor, items: Tensor) -> UserFigures:
        return user_figures(users, items, self.rows, truth=self.truth, masked=self.masked, ks=self.ks)
