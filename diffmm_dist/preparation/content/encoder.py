"""What turns contents into vectors, whatever they are and whoever has made the model."""

from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.content.request import Device

Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """A model, and how contents are made ready for it.

    Attributes:
        most_pieces: that it is given at once.
        notes: sentences about what it leaves aside.
    """

    most_pieces: int
    notes: list[str]

    def pieces(self, value: str) -> list[Any]:
        """Read a content, and make it ready: one or more pieces whose vectors are averaged. Threads call this.

        Raises:
            UserError: it is damaged; the text is a reason.
        """
        ...

    def shape(self, piece: Any) -> Hashable:
        """Return what pieces that go through the model together have in common."""
        ...

    def encode(self, pieces: list[Any]) -> Vectors:
        """Return the vectors (n, width) of pieces of one shape."""
        ...


def device_of(device: Device) -> torch.device:
    """Return where a model is to run.

    Raises:
        UserError: a GPU is asked for, and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("--device cuda: torch finds no GPU here; see `doctor`, or pass --device cpu")
    return torch.device("cuda" if has_gpu and device != "cpu" else "cpu")
