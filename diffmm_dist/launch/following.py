"""What workers elsewhere record of a run, told to recorders of this process while it goes."""

import contextlib
import time
from collections.abc import Sequence

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.runs.run_folder import RunFolder

_LOOK_EVERY_S, _LOOK_AT_STORE_EVERY_S = 0.5, 5.0


class Following:
    """Tells recorders each epoch once, as it appears among the run's records.

    Args:
        folder: the run's, before its workers begin.
        recorders: who is told; with none, nobody looks.
    """

    def __init__(self, folder: RunFolder, recorders: Sequence[Recorder]) -> None:
        self._folder, self._recorders = folder, recorders
        self._earlier_writer = folder.identity().get("writer", 0)
        self._last_epoch = -1
        self._every_s = _LOOK_AT_STORE_EVERY_S if storage.is_remote(folder.uri) else _LOOK_EVERY_S
        self._look_at = 0.0

    def look(self, *, now: bool = False) -> None:
        """Tell what is new, if it is time to look, or now."""
        if not self._recorders or not (now or time.monotonic() >= self._look_at):
            return
        self._look_at = time.monotonic() + self._every_s
        with contextlib.suppress(UserError):  # it is looked at again
            self._folder.fetch_records()
            self._tell()

    def _tell(self) -> None:
        for record in self._folder.records():
            epoch, writer = record.pop("epoch"), record.pop("writer", 0)
            if writer > self._earlier_writer and epoch > self._last_epoch:
                self._last_epoch = epoch
                for recorder in self._recorders:
                    recorder.scalars(record, epoch=epoch)
