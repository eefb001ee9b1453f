"""One worker's place among all."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from diffmm_dist.errors import UserError


@dataclass(frozen=True)
class World:
    """One worker's place among all.

    Attributes:
        rank: this worker's number, from 0.
        size: number of workers; at size 1 every collective is the identity and needs no process group.
        device: where this worker computes.
        group: torch's process group of these workers; None for the one of all.
        timeout: how long groups made of these workers wait in one exchange; None for torch's default.
        sent_bytes: what this worker has sent to others so far, by purpose (collectives.py says how it is counted).
        exchanges: how many messages and sums it has taken part in so far, likewise.
    """

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    timeout: timedelta | None = None
    sent_bytes: Counter[str] = field(default_factory=Counter, compare=False)
    exchanges: Counter[str] = field(default_factory=Counter, compare=False)

    @classmethod
    def single(cls, device: str | torch.device = "cpu") -> "World":
        """Return the world of one worker."""
        return cls(rank=0, size=1, device=torch.device(device))

    @classmethod
    def current(cls, device: str | torch.device = "cpu", *, timeout: timedelta | None = None) -> "World":
        """Return this process's place in torch's process group, or the world of one where there is none.

        Raises:
            UserError: the group cannot carry what lies on the device, or what lies in main memory.
        """
        if not dist.is_initialized():
            return cls.single(device)
        _check_carried(torch.device(device))
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), device=torch.device(device), timeout=timeout)

    @property
    def is_first(self) -> bool:
        """Whether this worker writes what is written once."""
        return self.rank == 0


def _check_carried(device: torch.device) -> None:
    """Raise a ``UserError`` if torch's process group cannot carry what workers on a device tell each other."""
    config = dist.get_backend_config()
    carried = {entry.split(":")[0] for entry in config.split(",")}
    missing = sorted({"cpu", device.type} - carried)
    if missing:
        raise UserError(
            f"torch's process group, {config}, carries nothing that lies on {' or '.join(missing)}; begin it with "
            "torch.distributed.init_process_group('cpu:gloo,cuda:nccl') for GPUs, or 'gloo' without"
        )
