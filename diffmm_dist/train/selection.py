"""Which split picks the best epoch, and what is measured at the end: the evaluation protocols (docs/evaluation.md)."""

from collections.abc import Sequence
from typing import Literal

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.schema import Split
from diffmm_dist.errors import UserError
from diffmm_dist.evaluation.evaluator import evaluate
from diffmm_dist.models.base import Recommender
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR

Protocol = Literal["validation", "published"]
SELECTION_SPLIT: dict[Protocol, Split] = {"validation": "valid", "published": "test"}


class Evaluation:
    """All-ranking evaluation of a model under a protocol.

    ``validation``: the best epoch is chosen on validation with training items masked; test is measured for it alone,
    with training and validation items masked. ``published``: the best epoch is chosen on test, and training items
    alone are ever masked; for comparison with published numbers only.

    Args:
        dataset: where the splits are.
        train: training interactions, which are always masked.
        protocol: which.
        ks: cut-offs.
        batch_size: users ranked at a time.
        world: this worker among all.

    Attributes:
        selection_split: the split that picks the best epoch.

    Raises:
        UserError: the split that picks the best epoch is empty.
    """

    def __init__(
        self, dataset: Dataset, train: CSR, *, protocol: Protocol, ks: Sequence[int], batch_size: int, world: World
    ) -> None:
        device = world.device
        self._splits: dict[Split, CSR] = {"train": train}
        for name in ("valid", "test"):
            self._splits[name] = dataset.interactions(name).to(device)
        self._protocol = protocol
        self._ks = ks
        self._batch_size = batch_size
        self._world = world
        self.selection_split = SELECTION_SPLIT[protocol]
        if self._splits[self.selection_split].num_entries == 0:
            missing, other = ("validation", "published") if protocol == "validation" else ("test", "validation")
            raise UserError(
                f"dataset {dataset.uri} has no {missing} interactions to choose the best epoch with; prepare it with a "
                f"{missing} split or set eval.protocol={other}"
            )

    def measure(self, model: Recommender, split: Split) -> dict[str, float]:
        """Return the metrics on a split, masked as the protocol says; empty for an empty split."""
        truth = self._splits[split]
        if truth.num_entries == 0:
            return {}
        masked: list[Split] = ["train", "valid"] if split == "test" and self._protocol == "validation" else ["train"]
        users, items = model.embeddings()
        return evaluate(
            users,
            items,
            truth=truth,
            masked=[self._splits[name] for name in masked],
            ks=self._ks,
            batch_size=self._batch_size,
            world=self._world,
        )
