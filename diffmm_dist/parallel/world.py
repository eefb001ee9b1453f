"""One worker's place among all."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class World:
    """One worker's place among all.

    Attributes:
        rank: this worker's number, from 0.
        size: number of workers; at size 1 every collective is the identity and needs no process group.
        device: where this worker computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def single(cls, device: str | torch.device = "cpu") -> "World":
        """Return the world of one worker."""
        return cls(rank=0, size=1, device=torch.device(device))
