"""Everything that a run must remember to go on as if it had never stopped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from diffmm_dist.errors import UserError, one_line
from diffmm_dist.models.base import Phase, Recommender
from diffmm_dist.models.recipe import Recipe, Stage
from diffmm_dist.monitoring.log import logger
from diffmm_dist.monitoring.timing import PeakMemory, Stopwatch
from diffmm_dist.parallel.collectives import all_reduce_sum, any_worker
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.progress import Best, Cursor, Ended, Progress


class NonFiniteError(UserError):
    """A loss or a parameter became NaN or infinite."""


@dataclass
class EpochValues:
    """What the current epoch has measured so far; saved with the run, so that an interrupted epoch is recorded whole.

    Attributes:
        sums: sums of this worker's step values in the current phase, float64 scalars.
        scalars: by tag, of the phases already finished.
        stopwatch: seconds by phase, evaluation and checkpoint.
        memory: peaks by phase and of the evaluation; not saved.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    memory: PeakMemory = field(default_factory=PeakMemory)

    def add(self, step_values: Mapping[str, Tensor]) -> None:
        """Add one step's values without waiting for the device."""
        for name, value in step_values.items():
            value = value.to(torch.float64)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def totals(self, world: World) -> dict[str, float]:
        """Return the sums over all workers."""
        if not self.sums:
            return {}
        sums = all_reduce_sum(torch.stack(list(self.sums.values())), world)
        return dict(zip(self.sums, sums.tolist(), strict=True))

    def check_finite(self, phase: Phase, cursor: Cursor, world: World) -> None:
        """Raise a ``NonFiniteError`` naming the phase, on all workers, if a sum is NaN or infinite."""
        for name, value in self.totals(world).items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"the loss became {value} in phase '{phase.name}' ({phase.name}/{name}) at epoch "
                    f"{cursor.epoch}, within {cursor.step} steps"
                )

    def conclude(self, phase: Phase, num_steps: int, finished: Mapping[str, float], world: World) -> None:
        """Turn the phase's sums into means under its tags."""
        means = {name: value / num_steps for name, value in self.totals(world).items()}
        self.scalars |= {f"{phase.name}/{name}": value for name, value in (means | dict(finished)).items()}
        self.sums = {}


