"""How workers share the denoisers: whole on each of them, or a range of items on each."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmm_dist.data.training import TrainingData
from diffmm_dist.diffusion.denoiser import TRAFFIC
from diffmm_dist.evaluation.topk import best_of
from diffmm_dist.parallel.collectives import exchange_counts, exchange_rows, gather_rows
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.halo import Halo, localize
from diffmm_dist.parallel.mesh import Mesh
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.sparse import CSR

Sharding = Literal["auto", "replicated", "items"]
_PLAN = f"{TRAFFIC}_plan"


@dataclass(frozen=True)
class DenoiserSizes:
    """What the traffic of one denoiser in one step depends on.

    Attributes:
        num_items: I.
        first_width: of the first hidden layer.
        last_width: of the last hidden layer.
        embedding_dim: d.
        batch_size: users per global batch.
    """

    num_items: int
    first_width: int
    last_width: int
    embedding_dim: int
    batch_size: int

    def values_sent(self, num_workers: int, num_item_shards: int) -> float:
        """Return how many values a worker sends per step; a sum of n values over w workers sends 2 n (w - 1) / w.

        The workers of a row sum what goes into the hidden layer, its gradient, and the modality signal, for their part
        of the batch; those of a column sum the gradients of their range of items.
        """
        num_groups = num_workers // num_item_shards
        per_user = self.first_width + self.last_width + self.embedding_dim
        hidden = self.batch_size / num_groups * per_user
        gradients = self.num_items / num_item_shards * (self.first_width + self.last_width + 1)
        return 2 * hidden * (1 - 1 / num_item_shards) + 2 * gradients * (1 - 1 / num_groups)


def choose_item_shards(sharding: Sharding, num_workers: int, sizes: DenoiserSizes) -> int:
    """Return over how many workers each denoiser is spread: 1, all of them, or with ``auto`` what sends the least."""
    if sharding != "auto":
        return 1 if sharding == "replicated" else num_workers
    divisors = [count for count in range(1, num_workers + 1) if num_workers % count == 0]
    return min(divisors, key=lambda count: sizes.values_sent(num_workers, count))


@dataclass(frozen=True, eq=False)
class DenoisingShard:
    """What a worker denoises: the rows of all users of its row of the mesh, at the items of its column.

    Attributes:
        mesh: the workers.
        users: which row of the mesh has which users.
        columns: the own items.
        user_ids: id of each user of the row, int64.
        rows: their training interactions with own items (users of the row x own items).
        own_users: this worker's own users among them.
    """

    mesh: Mesh
    users: Ownership
    columns: Columns
    user_ids: Tensor
    rows: CSR
    own_users: slice
    _item_halo: Halo
    _item_places: Tensor

    @classmethod
    def of(cls, data: TrainingData, *, num_item_shards: int) -> "DenoisingShard":
        """Collect the rows; every worker calls it at the same time.

        Args:
            data: this worker's slice.
            num_item_shards: workers per row of the mesh, a divisor of their number.
        """
        shard = data.shard
        mesh = Mesh.of(shard.world, num_item_shards=num_item_shards)
        users = Ownership(shard.users.bounds[::num_item_shards], mesh.data.rank)
        items = Ownership(shard.items.bounds[:: mesh.data.size], mesh.items.rank)
        columns = Columns(mesh.items, items, shard.item_ids[items.own.start : items.own.stop])
        first = mesh.data.rank * num_item_shards
        user_ids = gather_rows(
            shard.user_ids, shard.users.sizes[first : first + num_item_shards], mesh.items, purpose=_PLAN
        )
        start = shard.users.own.start - users.own.start
        wanted = torch.arange(*items.own, device=shard.world.device)
        halo, places = localize(wanted, shard.items, shard.world, purpose=TRAFFIC)
        return cls(
            mesh=mesh,
            users=users,
            columns=columns,
            user_ids=user_ids,
            rows=_rows(data.interactions, shard, users, columns),
            own_users=slice(start, start + shard.users.own.size),
            _item_halo=halo,
            _item_places=places,
        )

    def of_items(self, own: Tensor) -> Tensor:
        """Return the rows of a table (C, ...) for the items of ``columns``, from every worker's own rows of it."""
        return self._item_halo.extend(own)[self._item_places]

    def best_of_all(self, scores: Tensor, columns: Tensor, k: int) -> Tensor:
        """Return the ids of the k best items of all workers of the row, from each one's best: int64 (B, k).

        Args:
            scores: of this worker's best items, (B, min(k, C)).
            columns: which they are, counted in ascending order of ids.
            k: at most I.
        """
        ids, world = self.columns.sorted_ids[columns], self.columns.world
        if world.size == 1:
            return ids
        missing = (0, k - ids.shape[1])  # on a worker with fewer than k items
        scores = F.pad(scores, missing, value=-torch.inf)
        ids = F.pad(ids, missing, value=self.columns.total)
        counts = [len(scores)] * world.size
        all_scores, all_ids = (
            torch.cat(gather_rows(table, counts, world, purpose=TRAFFIC).split(counts), dim=1)
            for table in (scores, ids)
        )
        _, best = best_of(all_scores, all_ids, k)
        return best


def _rows(interactions: CSR, shard: Shard, users: Ownership, columns: Columns) -> CSR:
    """Return the interactions of a row's users with own items, from each of its workers' own users."""
    world, items = columns.world, columns.ownership
    if world.size == 1 and columns.by_id is None:
        return interactions
    user_rows = interactions.row_ids + (shard.users.own.start - users.own.start)
    pairs = torch.stack([user_rows, shard.item_rows[interactions.indices]], dim=1)
    if world.size > 1:
        owners = items.owner_of(pairs[:, 1].contiguous())
        pairs = pairs[torch.argsort(owners, stable=True)]
        send = torch.bincount(owners, minlength=world.size)
        receive = exchange_counts(send, world)
        pairs = exchange_rows(pairs, send.tolist(), receive.tolist(), world, purpose=_PLAN)
    return CSR.from_pairs(pairs[:, 0], pairs[:, 1] - items.own.start, num_rows=users.own.size, num_columns=columns.size)
