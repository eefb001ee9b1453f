"""How the workers of a run on this machine find one another: through a file.

torch's own way is a small server of the first worker, which listens on every interface of the machine and asks nobody
who they are. Nothing of a run on one machine need be reached from another.
"""

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig

TorchBackend: Any = TorchConfig().backend_cls


@dataclass
class FileConfig(TorchConfig):
    """Ray's configuration of a process group, whose members meet in a file.

    Attributes:
        folder: where the files are, on a disk that all workers share.
    """

    folder: str = ""

    @property
    def backend_cls(self) -> Any:
        """What sets the group up."""
        return _FileBackend


class _FileBackend(TorchBackend):
    """Ray's backend, but for the place where the workers meet."""

    def on_start(self, worker_group: Any, backend_config: FileConfig) -> None:
        """Make the process group; a new file each time, since workers that died leave theirs."""
        place = f"file://{backend_config.folder}/{uuid.uuid4().hex}"
        size = len(worker_group)
        timeout = timedelta(seconds=backend_config.timeout_s)
        joined = [
            worker_group.execute_single_async(number, _join, backend_config.backend, place, number, size, timeout)
            for number in range(size)
        ]
        ray.get(joined)


def _join(backend: str, place: str, rank: int, size: int, timeout: timedelta) -> None:
    dist.init_process_group(backend, init_method=place, rank=rank, world_size=size, timeout=timeout)
