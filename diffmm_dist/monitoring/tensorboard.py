"""TensorBoard events; the only place that imports tensorboard."""

import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffmm_dist.monitoring.recorder import Recorder

_STAMP = re.compile(r"events\.out\.tfevents\.(\d{10})\.")


class TensorBoardRecorder(Recorder):
    """Writes scalars as TensorBoard events, one step per epoch.

    Args:
        folder: where the event files go.
        start_epoch: first epoch that this process will record; TensorBoard drops what an earlier, killed process
            recorded from that epoch on.
        earlier: names of the run's event files that are not in the folder, such as those on S3.
    """

    def __init__(self, folder: Path, *, start_epoch: int = 0, earlier: Iterable[str] = ()) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = RecordWriter((folder / _name_after([*earlier, *os.listdir(folder)])).open("xb"))
        self._write(file_version="brain.Event:2")
        if start_epoch:
            self._write(step=start_epoch, session_log=SessionLog(status=SessionLog.START))
        self._writer.flush()

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Write one event per tag and flush, so that a running job can be watched."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for tag, value in values.items():
            self._write(step=epoch, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _write(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **content).SerializeToString())


def _name_after(names: Iterable[str]) -> str:
    """Return a name for an event file that sorts after the others, which is the order that TensorBoard reads them in.

    Names begin with the second of their making. Where there is one of this second, or a later one by the clock of
    another host, the second after that is written.
    """
    stamps = [int(match[1]) for match in map(_STAMP.match, names) if match is not None]
    stamp = max(int(time.time()), max(stamps, default=0) + 1)
    return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
