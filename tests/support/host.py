"""A stand-in for a GPU: what one would make the host wait for, seen without one.

Tensors of the device hold their values in main memory, but say that they are elsewhere, so that everything that crosses
over, or whose shape or value the host must know before it goes on, comes to light: what a GPU refuses is refused, and
what it makes the host wait for is noted down with the line that asked for it.
"""

import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import diffmm_dist
from diffmm_dist.models.base import Phase, PhaseContext
from diffmm_dist.parallel.world import World
from diffmm_dist.precision import matmul_precision
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import build_recipe, load_training_data, open_dataset

# Backward passes over tensors that say so run in the calling thread; for "cuda" torch would look for a GPU.
DEVICE = torch.device("meta")
_PACKAGE = f"{Path(diffmm_dist.__file__).parent}/"
_optimizer: Any = sys.modules["torch.optim.optimizer"]
_aten = torch.ops.aten
_SET_DATA: Any = vars(torch._C.TensorBase)["data"].__set__
# Their result's shape or value is read, or they read what they are given to check it.
_READING = {
    _aten._local_scalar_dense, _aten.is_nonzero, _aten.equal, _aten.allclose, _aten.nonzero, _aten.nonzero_numpy,
    _aten.argwhere, _aten.masked_select, _aten.bincount, _aten.histc, _aten._unique, _aten._unique2, _aten.unique_dim,
    _aten.unique_consecutive, _aten.unique_dim_consecutive, _aten._linalg_check_errors, _aten._linalg_eigh,
    _aten._linalg_svd, _aten._linalg_solve_ex, _aten.linalg_lstsq, _aten.linalg_eig, _aten.multinomial,
}  # fmt: skip
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index}


class Read(NamedTuple):
    """What the host waits for.

    Attributes:
        line: of the package, that asked for it, such as ``sparse.py:89``.
        operation: torch's name of it.
        callers: functions of the package that were running, the innermost first, such as ``sparse.py select``.
    """

    line: str
    operation: str
    callers: tuple[str, ...]

    def within(self, functions: Container[str]) -> list[str]:
        """Return those of some functions that were running."""
        return [function for function in self.callers if function in functions]

    def __str__(self) -> str:
        return f"diffmm_dist/{self.line} {self.operation}, called by {', '.join(self.callers)}"


class OnDevice(Tensor):
    """A tensor that says that it is on the device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        tensor = Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        tensor.held = held
        return tensor

    def __init__(self, held: Tensor) -> None:
        """Do nothing: ``__new__`` has done it."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):  # type: ignore[override]
        raise AssertionError(f"{function} on the device, but outside of HostReads")


