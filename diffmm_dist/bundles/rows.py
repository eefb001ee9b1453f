"""Embeddings as they lie in a file: mapped from a local disk, in memory from elsewhere."""

import mmap
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.bundles.files import REMEDY, Floats, Ints, Marker, embedding_schemas, promise
from diffmm_dist.data.arrow_files import read_placed
from diffmm_dist.data.checks import first_not_finite
from diffmm_dist.errors import DamagedError
from diffmm_dist.places import is_remote
from diffmm_dist.stores.access import resolve


class Rows:
    """Rows of float32 in pieces, one after the other.

    Args:
        pieces: (rows of the piece, d) each.
        width: d.
    """

    def __init__(self, pieces: Sequence[Floats], width: int) -> None:
        self._pieces = [piece for piece in pieces if len(piece)]
        self._starts = np.cumsum([0, *map(len, self._pieces)])
        self.width = width

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, rows: Ints) -> Floats:
        """Return some rows, float32 (rows, d)."""
        taken = np.empty((len(rows), self.width), np.float32)
        for piece, (start, stop) in zip(self._pieces, pairwise(self._starts), strict=True):
            inside = (rows >= start) & (rows < stop)
            taken[inside] = piece[rows[inside] - start]
        return taken

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Yield the pieces, each with the number of its first row."""
        yield from zip(self._starts[:-1].tolist(), self._pieces, strict=True)

    def array(self) -> Floats:
        """Return all rows as one array, (n, d); a copy where there are several pieces."""
        if len(self._pieces) == 1:
            return self._pieces[0]
        return np.concatenate([np.empty((0, self.width), np.float32), *self._pieces])

    def and_more(self, rows: Floats) -> "Rows":
        """Return these rows and others behind them."""
        return Rows([*self._pieces, rows], self.width)

    def lengths(self) -> Floats:
        """Return the Euclidean length of each row, float32 (n,), and 1 for a row of zeros."""
        found = np.concatenate([np.empty(0, np.float32), *(np.linalg.norm(piece, axis=1) for piece in self._pieces)])
        return np.where(found == 0, np.float32(1), found)

    def largest(self) -> float:
        """Return the largest absolute value."""
        return max((max(float(piece.max()), -float(piece.min())) for piece in self._pieces), default=0.0)


class Embedded(NamedTuple):
    """A table of embeddings: original ids, and the rows in the same order."""

    ids: pa.ChunkedArray
    rows: Rows


def read_embedded(uri: str, name: str, marker: Marker, count: int) -> Embedded:
    """Read ids and embeddings of a bundle's file, once it was compared with its checksum.

    The embeddings of a local file stay where they are and are mapped; those of a compressed one, and those of a store,
    are held in memory.

    Args:
        uri: the bundle.
        name: the file.
        marker: what the bundle says that it holds.
        count: how many rows.

    Raises:
        UserError: the file is missing.
        DamagedError: it is not what was exported, or an embedding is not finite.
    """
    place, width = storage.join(uri, name), marker["embedding_dim"]
    schemas = embedding_schemas(width)
    before = None if is_remote(place) else _state(place)
    ids, held, lengths, places = [], [], [], []
    for position, batch in read_placed(place, promise(uri, name, marker, schemas, count)):
        values = batch.column("embedding").flatten().to_numpy().reshape(batch.num_rows, width)
        check_finite_rows(values, place)
        ids.append(batch.column("id"))
        lengths.append(batch.num_rows)
        places.append(position)
        if before is None or position is None:
            held.append(values)
    if len(held) < len(places):
        held = _mapped(place, before, places, lengths, width)
    kind = ids[0].type if ids else schemas[0].field("id").type
    return Embedded(pa.chunked_array(ids, kind), Rows(held, width))


def check_finite_rows(rows: Floats, what: str) -> None:
    """Raise a ``DamagedError`` naming the first row that holds NaN or infinity."""
    found = first_not_finite(rows)
    if found is not None:
        row, kind, count = found
        raise DamagedError(f"{what}: the embedding in row {row} holds {kind} ({count} such rows); train the run again")


def _state(place: str) -> tuple[int, ...] | None:
    """Return what tells a file from another one at its place, None where there is none."""
    try:
        found = os.stat(resolve(place)[1])
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _mapped(
    place: str, before: tuple[int, ...] | None, places: Sequence[int | None], lengths: Sequence[int], width: int
) -> list[Floats]:
    """Return the pieces of a file that has been read, where they lie in it."""
    with open(resolve(place)[1], "rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if _state(place) != before:
        raise DamagedError(f"{place} has changed while it was read; try again, or {REMEDY}")
    return [
        np.frombuffer(view, "<f4", length * width, position or 0).reshape(length, width)
        for position, length in zip(places, lengths, strict=True)
    ]
