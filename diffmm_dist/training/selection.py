"""Which split picks the best epoch, and what is measured at the end: the evaluation protocols (docs/evaluation.md)."""

from collections.abc import Callable, Sequence

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.schema import SPLITS, Split
from diffmm_dist.data.training import shard_interactions
from diffmm_dist.errors import UserError
from diffmm_dist.evaluation.evaluator import blocks_of_items, evaluate
from diffmm_dist.models.base import Recommender
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.runs.protocol import SELECTION_SPLIT, Protocol
from diffmm_dist.sparse import CSR


def check_selection_split(dataset: Dataset, protocol: Protocol) -> None:
    """Raise a ``UserError`` where the split that picks the best epoch is empty."""
    if dataset.manifest.num_interactions(SELECTION_SPLIT[protocol]) == 0:
        missing, other = ("validation", "published") if protocol == "validation" else ("test", "validation")
        raise UserError(
            f"dataset {dataset.uri} has no {missing} interactions to choose the best epoch with; prepare it with a "
            f"{missing} split or set eval.protocol={other}"
        )


def masked_splits(split: Split, protocol: Protocol) -> list[Split]:
    """Return the splits whose items are never ranked where a split is measured under a protocol."""
    return ["train", "valid"] if split == "test" and protocol == "validation" else ["train"]


class Evaluation:
    """All-ranking evaluation of a model under a protocol.

    ``validation``: the best epoch is chosen on validation with training items masked; test is measured for it alone,
    with training and validation items masked. ``published``: the best epoch is chosen on test, and training items
    alone are ever masked; for comparison with published numbers only.

    Args:
        dataset: where the splits are.
        train: training interactions of the own users, which are always masked.
        shard: what this worker owns; it ranks all items, which come a worker at a time, for its own users.
        protocol: which.
        ks: cut-offs.
        batch_size: users ranked at a time.
        retrieved_ndcg: measure the NDCG over retrieved items too, to compare only.

    Attributes:
        selection_split: the split that picks the best epoch.

    Raises:
        UserError: the split that picks the best epoch is empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        train: CSR,
        shard: Shard,
        *,
        protocol: Protocol,
        ks: Sequence[int],
        batch_size: int,
        retrieved_ndcg: bool = False,
    ) -> None:
        self._splits: dict[Split, CSR] = {"train": train}
        for name in ("valid", "test"):
            self._splits[name] = shard_interactions(dataset, name, shard)
        self._empty = {name for name in SPLITS if dataset.manifest.num_interactions(name) == 0}
        self._shard = shard
        self._protocol = protocol
        self._ks = ks
        self._batch_size = batch_size
        self._retrieved_ndcg = retrieved_ndcg
        self.selection_split = SELECTION_SPLIT[protocol]
        check_selection_split(dataset, protocol)

    def measure(self, model: Recommender, split: Split, *, poll: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return the metrics on a split, masked as the protocol says; empty for an empty split.

        Every worker calls it at the same time, and all get the same.

        Args:
            model: the model.
            split: the split.
            poll: called by all workers again and again meanwhile; what it raises ends the measurement.
        """
        if split in self._empty:
            return {}
        masked = masked_splits(split, self._protocol)
        users, items = model.embeddings()
        return evaluate(
            users,
            blocks_of_items(items, self._shard),
            truth=self._splits[split],
            masked=[self._splits[name] for name in masked],
            ks=self._ks,
            batch_size=self._batch_size,
            world=self._shard.world,
            retrieved_ndcg=self._retrieved_ndcg,
            poll=poll,
        )
