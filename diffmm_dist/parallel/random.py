"""Counter-based random numbers: every value is a pure function of a key and an id.

A ``RandomStream`` is keyed by (seed, purpose, epoch, ...) and asked for the values of given ids (users, interactions,
edges). Results therefore do not depend on how many workers there are, which of them asks, in what order, in which
batch, or how often a run was interrupted; there is no generator state to save.

64-bit values use the SplitMix64 finaliser; rows of noise use a 32-bit multiply-xorshift hash of (row key, column),
computed in slices that stay in the processor's cache, which is faster than torch's sequential generator.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_SLICE_ELEMENTS = 1 << 18  # values of one slice: 1 MiB, so that the passes of the hash stay in cache


def _signed(value: int, bits: int) -> int:
    """Return an unsigned constant as the two's-complement integer that torch's signed types hold."""
    return value - (1 << bits) if value >> (bits - 1) else value


_GOLDEN_64 = _signed(0x9E3779B97F4A7C15, 64)
_MIX_64 = (_signed(0xBF58476D1CE4E5B9, 64), _signed(0x94D049BB133111EB, 64))
_GOLDEN_32 = _signed(0x9E3779B9, 32)
_MIX_32 = (_signed(0x7FEB352D, 32), _signed(0x846CA68B, 32))
_BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1


@dataclass(frozen=True)
class RandomStream:
    """Random values of one purpose, by id.

    Attributes:
        key: signed 64-bit key.
    """

    key: int

    @classmethod
    def of(cls, *parts: int | str) -> "RandomStream":
        """Return the stream of a key such as ``(seed, "negatives", epoch)``."""
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
        return cls(int.from_bytes(digest, "little", signed=True))

    def child(self, *parts: int | str) -> "RandomStream":
        """Return a stream of its own for a part of this one's purpose."""
        return RandomStream.of(self.key, *parts)

    def bits(self, ids: Tensor) -> Tensor:
        """Return 64 random bits for each int64 id, as int64 of the same shape."""
        return _mix_64((ids * _GOLDEN_64).add_(self.key))

    def uniform(self, ids: Tensor) -> Tensor:
        """Return a float64 in [0, 1) for each id."""
        return ((self.bits(ids) >> 11) & ((1 << 53) - 1)).to(torch.float64).mul_(2.0**-53)

    def integers(self, ids: Tensor, bounds: Tensor | int) -> Tensor:
        """Return an int64 in [0, bound) for each id; the bias is below bound / 2^53."""
        return (self.uniform(ids) * bounds).to(torch.int64).clamp_(max=bounds - 1)

    def permute(self, ids: Tensor, count: int) -> Tensor:
        """Return the place of each id in a random permutation of ``0 .. count - 1``, int64.

        A Feistel network over the next power of four, walked until the value falls below ``count``: a bijection that
        needs neither the other ids nor memory for them.
        """
        half_bits = max(1, ((max(count, 2) - 1).bit_length() + 1) // 2)
        places = self._feistel(ids, half_bits)
        while bool((outside := places >= count).any()):
            places[outside] = self._feistel(places[outside], half_bits)
        return places

    def _feistel(self, values: Tensor, half_bits: int) -> Tensor:
        mask = (1 << half_bits) - 1
        left, right = values >> half_bits, values & mask
        for round_number in range(4):
            scrambled = RandomStream(self.key ^ (round_number + 1)).bits(right) & mask
            left, right = right, left ^ scrambled
        return (left << half_bits) | right

    def symmetric_uniform_rows(self, ids: Tensor, columns: Tensor | int) -> Tensor:
        """Return float32 values in [-1, 1], one row per id: (len(ids), columns).

        Args:
            ids: int64.
            columns: ids of the wanted columns, int64, or how many from 0 on. A value depends on its row's and its
                column's id alone, so any worker can have any part of a row.
        """
        out, slices = self._rows(ids, columns)
        for rows, hashed, _ in slices:
            torch.add(hashed, 0.5, out=out[rows]).mul_(2.0**-31)
        return out

    def dropout_rows(self, ids: Tensor, columns: Tensor | int, *, keep_prob: float) -> Tensor:
        """Return float32 factors, 1 / keep_prob with that probability and else 0; as ``symmetric_uniform_rows``."""
        out, slices = self._rows(ids, columns)
        for rows, hashed, _ in slices:
            torch.lt(hashed, _threshold(keep_prob), out=out[rows]).mul_(1 / keep_prob)
        return out

    def dropout_pairs(self, ids: Tensor, columns: Tensor, *, keep_prob: float) -> Tensor:
        """Return the values that ``dropout_rows`` has at pairs of an id and a column, float32 of their shape."""
        keys = self.bits(ids)
        hashed = (columns.to(torch.int32) * _GOLDEN_32).bitwise_xor_(_low_32(keys))
        _mix_32(hashed, _low_32(keys >> 32), torch.empty_like(hashed))
        return (hashed < _threshold(keep_prob)).to(torch.float32) / keep_prob

    def normal_rows(
        self,
        ids: Tensor,
        columns: Tensor | int,
        *,
        std: Tensor | None = None,
        keep_prob: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return normal values, at most 5.3 standard deviations in size, after dropout; as ``symmetric_uniform_rows``.

        The inverse of the distribution function at uniform values: sqrt(2) erfinv(u). One uniform value serves for
        the dropout too: it is kept where it is below keep_prob, and divided by that it is uniform again.

        Args:
            ids: int64.
            columns: ids of the wanted columns, int64, or how many from 0 on.
            std: standard deviation of each row before dropout, float32 (len(ids),), 1 by default.
            keep_prob: probability with which a value is kept, and divided by it; ``dropout_rows`` of this stream has
                the factors.
            dtype: of the result; the arithmetic is float32.
        """
        out, slices = self._rows(ids, columns, dtype)
        scale_B1 = (torch.ones_like(ids, dtype=torch.float32) if std is None else std)[:, None]
        scale_B1 = scale_B1 * (math.sqrt(2) / keep_prob)
        for rows, hashed, room in slices:
            # Falls from 1 at the lowest hash to -1 at the first that is dropped.
            symmetric = torch.add(hashed, 0.5, out=room).mul_(-(2.0**-31) / keep_prob).add_(1 - 1 / keep_prob)
            # Float32 rounds the outermost hashes to 1 and -1, where erfinv is infinite.
            torch.threshold_(symmetric.clamp_(max=_BELOW_ONE), -_BELOW_ONE, 0.0)
            torch.mul(symmetric.erfinv_(), scale_B1[rows], out=out[rows])
        return out

    def _rows(
        self, ids: Tensor, columns: Tensor | int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Iterator[tuple[slice, Tensor, Tensor]]]:
        """Return room (len(ids), columns), and the hashes to fill it from."""
        if isinstance(columns, int):
            columns = torch.arange(columns, device=ids.device)
        out = torch.empty(ids.numel(), columns.numel(), dtype=dtype, device=ids.device)
        return out, self._hashed_rows(ids, columns)

    def _hashed_rows(self, ids: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (rows, int32 hashes of these rows, float32 room of their shape), reusing the memory of both.

        They come in slices of rows that fit in the cache.
        """
        keys = self.bits(ids)
        low, high = _low_32(keys), _low_32(keys >> 32)
        column_keys = columns.to(torch.int32) * _GOLDEN_32
        step = _rows_per_slice(columns.numel())
        buffer = torch.empty(2, min(step, ids.numel()), columns.numel(), dtype=torch.int32, device=ids.device)
        for start in range(0, ids.numel(), step):
            rows = slice(start, min(start + step, ids.numel()))
            hashed, scratch = buffer[:, : rows.stop - start]
            torch.bitwise_xor(column_keys, low[rows, None], out=hashed)
            yield rows, _mix_32(hashed, high[rows, None], scratch), scratch.view(torch.float32)


def _rows_per_slice(num_columns: int) -> int:
    return max(1, _SLICE_ELEMENTS // max(num_columns, 1))


def _mix_64(x: Tensor) -> Tensor:
    """Apply the SplitMix64 finaliser to int64 values, in place."""
    scratch = torch.empty_like(x)
    _xor_shifted(x, 30, scratch).mul_(_MIX_64[0])
    _xor_shifted(x, 27, scratch).mul_(_MIX_64[1])
    return _xor_shifted(x, 31, scratch)


def _mix_32(x: Tensor, high: Tensor, scratch: Tensor) -> Tensor:
    """Replace int32 column keys, already combined with the lower half of a row's key, by their hashes, in place."""
    _xor_shifted(x, 16, scratch).mul_(_MIX_32[0]).add_(high)
    _xor_shifted(x, 15, scratch).mul_(_MIX_32[1])
    return _xor_shifted(x, 16, scratch)


def _threshold(keep_prob: float) -> int:
    """Return the hash below which a value is kept."""
    return min(round(keep_prob * 2.0**32), 2**32 - 1) - 2**31


def _low_32(x: Tensor) -> Tensor:
    """Return the lower 32 bits as int32."""
    return (((x & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000).to(torch.int32)


def _xor_shifted(x: Tensor, places: int, scratch: Tensor) -> Tensor:
    """Replace ``x`` by ``x ^ (x >>> places)`` in place, the shift filling with zeros as for unsigned integers."""
    torch.bitwise_right_shift(x, places, out=scratch)
    return x.bitwise_xor_(scratch.bitwise_and_((1 << (x.element_size() * 8 - places)) - 1))
