"""The vectors of a block of items: contents are read ahead by threads while the model works."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist.errors import TryAgainError, UserError, lacks_memory
from diffmm_dist.preparation.content.encoder import Encoder, Vectors
from diffmm_dist.preparation.content.items import Block, Content, Damage
from diffmm_dist.preparation.content.parts import Made

_MOST_WAITING = 4  # batches of pieces that wait for others of their shape
_Task = tuple[int, Content, bool]  # the item's place in the block, a content of it, and whether it is the last


def vectors_of(block: Block, encoder: Encoder, threads: Executor, *, ahead: int, done: Callable[[], None]) -> Made:
    """Return the features of a block: of each item the mean over all pieces of its contents.

    Args:
        block: the items.
        encoder: of their contents.
        threads: that read contents.
        ahead: how many contents are read before they are needed.
        done: is called when an item's contents have been read.

    Raises:
        UserError: a vector is not finite, or a batch does not fit in memory.
        TryAgainError: a store did not answer.
    """
    sums = _Sums(block, encoder)
    damaged: list[Damage] = []
    tasks = (
        (place, content, content is contents[-1])
        for place, contents in enumerate(block.contents)
        for content in contents
    )
    for (place, _, is_last), read in _read_ahead(tasks, encoder, threads, ahead):
        if isinstance(read, Damage):
            damaged.append(read)
        else:
            sums.add(place, read)
        if is_last:
            done()
    sums.finish()
    return sums.made(damaged)


def _read(encoder: Encoder, content: Content) -> list[Any] | Damage:
    try:
        return encoder.pieces(content.value)
    except TryAgainError:
        raise
    except UserError as error:
        return Damage(content.name, str(error))


def _read_ahead(
    tasks: Iterable[_Task], encoder: Encoder, threads: Executor, ahead: int
) -> Iterator[tuple[_Task, list[Any] | Damage]]:
    """Yield what each content is made ready to, in their order, a few of them worked on in advance."""
    waiting: deque[tuple[_Task, Future[list[Any] | Damage]]] = deque()
    try:
        for task in tasks:
            waiting.append((task, threads.submit(_read, encoder, task[1])))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


class _Sums:
    """Sums of vectors by item, as pieces come in; those of one shape go through the model together."""

    def __init__(self, block: Block, encoder: Encoder) -> None:
        self._block, self._encoder = block, encoder
        self._waiting: dict[Hashable, list[tuple[int, Any]]] = {}
        self._counts = np.zeros(len(block.ids), dtype=np.int64)
        self._sums: npt.NDArray[np.float64] | None = None

    def add(self, place: int, pieces: Sequence[Any]) -> None:
        """Take the pieces of a content of an item."""
        for piece in pieces:
            shape = self._encoder.shape(piece)
            self._waiting.setdefault(shape, []).append((place, piece))
            if len(self._waiting[shape]) == self._encoder.most_pieces:
                self._encode(shape)
        while sum(map(len, self._waiting.values())) > _MOST_WAITING * self._encoder.most_pieces:
            self._encode(max(self._waiting, key=lambda shape: len(self._waiting[shape])))

    def finish(self) -> None:
        """Encode what still waits."""
        for shape in list(self._waiting):
            self._encode(shape)

    def made(self, damaged: list[Damage]) -> Made:
        """Return the means of the items of which there is anything."""
        present = self._counts > 0
        if self._sums is None:
            return Made(self._block.ids[:0], np.zeros((0, 0), np.float32), damaged)
        means = self._sums[present] / self._counts[present, None]
        return Made(self._block.ids.filter(pa.array(present)), means.astype(np.float32), damaged)

    def _encode(self, shape: Hashable) -> None:
        group = self._waiting.pop(shape)
        places = np.array([place for place, _ in group])
        try:
            vectors = self._encoder.encode([piece for _, piece in group])
        except Exception as error:
            if not lacks_memory(error):
                raise
            raise UserError("a batch takes more memory than there is; give a smaller --batch-size") from error
        self._check_finite(vectors, places)
        if self._sums is None:
            self._sums = np.zeros((len(self._counts), vectors.shape[1]))
        np.add.at(self._sums, places, vectors)
        np.add.at(self._counts, places, 1)

    def _check_finite(self, vectors: Vectors, places: npt.NDArray[np.int64]) -> None:
        wrong = places[~np.isfinite(vectors).all(axis=1)]
        if wrong.size:
            raise UserError(
                "the model gives features that are NaN or infinite, the first of item "
                f"{self._block.ids[int(wrong[0])].as_py()!r}; try another model, or take the item's content out"
            )
