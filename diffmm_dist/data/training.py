"""What a model is built from: one worker's slice of the training data."""

from dataclasses import dataclass

from torch import Tensor

from diffmm_dist.parallel.ranges import Range
from diffmm_dist.sparse import CSR


@dataclass(frozen=True)
class TrainingData:
    """One worker's slice of the training data.

    Attributes:
        num_users: U, of all workers.
        num_items: I, of all workers.
        users: the users that this worker owns.
        items: the items that this worker owns.
        interactions: training rows of the owned users, over all items.
        first_interaction: global number of the first owned interaction.
        num_interactions: E, of all workers.
        features: by modality, float32 (owned items, width).
    """

    num_users: int
    num_items: int
    users: Range
    items: Range
    interactions: CSR
    first_interaction: int
    num_interactions: int
    features: dict[str, Tensor]
