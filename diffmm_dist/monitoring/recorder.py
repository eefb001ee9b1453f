"""Recorders take scalars under the tags ``<phase>/<metric>``, once per epoch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence


class Recorder(ABC):
    """Where scalars go."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Record the values of one epoch, by tag."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still held back; nothing may be recorded afterwards."""


class MultiRecorder(Recorder):
    """Passes everything on to several recorders, in order."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = tuple(recorders)

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Pass the values on."""
        for recorder in self._recorders:
            recorder.scalars(values, epoch=epoch)

    def close(self) -> None:
        """Close every recorder."""
        for recorder in self._recorders:
            recorder.close()
