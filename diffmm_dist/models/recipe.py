"""What a model's folder gives the trainer: how it is built, what it needs, and what of its settings the data bound."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch

from diffmm_dist.config.section import Section
from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.kernels import choose_kernel
from diffmm_dist.graph.relation import Relation
from diffmm_dist.models.base import Optimization, Phase, Recommender
from diffmm_dist.models.common.costs import ModelMemory, Share
from diffmm_dist.models.measures import Measures
from diffmm_dist.monitoring.log import logger

Settings = TypeVar("Settings", bound=Section)
Bound = Literal["items", "nodes"]


@dataclass(frozen=True)
class Recipe:
    """A model and its phases."""

    model: Recommender
    phases: list[Phase]


@dataclass(frozen=True)
class Ingredients:
    """What a model is built from, besides its own settings.

    Attributes:
        data: this worker's training data.
        device: where to compute.
        seed: the run's.
        optimization: how phases optimise.
        kernel: the sparse kernel that is asked for.
    """

    data: TrainingData
    device: torch.device
    seed: int
    optimization: Optimization
    kernel: Literal["auto", "dgl", "csr"]

    def real_graph(self, *, width: int) -> HeteroGraph:
        """Return the real graph, with the kernel that is asked for or found fastest on rows of a width.

        Raises:
            UserError: that kernel cannot run here.
        """
        real = Relation.normalized(self.data.interactions, self.data.shard)
        choice = choose_kernel(self.kernel, real, width=width)
        if self.kernel == "auto" and self.data.shard.world.is_first:
            logger.info("propagation kernel: %s (%s)", choice.kernel, choice.reason)
        return HeteroGraph({REAL: real}, kernel=choice.kernel)


@dataclass(frozen=True)
class Needs:
    """What a model's memory depends on, besides its own settings.

    Attributes:
        share: how much of the data a worker has.
        widths: columns of each modality's features that are used.
        batch_size: of a step, for all workers.
        rounded: matrix products take rounded operands.
        dgl: DGL may propagate.
    """

    share: Share
    widths: Mapping[str, int]
    batch_size: int
    rounded: bool
    dgl: bool


@dataclass(frozen=True)
class ModelEntry(Generic[Settings]):
    """What the trainer must know of a model before there is one.

    Attributes:
        build: makes it.
        memory: says what it needs.
        reads_features: whether it wants the items' modality features.
        propagates: whether it has a graph.
        trains: False for a model that is ready when it is made: its run has one epoch, without phases.
        bounds: its settings, by their keys below ``model``, that may not ask for more than there are items or nodes.
        smallest: values, by such keys, with which the settings that size something take the least memory.
        measures: what benchmarks ask of it.
    """

    build: Callable[[Settings, Ingredients], Recipe]
    memory: Callable[[Settings, Needs], ModelMemory]
    reads_features: bool = False
    propagates: bool = True
    trains: bool = True
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    smallest: Callable[[Settings], Mapping[str, Any]] = lambda _: {}
    measures: Measures[Settings] = field(default_factory=Measures)
