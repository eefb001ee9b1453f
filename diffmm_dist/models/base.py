"""What the trainer asks of a recipe: a model with embeddings to rank with, and the phases of its epoch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from diffmm_dist.graph.hetero import Kernel
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR


@dataclass(frozen=True)
class PhaseContext:
    """Where in the run a phase is.

    Attributes:
        world: this worker among all.
        seed: the run's seed.
        epoch: from 0, counted through all stages.
    """

    world: World
    seed: int
    epoch: int

    def stream(self, purpose: str, *more: int | str) -> RandomStream:
        """Return the random stream of a purpose in this epoch."""
        return RandomStream.of(self.seed, purpose, self.epoch, *more)


class Phase(ABC):
    """One pass of an epoch, step by step, so that it can be watched, stopped and resumed at any step.

    ``begin`` may depend only on the context and on saved state (parameters, buffers, optimisers): after an
    interruption it is called again, and the steps go on from the one that was next. An epoch in which it returns 0 goes
    on without the phase: nothing is finished or recorded.

    Attributes:
        name: first part of the tags, such as ``recommend``.
        unit: what the phase goes through, such as ``users``.
        num_examples: how many of them in an epoch, for all workers.
        optimizers: by name; a step may use several of them, each as often as it likes. Their states are saved with the
            run, and the gradients of all that they train are dropped after the phase. A phase without any trains
            nothing.
    """

    name: str
    unit: str
    num_examples: int
    optimizers: Mapping[str, Optimizer] = MappingProxyType({})

    @abstractmethod
    def begin(self, context: PhaseContext) -> int:
        """Prepare an epoch and return its number of steps, the same on every worker; 0 leaves the epoch out."""

    @abstractmethod
    def step(self, index: int) -> dict[str, Tensor]:
        """Do one step.

        Returns:
            This worker's shares of scalars; their sum over the workers, and its mean over the steps, is recorded as
            ``<phase>/<name>``.
        """

    def settle(self) -> None:  # noqa: B027
        """Put what the phase keeps elsewhere back into the model and the optimisers, to be saved; steps may follow.

        Every worker calls it at the same time.
        """

    def finish(self) -> dict[str, float]:
        """Conclude the epoch; return further values to record under the phase's name, the same on all workers."""
        return {}

    def drop_gradients(self) -> None:
        """Free the gradients of all that the phase trains."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Optimization:
    """How phases optimise.

    Attributes:
        batch_size: global batch.
        learning_rate: of Adam.
        l2_weight: weight of the squared norm of the ID tables.
        propagate_every: batches of interactions for which the tables are propagated once, with one step of Adam.
    """

    batch_size: int
    learning_rate: float
    l2_weight: float
    propagate_every: int = 1


class AttendedFacts(NamedTuple):
    """Facts of a knowledge graph, with what a model attends to; nodes are items, then further entities, by id.

    Attributes:
        heads: int64 (E,).
        relations: int64 (E,); inverse ones follow the others.
        tails: int64 (E,).
        attention: share of the head's attention, float32 (E,).
    """

    heads: Tensor
    relations: Tensor
    tails: Tensor
    attention: Tensor


@dataclass(frozen=True, eq=False)
class GeneratedGraph:
    """A graph that a model has generated from another one, as of the epoch that it is trained with or loaded.

    Attributes:
        name: what tells it from the model's others, such as a modality; empty for an only one.
        rows: what its own rows are: ``users``, whose columns are items, or ``nodes``: items and, behind them, further
            entities, by id, which its columns are then too.
        edges: the generated edges (own rows x column ids).
        source: those of the graph that it was generated from, likewise.
        values: from own rows, int64 (n,), to the values that their edges were chosen by, in the order of
            ``edges.select(rows)``; None where these are not known any more. Every worker calls it at the same time.
    """

    name: str
    rows: Literal["users", "nodes"]
    edges: CSR
    source: CSR
    values: Callable[[Tensor], Tensor] | None = None


class Recommender(ABC, nn.Module):
    """A model whose score of a user and an item is the inner product of two embeddings.

    Each worker builds the model with its own rows of the tables, and with all of everything else.

    Attributes:
        stage: name of the stage that the run is in, or that a checkpoint is of which is loaded; the trainer sets it.
            What ``embeddings`` and ``restored`` do may depend on it.
    """

    stage: str = ""

    @property
    def kernel(self) -> Kernel | None:
        """The sparse kernel that it propagates with, None for a model without a graph."""
        return None

    @abstractmethod
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the final embeddings of own users and own items, (rows, d) each, without gradient.

        Every worker calls it at the same time.
        """

    def deployed(self) -> nn.Module:
        """Return what ranking needs of it, with its weights: all of it, unless a part has served its purpose."""
        return self

    def further_embeddings(self) -> dict[str, Tensor]:
        """Return embeddings of own rows of other axes than users and items, by axis, (rows, d) each, for the export.

        Every worker calls it at the same time.
        """
        return {}

    def attended_facts(self) -> AttendedFacts | None:
        """Return the facts that the final embeddings of own items and further rows come from, if there are any.

        Every worker calls it at the same time.
        """
        return None

    def generated_graphs(self) -> list[GeneratedGraph]:
        """Return the graphs that it has generated, if it generates any.

        Every worker calls it at the same time.
        """
        return []

    def row_owners(self) -> dict[str, Ownership]:
        """Return, for each parameter and buffer of which a worker holds its own rows only, who owns which."""
        return {}

    def restored(self) -> None:
        """Rebuild what follows from parameters and buffers after they were loaded."""