class TrainState:
    """A run's whole state: model and optimisers as tensors, everything else as ``Progress``.

    Args:
        recipe: the model and its stages.
        world: the workers, each of which has a state of its own.

    Attributes:
        begun: whether the present stage has begun, here or in an earlier process.
        ended: the stages before it.
    """

    def __init__(self, recipe: Recipe, world: World) -> None:
        self.model = recipe.model
        self.stages = tuple(recipe.stages)
        self.world = world
        self.cursor = Cursor()
        self.begun = False
        self.best: Best | None = None
        self.ended: list[Ended] = []
        self.notes: list[str] = []
        self.epoch_values = EpochValues()

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return self.stages[self.cursor.stage]

    @property
    def phases(self) -> Sequence[Phase]:
        """The phases of the present stage; checkpoints hold their optimisers alone."""
        return self.stage.phases

    @property
    def first_epoch(self) -> int:
        """The first epoch of the present stage."""
        return sum(ended.epochs for ended in self.ended)

    @property
    def epochs_of_stage(self) -> int:
        """How many epochs of the present stage are done."""
        return self.cursor.epoch - self.first_epoch

    @property
    def stage_words(self) -> str:
        """What messages say of the present stage before they name an epoch; nothing where there is only one."""
        return f"stage '{self.stage.name}', " if len(self.stages) > 1 else ""

    def begin_stage(self) -> None:
        """Begin the present stage, with the model as it is."""
        self.model.stage = self.stage.name
        if self.stage.begin is not None:
            with self.epoch_values.stopwatch.measure("stage"):
                self.stage.begin()
        self.begun = True

    def end_stage(self) -> None:
        """Go on to the next stage, which has not begun; what the optimisers of this one keep is given back."""
        assert self.best is not None
        for phase in self.phases:
            for optimizer in phase.optimizers.values():
                optimizer.state.clear()
        stage, epochs = self.stage, self.epochs_of_stage
        self.ended.append(Ended(stage.name, epochs, stage.epochs, stage.patience, self.best))
        at = self.cursor
        self.cursor = Cursor(at.epoch, global_step=at.global_step, stage=at.stage + 1)
        self.begun, self.best, self.epoch_values = False, None, EpochValues()

    def note(self, sentence: str) -> None:
        """Log something that was damaged and gone around, and keep it for the run's result."""
        if self.world.is_first:
            logger.warning("%s", sentence)
        self.notes.append(sentence)

    def check_finite(self, phase: Phase) -> None:
        """Raise a ``NonFiniteError`` naming the phase, on all workers, if a parameter holds NaN or infinity."""
        names = [name for name, values in self.model.named_parameters() if not bool(torch.isfinite(values).all())]
        if any_worker(bool(names), self.world):
            raise NonFiniteError(
                f"parameter {names[0] if names else '(of another worker)'} became NaN or infinite in phase "
                f"'{phase.name}' at epoch {self.cursor.epoch}, within {self.cursor.step} steps"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return this worker's tensors by name: ``model/NAME`` and ``optimizer/PHASE/OPTIMIZER/PARAMETER/KEY``."""
        tensors = {f"{_MODEL}{name}": tensor for name, tensor in self.model.state_dict().items()}
        for prefix, optimizer in self._optimizers():
            names = self._parameter_names(optimizer)
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"{prefix}/{names[index]}/{key}": value for key, value in _tensors_of(values)}
        return tensors

    def _optimizers(self) -> list[tuple[str, Optimizer]]:
        """Return every optimiser, with what the names of its tensors begin with."""
        return [
            (f"{_OPTIMIZER}{phase.name}/{name}", optimizer)
            for phase in self.phases
            for name, optimizer in phase.optimizers.items()
        ]

    def owner_of(self, name: str, shape: Sequence[int]) -> Ownership | None:
        """Return who owns which rows of a tensor, None where every worker has it whole.

        An optimiser may keep anything of a parameter. What has its form is owned as its rows are; the rest, such as a
        count of steps, is the same on all workers.

        Args:
            name: the tensor's.
            shape: of all of it, or of some of its rows.
        """
        of_model = self.model.row_owners()
        if is_of_model(name):
            return of_model.get(name.removeprefix(_MODEL))
        parameter = name.split("/")[-2]
        if parameter not in of_model or not shape:
            return None
        same_form = tuple(shape[1:]) == self.model.get_parameter(parameter).shape[1:]
        assert same_form or self.world.size == 1, f"no worker can have {name} {tuple(shape)}: no rows of its parameter"
        return of_model[parameter] if same_form else None

    def _parameter_names(self, optimizer: Optimizer) -> list[str]:
        """Return the names of an optimiser's parameters, in its order."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` returned in the present stage."""
        load_model(self.model, tensors)
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            parameter, _, key = name.rpartition("/")
            by_parameter.setdefault(parameter, {})[key] = tensor
        for prefix, optimizer in self._optimizers():
            self._load_optimizer(prefix, optimizer, by_parameter)

    def _load_optimizer(self, prefix: str, optimizer: Optimizer, tensors: Mapping[str, dict[str, Tensor]]) -> None:
        """Take over an optimiser's state; up to version 0.1 a phase had one optimiser, whose name was not written."""
        earlier = prefix.rpartition("/")[0]
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(self._parameter_names(optimizer)):
            values = tensors.get(f"{prefix}/{name}") or tensors.get(f"{earlier}/{name}")
            if values:
                state[index] = values
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def progress(self) -> Progress:
        """Return everything but the tensors, the same on all workers; floats survive JSON exactly."""
        values = self.epoch_values
        totals = values.totals(self.world)
        seconds = values.stopwatch.seconds
        return Progress(self.cursor, self.best, totals, values.scalars, seconds, self.notes, self.ended)

    def load_progress(self, progress: Progress) -> None:
        """Take over what ``progress`` returned; the first worker goes on with the sums of all."""
        self.cursor, self.best = progress.cursor, progress.best
        self.notes, self.ended = list(progress.notes), list(progress.ended)
        self.model.stage, self.begun = self.stage.name, True
        mine, device = float(self.world.is_first), self.world.device
        self.epoch_values = EpochValues(
            {name: torch.tensor(mine * v, dtype=torch.float64, device=device) for name, v in progress.sums.items()},
            progress.scalars,
            Stopwatch(progress.seconds),
        )


_MODEL = "model/"
_OPTIMIZER = "optimizer/"


def is_of_model(name: str) -> bool:
    """Tell the tensors of the model from those of the optimisers."""
    return name.startswith(_MODEL)


def _tensors_of(values: Mapping[str, object]) -> list[tuple[str, Tensor]]:
    """Return what an optimiser keeps of a parameter; None stands for what it does not keep yet."""
    assert all(value is None or isinstance(value, Tensor) for value in values.values()), values.keys()
    return [(key, value) for key, value in values.items() if isinstance(value, Tensor)]


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
