"""Reading a checkpoint: its state first, which says whose it is, then its tensors, every chunk compared."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

from diffmm_dist import storage
from diffmm_dist.checksums import Checksum
from diffmm_dist.errors import DamagedError, StoppedEarlyError, UserError, one_line
from diffmm_dist.records import RunId
from diffmm_dist.runs.checkpoint_index import REMEDY
from diffmm_dist.runs.checkpoint_names import STATE_FILE, checkpoint_name
from diffmm_dist.runs.checkpoint_shards import OwnerOf, RowShard, empty, whole
from diffmm_dist.runs.checkpoint_storage import reader_of
from diffmm_dist.runs.progress import Progress, Whole

_LOST = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_INTERRUPTIONS = (KeyboardInterrupt, StoppedEarlyError)


@dataclass(kw_only=True)
class State(Progress):
    """state.json: the progress, and what binds the checkpoint to its run, its name and its tensors.

    Attributes:
        run: the run's id.
        writer: number of the process that has written it.
        index: checksum of the index of its tensors.
    """

    run: RunId
    writer: Whole
    index: Checksum

    def names(self) -> set[str]:
        """Return the names that the checkpoint may have: on S3 they end with the writer, also in a copy on a disk."""
        at = self.cursor
        step = at.epoch, at.phase, at.step
        return {checkpoint_name(*step, stage=at.stage, writer=writer) for writer in (None, self.writer)}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose state has been read.

    Attributes:
        name: its name.
        progress: everything that is no tensor.
    """

    name: str
    progress: Progress
    _path: str
    _index: Checksum

    def tensors(
        self, owner_of: OwnerOf = whole, *, wanted: Callable[[str], bool] = lambda _: True
    ) -> dict[str, Tensor]:
        """Return the tensors whose names are wanted, each compared with its checksum.

        Args:
            owner_of: says of which tensors this worker wants its own rows only; by default of none.
            wanted: whether a tensor is wanted, by its name.

        Raises:
            DamagedError: the checkpoint is damaged.
            UserError: it cannot be reached, or holds something other than tensors.
        """
        with _explained(self._path):
            reader = reader_of(self._path, index_sha256=self._index)
            entries = reader.read_metadata().state_dict_metadata
            tensors = {name: empty(name, entry, owner_of) for name, entry in entries.items() if wanted(name)}
            with quiet():
                # Without a process group: what a worker reads does not depend on the others.
                load_distributed(tensors, storage_reader=reader, no_dist=True)
        return {key: tensor.local if isinstance(tensor, RowShard) else tensor for key, tensor in tensors.items()}


def open_checkpoint(folder: str, name: str, *, run: RunId) -> Checkpoint:
    """Read the state of a run's checkpoint.

    Raises:
        DamagedError: it is damaged, of another run, or another checkpoint than its name says.
        UserError: it cannot be reached.
    """
    path = storage.join(folder, name)
    with _explained(path):
        state: State = storage.read_record(storage.join(path, STATE_FILE), State, remedy=REMEDY, must_be_sealed=True)
    if state.run != run:
        raise DamagedError(f"{path} belongs to another run; {REMEDY}")
    if name not in state.names():
        raise DamagedError(f"{path} is the checkpoint {min(state.names())} under another's name; {REMEDY}")
    progress = Progress(**{field.name: getattr(state, field.name) for field in fields(Progress)})
    return Checkpoint(name, progress, path, state.index)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence DCP's warning that no process group means a single process; it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        chatty = logging.getLogger("torch.distributed.checkpoint")
        level = chatty.level
        chatty.setLevel(logging.ERROR)
        try:
            yield
        finally:
            chatty.setLevel(level)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what reading a checkpoint raises into one sentence.

    It is a ``DamagedError`` where another checkpoint may be better. A storage that cannot be reached is none, nor is
    anything that the checksums do not explain.
    """
    try:
        yield
    except (Exception, CheckpointException) as wrapped:  # DCP's own is no Exception
        interruption = interruption_in(wrapped)
        if interruption is not None:
            raise interruption from None
        error = _inner(wrapped)
        if isinstance(error, DamagedError):
            raise error from None
        refused = _system_error(error)
        kind = DamagedError if isinstance(refused, _LOST) else UserError
        if isinstance(error, UserError):
            raise error if kind is UserError else kind(f"{error}; {REMEDY}") from error.__cause__
        place = getattr(refused, "filename", None) or f"the checkpoint {path}"
        raise kind(f"{place} cannot be read: {reason(error)}; {REMEDY}") from error


def interruption_in(failure: BaseException) -> BaseException | None:
    """Return the Ctrl-C or SIGTERM inside an exception of DCP, which wraps it as it does any failure of its own."""
    if not isinstance(failure, CheckpointException):
        return failure if isinstance(failure, _INTERRUPTIONS) else None
    return next((error for error, _ in failure.failures.values() if isinstance(error, _INTERRUPTIONS)), None)


def reason(error: BaseException) -> str:
    """Return the operating system's reason, from inside DCP's wrapping, or the exception's text."""
    error = _inner(error)
    return one_line(_system_error(error) or error)


def _inner(error: BaseException) -> BaseException:
    """Return an exception from inside DCP's wrapping, which holds those of each rank with their tracebacks."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the operating system's error behind another one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
