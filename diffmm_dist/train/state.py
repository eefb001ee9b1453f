"""Everything that a run must remember to go on as if it had never stopped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffmm_dist.errors import UserError, one_line
from diffmm_dist.models.base import Phase, Recommender
from diffmm_dist.monitoring.timing import Stopwatch


class NonFiniteError(UserError):
    """A loss or a parameter became NaN or infinite."""


@dataclass
class Cursor:
    """The next thing to do: a step of a phase of an epoch, all from 0.

    Attributes:
        epoch: the epoch.
        phase: index of the phase in the epoch.
        step: step of the phase.
        global_step: steps done so far, of all phases and epochs.
    """

    epoch: int = 0
    phase: int = 0
    step: int = 0
    global_step: int = 0


@dataclass
class Best:
    """The best epoch so far.

    Attributes:
        epoch: which.
        score: its value of the selecting metric.
        checkpoint: name of the checkpoint that holds it.
    """

    epoch: int
    score: float
    checkpoint: str


@dataclass
class Progress:
    """All of a run's state that is no tensor, as it stands in a checkpoint.

    Attributes:
        cursor: the next thing to do.
        best: the best epoch so far, if one was evaluated.
        sums: sums of the current phase's step values.
        scalars: of the phases of this epoch already finished, by tag.
        seconds: by phase of this epoch.
    """

    cursor: Cursor
    best: Best | None
    sums: dict[str, float]
    scalars: dict[str, float]
    seconds: dict[str, float]


@dataclass
class EpochValues:
    """What the current epoch has measured so far; saved with the run, so that an interrupted epoch is recorded whole.

    Attributes:
        sums: sums of the current phase's step values, float64 scalars.
        scalars: by tag, of the phases already finished.
        stopwatch: seconds by phase, evaluation and checkpoint.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def add(self, step_values: Mapping[str, Tensor]) -> None:
        """Add one step's values without waiting for the device."""
        for name, value in step_values.items():
            value = value.to(torch.float64)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def check_finite(self, phase: Phase, cursor: Cursor) -> None:
        """Raise a ``NonFiniteError`` naming the phase if a sum is NaN or infinite."""
        for name, value in self.sums.items():
            if not math.isfinite(float(value)):
                raise NonFiniteError(
                    f"the loss became {float(value)} in phase '{phase.name}' ({phase.name}/{name}) at epoch "
                    f"{cursor.epoch}, within {cursor.step} steps"
                )

    def conclude(self, phase: Phase, num_steps: int, finished: Mapping[str, float]) -> None:
        """Turn the phase's sums into means under its tags."""
        means = {name: float(value) / max(num_steps, 1) for name, value in self.sums.items()}
        self.scalars |= {f"{phase.name}/{name}": value for name, value in (means | dict(finished)).items()}
        self.sums = {}


class TrainState:
    """A run's whole state: model and optimisers as tensors, everything else as ``Progress``.

    Args:
        model: the model.
        phases: its phases; their names tell their optimisers apart.
    """

    def __init__(self, model: Recommender, phases: Sequence[Phase]) -> None:
        self.model = model
        self.phases = tuple(phases)
        self.cursor = Cursor()
        self.best: Best | None = None
        self.epoch_values = EpochValues()

    def check_finite(self, phase: Phase) -> None:
        """Raise a ``NonFiniteError`` naming the phase if a parameter holds NaN or infinity."""
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise NonFiniteError(
                    f"parameter {name} became NaN or infinite in phase '{phase.name}' at epoch {self.cursor.epoch}, "
                    f"within {self.cursor.step} steps"
                )

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name: ``model/NAME`` and ``optimizer/PHASE/PARAMETER/KEY``."""
        tensors = {f"{_MODEL}{name}": tensor for name, tensor in self.model.state_dict().items()}
        for phase in self.phases:
            if phase.optimizer is not None:
                for index, values in phase.optimizer.state_dict()["state"].items():
                    tensors |= {f"optimizer/{phase.name}/{index}/{key}": value for key, value in values.items()}
        return tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` returned."""
        load_model(self.model, tensors)
        for phase in self.phases:
            if phase.optimizer is not None:
                self._load_optimizer(phase, tensors)

    def _load_optimizer(self, phase: Phase, tensors: Mapping[str, Tensor]) -> None:
        assert phase.optimizer is not None
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimizer/{phase.name}/"
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                index, key = name.removeprefix(prefix).split("/")
                state.setdefault(int(index), {})[key] = tensor
        groups = phase.optimizer.state_dict()["param_groups"]
        phase.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def progress(self) -> Progress:
        """Return everything but the tensors; floats survive JSON exactly."""
        values = self.epoch_values
        sums = {name: float(value) for name, value in values.sums.items()}
        return Progress(self.cursor, self.best, sums, values.scalars, values.stopwatch.seconds)

    def load_progress(self, progress: Progress, device: torch.device) -> None:
        """Take over what ``progress`` returned."""
        self.cursor, self.best = progress.cursor, progress.best
        self.epoch_values = EpochValues(
            {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in progress.sums.items()},
            progress.scalars,
            Stopwatch(progress.seconds),
        )


_MODEL = "model/"


def is_of_model(name: str) -> bool:
    """Tell the tensors of the model from those of the optimisers."""
    return name.startswith(_MODEL)


def load_model(model: Recommender, tensors: Mapping[str, Tensor]) -> None:
    """Load the model's tensors of a checkpoint.

    Raises:
        UserError: they are not those of this model.
    """
    try:
        model.load_state_dict({name.removeprefix(_MODEL): tensors[name] for name in tensors if is_of_model(name)})
    except RuntimeError as error:
        raise UserError(f"the checkpoint's tensors are not those of this model: {one_line(error)}") from error
    model.restored()
