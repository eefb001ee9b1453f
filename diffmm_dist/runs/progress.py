"""How far a run has come, as a checkpoint says it: all of its state that is no tensor."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from diffmm_dist.runs.checkpoint_names import NAME_PATTERN

# A state is read from a file, so what it holds has bounds, and the name in it, which becomes a path, has a form.
Whole = Annotated[int, Field(ge=0, lt=2**62)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass
class Cursor:
    """The next thing to do: a step of a phase of an epoch of a stage, all from 0.

    Attributes:
        epoch: the epoch, counted through all stages.
        phase: index of the phase in the epoch.
        step: step of the phase.
        global_step: steps done so far, of all phases and epochs.
        stage: index of the stage.
    """

    epoch: Whole = 0
    phase: Whole = 0
    step: Whole = 0
    global_step: Whole = 0
    stage: Whole = 0


@dataclass
class Best:
    """The best epoch of a stage so far.

    Attributes:
        epoch: which, counted through all stages.
        metrics: of the selecting split.
        checkpoint: name of the checkpoint that holds it.
    """

    epoch: Whole
    metrics: dict[str, Finite]
    checkpoint: Annotated[str, Field(pattern=NAME_PATTERN)]


@dataclass
class Ended:
    """A stage that has ended.

    Attributes:
        name: its name.
        epochs: how many it took.
        planned: how many it might have taken.
        patience: evaluations without a better one after which it would end.
        best: its best epoch, from which the next stage began.
    """

    name: Annotated[str, Field(max_length=100)]
    epochs: Whole
    planned: Whole
    patience: Whole | None
    best: Best


@dataclass
class Progress:
    """All of a run's state that is no tensor, as it stands in a checkpoint.

    Attributes:
        cursor: the next thing to do.
        best: the best epoch of the present stage so far, if one was evaluated.
        sums: sums of the current phase's step values.
        scalars: of the phases of this epoch already finished, by tag.
        seconds: by phase of this epoch.
        notes: what was damaged and gone around, a sentence each.
        ended: the stages before the present one.
    """

    cursor: Cursor
    best: Best | None
    sums: dict[str, Finite]
    scalars: dict[str, Finite]
    seconds: dict[str, Finite]
    notes: list[str] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
