"""Everything that a run must remember to go on as if it had never stopped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.errors import UserError
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
class EpochValues:
    """What the current epoch has measured so far; saved with the run, so that an interrupted epoch is recorded whole.

    Attributes:
        sums: sums of the current phase's step values, float64 scalars.
        values: by tag, of the phases already finished.
        stopwatch: seconds by phase, evaluation and checkpoint.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
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
        self.values |= {f"{phase.name}/{name}": value for name, value in (means | dict(finished)).items()}
        self.sums = {}


class TrainState:
    """A run's whole state: model and optimisers as tensors, everything else as JSON.

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

    def check_finite(self) -> None:
        """Raise a ``NonFiniteError`` if a parameter holds NaN or infinity."""
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise NonFiniteError(f"parameter {name} became NaN or infinite at epoch {self.cursor.epoch}")

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name: ``model/NAME`` and ``optimizer/PHASE/PARAMETER/KEY``."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
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

    def scalars(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON; floats survive it exactly."""
        values = self.epoch_values
        return {
            "cursor": asdict(self.cursor),
            "best": asdict(self.best) if self.best else None,
            "sums": {name: float(value) for name, value in values.sums.items()},
            "values": values.values,
            "seconds": values.stopwatch.seconds,
        }

    def load_scalars(self, scalars: Mapping[str, Any], device: torch.device) -> None:
        """Take over what ``scalars`` returned."""
        self.cursor = Cursor(**scalars["cursor"])
        self.best = Best(**scalars["best"]) if scalars["best"] else None
        self.epoch_values = EpochValues(
            {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in scalars["sums"].items()},
            dict(scalars["values"]),
            Stopwatch(dict(scalars["seconds"])),
        )


def load_model(model: Recommender, tensors: Mapping[str, Tensor]) -> None:
    """Load the ``model/NAME`` tensors of a checkpoint into a model."""
    prefix = "model/"
    model.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    )
    model.restored()
