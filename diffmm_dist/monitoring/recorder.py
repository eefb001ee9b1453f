"""Recorders: what a run tells of itself while it goes, once it has begun and when it has ended."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Recorder(ABC):
    """Where a run's records go. What a recorder has no form for it leaves out: here, all but the scalars."""

    def begin(self, settings: Mapping[str, Any]) -> None:  # noqa: B027
        """Record the resolved configuration, before anything else.

        Args:
            settings: by dotted key, such as ``train.epochs``; null, a number, text, or lists and maps of these.
        """

    @abstractmethod
    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Record the values of one epoch, under the tags ``<phase>/<metric>``."""

    def figure(self, tag: str, png: bytes, *, epoch: int) -> None:  # noqa: B027
        """Record a picture of an epoch, a PNG file."""

    def embeddings(  # noqa: B027
        self, name: str, vectors: "npt.NDArray[np.float32]", labels: Mapping[str, Sequence[str]]
    ) -> None:
        """Record embeddings of the best epoch.

        Args:
            name: of what.
            vectors: one a row, float32 (N, d).
            labels: columns that say what each row is, N texts each, by the names of the columns.
        """

    def end(self, metrics: Mapping[str, float], *, epoch: int) -> None:  # noqa: B027
        """Record the final figures of a run that has ended, beside its settings.

        Args:
            metrics: by tag, such as ``test/recall@20``.
            epoch: the best one, of which they are.
        """

    @abstractmethod
    def close(self) -> None:
        """Write what is still held back; nothing may be recorded afterwards."""


class MultiRecorder(Recorder):
    """Passes everything on to several recorders, in order."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = tuple(recorders)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Pass the settings on."""
        for recorder in self._recorders:
            recorder.begin(settings)

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Pass the values on."""
        for recorder in self._recorders:
            recorder.scalars(values, epoch=epoch)

    def figure(self, tag: str, png: bytes, *, epoch: int) -> None:
        """Pass the picture on."""
        for recorder in self._recorders:
            recorder.figure(tag, png, epoch=epoch)

    def embeddings(self, name: str, vectors: "npt.NDArray[np.float32]", labels: Mapping[str, Sequence[str]]) -> None:
        """Pass the embeddings on."""
        for recorder in self._recorders:
            recorder.embeddings(name, vectors, labels)

    def end(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Pass the figures on."""
        for recorder in self._recorders:
            recorder.end(metrics, epoch=epoch)

    def close(self) -> None:
        """Close every recorder."""
        for recorder in self._recorders:
            recorder.close()