class HostReads(TorchDispatchMode):
    """The device, inside ``with``; ``watched()`` lists what the host waits for meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[Read] = []
        self._python = _PythonValues()
        self._fused = _optimizer._get_fused_kernels_supported_devices

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that there is no compiler to be kept away, whose import would take seconds."""
        return False

    def __enter__(self):
        _optimizer._get_fused_kernels_supported_devices = lambda: [*self._fused(), DEVICE.type]
        self._python.__enter__()
        return super().__enter__()

    def __exit__(self, *raised) -> None:
        super().__exit__(*raised)
        self._python.__exit__(*raised)
        _optimizer._get_fused_kernels_supported_devices = self._fused

    @contextmanager
    def watched(self) -> Iterator[list[Read]]:
        """Return a list of what the host waits for inside."""
        found: list[Read] = []
        self._found = found
        yield found
        self._found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in _leaves((args, *kwargs.values())) if isinstance(leaf, Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not ours and device != DEVICE:
            return function(*args, **kwargs)
        _refuse_what_is_elsewhere(function, tensors, ours)
        if _waits(function, args, kwargs, device):
            line, callers = _asked_by()
            self._found.append(Read(line, str(function), tuple(callers)))
        if device is not None:
            kwargs = kwargs | {"device": torch.device("cpu")}
        result = function(*map(_held, args), **{name: _held(value) for name, value in kwargs.items()})
        if torch.Tag.inplace_view in function.tags:
            with torch._C._DisableTorchDispatch():
                function(*args, **kwargs)  # so that it says its new shape too
        if device is not None and device != DEVICE:
            return result
        return _placed(result, {id(tensor.held): tensor for tensor in ours})


class _PythonValues(TorchFunctionMode):
    """Values of Python's that become tensors of the device: torch would leave them out, since it would need none."""

    _INDEXING = (Tensor.__getitem__, Tensor.__setitem__)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs["device"]
            return function(*args, **{**kwargs, "device": None}).to(device)
        if function == _SET_DATA and isinstance(args[0], OnDevice):
            args[0].held = args[1].held
        if function is Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        if function is Tensor.new_tensor and isinstance(args[0], OnDevice):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(DEVICE)
        if function in self._INDEXING and isinstance(args[0], OnDevice):
            whole = args[1] if isinstance(args[1], tuple) else (args[1],)
            moved = tuple(torch.tensor(index).to(DEVICE) if isinstance(index, list) else index for index in whole)
            # A number that is assigned stays in main memory, as where the device is a GPU.
            args = (
                args[0],
                moved,
                *(value if isinstance(value, Tensor) else torch.tensor(value) for value in args[2:]),
            )
        return function(*args, **kwargs)


def _leaves(value) -> Iterator[object]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _held(value):
    if isinstance(value, (tuple, list)):
        return [_held(part) for part in value]
    return value.held if isinstance(value, OnDevice) else value


def _placed(value, known: dict[int, OnDevice]):
    """Return a result with its tensors on the device: those that were changed in place, if they were."""
    if isinstance(value, (tuple, list)):
        return type(value)([_placed(part, known) for part in value])
    if not isinstance(value, Tensor):
        return value
    tensor = known[id(value)] if id(value) in known else OnDevice(value)
    assert tensor.shape == value.shape, "resized in place"
    return tensor


def _refuse_what_is_elsewhere(function, tensors: list[Tensor], ours: list[OnDevice]) -> None:
    """Refuse what a GPU does: several values that lie in main memory, but as indices and as what is copied."""
    packet = function._overloadpacket
    if packet in _INDEXING or packet in (_aten._to_copy, _aten.copy_):
        return
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
    if ours and elsewhere:
        raise RuntimeError(f"{function}: some tensors are on the device, and one of {elsewhere[0].shape} is not")


def _waits(function, args, kwargs, device: torch.device | None) -> bool:
    """Return whether the host waits for the device before it goes on."""
    packet = function._overloadpacket
    if packet is _aten._to_copy:
        return device is not None and device != args[0].device
    if packet is _aten.copy_:
        return bool(args[0].device != args[1].device and args[1].dim() > 0)
    if packet is _aten.repeat_interleave:
        return function is _aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
    if packet is _aten.segment_reduce:
        return kwargs.get("offsets") is None
    if packet in _INDEXING:
        return _waits_for_indices([index for index in args[1] if index is not None], *args[2:3])
    return packet in _READING


def _waits_for_indices(indices: list[Tensor], value: Tensor | None = None) -> bool:
    """Return whether indices have to be counted or come from main memory; filling with one number counts none."""
    if any(not isinstance(index, OnDevice) for index in indices):
        return True
    masks = [index.dtype in (torch.bool, torch.uint8) for index in indices]
    fills = value is not None and not isinstance(value, OnDevice) and value.numel() == 1 and all(masks)
    return any(masks) and not fills


def _asked_by() -> tuple[str, list[str]]:
    """Return the innermost line of the package that is running, and the functions that it runs in."""
    line, callers = "", []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            file = frame.f_code.co_filename[len(_PACKAGE) :]
            line = line or f"{file}:{frame.f_lineno}"
            callers.append(f"{file} {frame.f_code.co_name}")
        frame = frame.f_back
    return line, callers


def first_steps(config: Config, world: World) -> tuple[dict[str, list[list[Read]]], list[dict[str, float]]]:
    """Take two steps of every phase of a model; every worker calls it at the same time.

    Returns:
        What the host waited for in each of them, by phase, and all values that they returned.
    """
    reads: dict[str, list[list[Read]]] = {}
    values: list[dict[str, float]] = []
    with HostReads() as host, matmul_precision(config.train.precision):
        data = load_training_data(config, open_dataset(config), world)
        recipe = build_recipe(config, data, device=world.device)
        for stage in recipe.stages:
            recipe.model.stage = stage.name
            if stage.begin is not None:
                stage.begin()
            for phase in stage.phases:
                reads[phase.name], found = _two_steps(phase, host, world)
                values += found
    return reads, values


def _two_steps(phase: Phase, host: HostReads, world: World) -> tuple[list[list[Read]], list[dict[str, float]]]:
    reads, values = [], []
    num_steps = phase.begin(PhaseContext(world, 7, epoch=1))  # in epoch 0 some phases have none
    for index in range(min(num_steps, 2)):
        with host.watched() as of_step:
            found = phase.step(index)
        reads.append(of_step)
        values.append({name: float(value) for name, value in found.items()})
    return reads, [*values, phase.finish()]
