"""Sounds in one channel at a model's rate, in windows that models hear as a whole. The home of soundfile."""

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.content.decoding import decoded

ENDINGS = frozenset((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"))
WINDOW_S = 10.0  # what the models in docs/features.md were made for, or take without cutting any of it off
_SHORTEST_S = 0.1
_LARGEST_BYTES = 256 << 20
_RATES = range(1_000, 384_001)
_MOST_CHANNELS = 32

Samples = npt.NDArray[np.float32]


def read_windows(uri: str, *, rate: int, max_seconds: float) -> list[Samples]:
    """Return the windows of a sound, all of ``WINDOW_S`` and evenly spread if it is longer than one.

    Args:
        uri: path or address of the file.
        rate: samples per second that are wanted.
        max_seconds: what counts of it, from its beginning.

    Raises:
        UserError: it cannot be read; the text is a reason.
        TryAgainError: the store did not answer.
    """
    samples, own_rate = decoded(uri, lambda data: _decoded(data, max_seconds), limit=_LARGEST_BYTES)
    if len(samples) < _SHORTEST_S * own_rate:
        raise UserError(f"it is shorter than {_SHORTEST_S} s")
    if not np.isfinite(samples).all():
        raise UserError("it holds samples that are NaN or infinite")
    divisor = math.gcd(rate, own_rate)
    if own_rate != rate:
        samples = resample_poly(samples, rate // divisor, own_rate // divisor).astype(np.float32)
    return windows_of(samples, round(WINDOW_S * rate))


def windows_of(samples: Samples, length: int) -> list[Samples]:
    """Cut samples into as few windows of one length as cover them, which overlap a little; what is shorter is one."""
    if len(samples) <= length:
        return [samples]
    starts = np.linspace(0, len(samples) - length, math.ceil(len(samples) / length)).round().astype(int)
    return [samples[start : start + length] for start in starts]


def _decoded(data: bytes, max_seconds: float) -> tuple[Samples, int]:
    """Return the mean of the channels, and the samples per second; a second is decoded at a time."""
    import soundfile

    with soundfile.SoundFile(io.BytesIO(data)) as file:
        rate: Any = file.samplerate
        if rate not in _RATES or file.channels > _MOST_CHANNELS:
            raise UserError(f"it has {rate:,} samples per second in {file.channels:,} channels, which no sound has")
        left, parts = int(max_seconds * rate), [np.zeros(0, np.float32)]
        while left > 0 and len(block := file.read(min(left, rate), dtype="float32", always_2d=True)):
            parts.append(block.mean(axis=1))
            left -= len(block)
    return np.concatenate(parts), int(rate)
