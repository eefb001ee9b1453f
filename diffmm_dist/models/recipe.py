"""What a model's folder gives the trainer: how it is built, what it needs, and what of its settings the data bound."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from diffmm_dist.config.section import Section
from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.kernels import choose_kernel
from diffmm_dist.graph.layout import ColumnLayout, Layout, RowLayout
from diffmm_dist.graph.relation import Normalizer, Relation
from diffmm_dist.models.base import Optimization, Phase, Recommender
from diffmm_dist.models.common.costs import ModelMemory, Share
from diffmm_dist.models.measures import Measures
from diffmm_dist.monitoring.log import logger

Settings = TypeVar("Settings", bound=Section)
Bound = Literal["items", "nodes", "entities"]
_OF_EVERY_RUN = {"checkpoint", "epoch", "evaluate", "stage"}  # what takes time in every run
LARGEST_STAGE = 9  # so that names of checkpoints sort as stages follow one another


@dataclass(frozen=True)
class Stage:
    """A part of the training with a best epoch of its own, from which the next one begins.

    Attributes:
        name: the stage's.
        phases: of each of its epochs.
        epochs: how many it has at most.
        patience: evaluations without a better one after which it ends; None for all epochs.
        begin: called by every worker when the stage begins, after the best epoch of the one before was loaded. What it
            makes is saved in parameters and buffers, or made again by the model's ``restored``: a run that is resumed
            inside the stage does not call it.
    """

    name: str
    phases: Sequence[Phase]
    epochs: int
    patience: int | None = None
    begin: Callable[[], None] | None = None


@dataclass(frozen=True)
class Recipe:
    """A model and the stages of its training, at least one.

    Names of stages and of phases are different ones throughout, and of phases none that every run has: they tell what
    belongs to what.
    """

    model: Recommender
    stages: Sequence[Stage]

    def __post_init__(self) -> None:
        for names in ([stage.name for stage in self.stages], [phase.name for phase in self.phases]):
            assert len(set(names)) == len(names), f"one of {', '.join(names)} is there twice"
        assert not _OF_EVERY_RUN & {phase.name for phase in self.phases}
        assert 1 <= len(self.stages) <= LARGEST_STAGE + 1
        assert all(stage.epochs >= 1 for stage in self.stages)

    @property
    def phases(self) -> list[Phase]:
        """The phases of all stages."""
        return [phase for stage in self.stages for phase in stage.phases]


@dataclass(frozen=True)
class TeacherTables:
    """The final embeddings of a trained model, from which another one is distilled.

    Attributes:
        users: float32 (own users, d), in the order of this worker's users.
        items: float32 (own items, d), likewise.
        identity: names exactly these tables: of a run its id and best epoch, of a bundle the checksums of its files.
        name: the model and where it lies, for messages.
    """

    users: Tensor
    items: Tensor
    identity: str
    name: str


@dataclass(frozen=True)
class Ingredients:
    """What a model is built from, besides its own settings.

    Attributes:
        data: this worker's training data.
        device: where to compute.
        seed: the run's.
        optimization: how phases optimise.
        kernel: the sparse kernel that is asked for.
        by_columns: tables propagate by columns, where there are several workers.
        epochs: of a stage, where the model's settings do not say otherwise.
        patience: of a stage, likewise.
        teacher: reads the model that this one is distilled from; None where its settings name none, and where the model
            is only loaded, not trained. A phase that needs it calls it, every worker at the same time, so that a
            trained student does not need its teacher any more.
    """

    data: TrainingData
    device: torch.device
    seed: int
    optimization: Optimization
    kernel: Literal["auto", "dgl", "csr"]
    by_columns: bool
    epochs: int
    patience: int | None
    teacher: Callable[[], TeacherTables] | None = None

    def only_stage(self, phases: Sequence[Phase]) -> list[Stage]:
        """Return the one stage of a model that is trained as the configuration says."""
        return [Stage("train", phases, self.epochs, self.patience)]

    def layout(self, *, width: int) -> Layout:
        """Return how tables of a width propagate; every worker calls it at the same time.

        Raises:
            UserError: there are more workers than columns.
        """
        shard = self.data.shard
        return ColumnLayout.of(shard, width=width) if self.by_columns and shard.world.size > 1 else RowLayout(shard)

    def real_graph(
        self,
        *,
        width: int,
        normalizer: Normalizer = "symmetric",
        self_loops: bool = True,
        layout: Layout | None = None,
    ) -> HeteroGraph:
        """Return the real graph, with the kernel that is asked for or found fastest on rows of a width.

        Args:
            width: columns of the tables that propagate.
            normalizer: of its entries.
            self_loops: every node has an edge to itself.
            layout: how the tables are spread; by rows by default.

        Raises:
            UserError: that kernel cannot run here.
        """
        layout = layout or RowLayout(self.data.shard)
        real = Relation.normalized(
            layout.pairs(self.data.interactions), layout.shard, normalizer=normalizer, self_loops=self_loops
        )
        choice = choose_kernel(self.kernel, real, width=layout.width(width), world=self.data.shard.world)
        if self.kernel == "auto" and self.data.shard.world.is_first:
            logger.info("propagation kernel: %s (%s)", choice.kernel, choice.reason)
        return HeteroGraph({REAL: real}, kernel=choice.kernel)


@dataclass(frozen=True)
class Needs:
    """What a model's memory depends on, besides its own settings.

    Attributes:
        share: how much of the data a worker has.
        widths: columns of each modality's features that are used.
        batch_size: of a batch, for all workers.
        propagate_every: batches of interactions that a step covers.
        rounded: matrix products take rounded operands.
        dgl: DGL may propagate.
        by_columns: tables propagate by columns (graph/layout.py).
        read_edges: edges to the rows that a batch reads, both ways; None if nobody has counted them.
    """

    share: Share
    widths: Mapping[str, int]
    batch_size: int
    rounded: bool
    dgl: bool
    by_columns: bool = False
    read_edges: int | None = None
    propagate_every: int = 1

    @property
    def step_size(self) -> int:
        """Interactions of a step, of all workers."""
        return self.batch_size * self.propagate_every

    @property
    def graph(self) -> Share:
        """How much of the graph a worker has: its share, or all of it."""
        return self.share.everything() if self.by_columns else self.share


@dataclass(frozen=True)
class ModelEntry(Generic[Settings]):
    """What the trainer must know of a model before there is one.

    Attributes:
        build: makes it.
        memory: says what it needs.
        reads_features: whether it wants the items' modality features.
        propagates: whether it has a graph.
        reads_knowledge: whether it wants the knowledge graph.
        by_columns: whether its tables can propagate by columns.
        several_batches: whether a step over interactions can cover several batches.
        bounds: its settings, by their keys below ``model``, that may not ask for more than there are items, nodes, or
            items and further entities.
        smallest: values, by such keys, with which the settings that size something take the least memory.
        measures: what benchmarks ask of it.
        teacher: the address of the run or bundle that it is distilled from, if it is.
    """

    build: Callable[[Settings, Ingredients], Recipe]
    memory: Callable[[Settings, Needs], ModelMemory]
    reads_features: bool = False
    reads_knowledge: bool = False
    propagates: bool = True
    by_columns: bool = False
    several_batches: bool = False
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    smallest: Callable[[Settings], Mapping[str, Any]] = lambda _: {}
    measures: Measures[Settings] = field(default_factory=Measures)
    teacher: Callable[[Settings], str | None] = lambda _: None
