"""The batches of an epoch: a keyed permutation, so that every worker finds its part of each batch by itself."""

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmm_dist.parallel.random import RandomStream


class EpochBatches:
    """Shuffled global batches, seen by a worker that owns some of the examples.

    The examples ``0 .. total - 1`` are permuted by the epoch's stream; global batch b is those whose place falls into
    [b B, (b + 1) B). It is the same whatever the number of workers, and together the workers' parts make it up; a
    worker without an example in some batch gets an empty part, so all take the same number of steps.

    Args:
        ids: int64 (n,), global numbers of the worker's own examples.
        total: number of examples of all workers.
        batch_size: B; the last batch may be shorter.
        stream: the epoch's random stream.
    """

    def __init__(self, ids: Tensor, *, total: int, batch_size: int, stream: RandomStream) -> None:
        places, self._order = torch.sort(stream.permute(ids, total))
        self.num_batches = -(-total // batch_size)
        self._total, self._batch_size = total, batch_size
        edges = torch.arange(self.num_batches + 1, device=ids.device) * batch_size
        self._bounds = torch.searchsorted(places, edges).tolist()

    def __getitem__(self, index: int) -> Tensor:
        """Return int64 positions, in ``ids``, of the worker's part of one batch, in shuffled order."""
        return self._order[self._bounds[index] : self._bounds[index + 1]]

    def sums(self, values: Tensor) -> list[int]:
        """Return the sum of the worker's part of each batch over int64 values (n,) of its own examples."""
        totals = F.pad(torch.cumsum(values[self._order], 0), (1, 0))
        sums: list[int] = totals[self._bounds].diff().tolist()
        return sums

    def size(self, index: int) -> int:
        """Return the number of examples in a batch, of all workers."""
        return min(self._batch_size, self._total - index * self._batch_size)
