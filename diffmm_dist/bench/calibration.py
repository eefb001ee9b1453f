"""A unit of time that travels between machines: one float32 matrix product, timed between the epochs of a run."""

import time
from collections.abc import Mapping

import torch

from diffmm_dist.monitoring.recorder import Recorder

PRODUCT = "float32 (1024 x 6720) @ (6720 x 1000)"
_REPEATS = 3


class ProductTimer(Recorder):
    """Times the product after every epoch, so that a busy machine slows both alike."""

    def __init__(self) -> None:
        self._left = torch.ones(1024, 6720)
        self._right = torch.ones(6720, 1000)
        self.seconds: list[float] = []

    def product(self) -> None:
        """Compute one product."""
        torch.mm(self._left, self._right)

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Time a few products, the first of them unrecorded."""
        for repeat in range(_REPEATS + 1):
            start = time.perf_counter()
            self.product()
            if repeat:
                self.seconds.append(time.perf_counter() - start)

    def close(self) -> None:
        """Do nothing."""
