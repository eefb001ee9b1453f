"""A batch of interactions with negatives: where its items are reached, and the nodes that stand in it.

To plan that, workers tell each other what they need: small messages whose time is that of the way, not of the bytes. So
they plan several batches at a time, with the messages of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffmm_dist.losses.contrastive import BatchNodes, sampled_each
from diffmm_dist.losses.ranking import bpr_loss
from diffmm_dist.parallel.collectives import worker_counts_each
from diffmm_dist.parallel.halo import Halo, extended, localize_each, returned_each
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.shard import Shard

TRAFFIC = "ranking"
Sides = tuple[BatchNodes, BatchNodes]


@dataclass(frozen=True, eq=False)
class DrawnBatch:
    """The interactions of a global batch whose users this worker owns, as they were drawn.

    Attributes:
        user_rows: own users, local numbers, int64 (b,).
        pos_ids: an item that each has interacted with, int64 (b,).
        neg_ids: an item that each has not, int64 (b,).
        size: interactions of the batch, of all workers.
        stream: random stream of the batch.
        further_ids: more items of each user, int64 (b, n); none by default.
    """

    user_rows: Tensor
    pos_ids: Tensor
    neg_ids: Tensor
    size: int
    stream: RandomStream
    further_ids: Tensor | None = None

    @property
    def item_ids(self) -> Tensor:
        """The positive item, the negative one and the further ones of each user, int64 (b, 2 + n)."""
        pairs = torch.stack([self.pos_ids, self.neg_ids], dim=1)
        return pairs if self.further_ids is None else torch.cat([pairs, self.further_ids], dim=1)


@dataclass(frozen=True, eq=False)
class RankingBatch:
    """The interactions of a global batch whose users this worker owns.

    Attributes:
        shard: what this worker owns.
        user_rows: own users, local numbers, int64 (b,).
        item_halo: how the items of ``pos_items``, ``neg_items`` and ``further_items`` are reached.
        pos_items: an item that each user has interacted with, local numbers, int64 (b,).
        neg_items: an item that each has not, local numbers, int64 (b,).
        size: interactions of the batch, of all workers.
        stream: random stream of the batch.
        further_items: more items of each user, local numbers, int64 (b, n).
        together: the batches that it was planned with.
        place: which of them it is.
    """

    shard: Shard
    user_rows: Tensor
    item_halo: Halo
    pos_items: Tensor
    neg_items: Tensor
    size: int
    stream: RandomStream
    further_items: Tensor
    together: "PlannedBatches"
    place: int

    @classmethod
    def of(
        cls,
        shard: Shard,
        user_rows: Tensor,
        pos_ids: Tensor,
        neg_ids: Tensor,
        *,
        size: int,
        stream: RandomStream | None = None,
        further_ids: Tensor | None = None,
    ) -> "RankingBatch":
        """Plan one batch; every worker calls it at the same time. See ``DrawnBatch`` for the arguments."""
        drawn = DrawnBatch(user_rows, pos_ids, neg_ids, size, stream or RandomStream(0), further_ids)
        return PlannedBatches(shard, [drawn])[0]

    def bpr(self, embeddings: tuple[Tensor, Tensor], *, divisor: int) -> Tensor:
        """Return this worker's share of the BPR loss from the final embeddings of own users and own items."""
        user_emb_UD, item_emb_LD = embeddings[0], extended(embeddings[1], self.item_halo)
        return bpr_loss(
            user_emb_UD.index_select(0, self.user_rows),
            item_emb_LD.index_select(0, self.pos_items),
            item_emb_LD.index_select(0, self.neg_items),
            divisor=divisor,
        )

    @cached_property
    def read_rows(self) -> tuple[Tensor, Tensor]:
        """Own users and own items whose final embeddings any worker reads, local numbers, ascending, int64."""
        items = torch.cat([self.pos_items, self.neg_items])
        own = items[items < self.item_halo.num_inner]
        return torch.unique(self.user_rows), torch.unique(torch.cat([own, self.item_halo.send_rows]))

    @property
    def nodes(self) -> Sides:
        """The batch's users and its positive items, at their owners; every worker asks at the same time."""
        return self.together.nodes[self.place]

    def contrasted_nodes(self, max_nodes: int | None) -> Sides:
        """Return ``nodes``, at most ``max_nodes`` of each side on average; None for all."""
        return self.nodes if max_nodes is None else self.together.sampled_nodes(max_nodes)[self.place]


class PlannedBatches:
    """Batches that are planned together; every worker makes them, and asks for their nodes, at the same time.

    Args:
        shard: what this worker owns.
        drawn: the batches.
    """

    def __init__(self, shard: Shard, drawn: Sequence[DrawnBatch]) -> None:
        self._shard = shard
        self._drawn = list(drawn)
        rows = [shard.item_rows[batch.item_ids] for batch in drawn]
        self._plans = localize_each(rows, shard.items, shard.world, purpose=TRAFFIC)
        self._sampled: dict[int, list[Sides]] = {}

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, place: int) -> RankingBatch:
        drawn, (halo, items) = self._drawn[place], self._plans[place]
        pos_items, neg_items, further = items[:, 0].contiguous(), items[:, 1].contiguous(), items[:, 2:]
        sizes = drawn.size, drawn.stream
        return RankingBatch(
            self._shard, drawn.user_rows, halo, pos_items, neg_items, *sizes, further, together=self, place=place
        )

    @cached_property
    def nodes(self) -> list[Sides]:
        """Users and positive items of each batch."""
        world = self._shard.world
        counted = [torch.unique(batch.user_rows, return_counts=True) for batch in self._drawn] + self._counted_items()
        of_workers = worker_counts_each([nodes.numel() for nodes, _ in counted], world)
        sizes = [batch.size for batch in self._drawn]
        most = [max(self._shard.users.sizes)] * len(sizes) + [max(self._shard.items.sizes)] * len(sizes)
        found = [
            BatchNodes(nodes, counts / size, numbers, most_rows)
            for (nodes, counts), size, numbers, most_rows in zip(counted, sizes * 2, of_workers, most, strict=True)
        ]
        return list(zip(found[: len(sizes)], found[len(sizes) :], strict=True))

    def _counted_items(self) -> list[tuple[Tensor, Tensor]]:
        """Return own items that stand in each batch as positive ones of any worker's users, and how often they do."""
        halos, own, of_others = [halo for halo, _ in self._plans], [], []
        for halo, items in self._plans:
            local, counts = torch.unique(items[:, 0], return_counts=True)
            inside = local < halo.num_inner
            own.append((local[inside], counts[inside]))
            of_halo = counts.new_zeros(halo.global_ids.numel())
            of_others.append(of_halo.index_copy_(0, local[~inside] - halo.num_inner, counts[~inside]))
        returned = returned_each(halos, of_others)
        return [
            _summed(torch.cat([items, halo.send_rows]), torch.cat([counts, back]))
            for (items, counts), halo, back in zip(own, halos, returned, strict=True)
        ]

    def sampled_nodes(self, max_nodes: int) -> list[Sides]:
        """Return the same nodes of each batch, or a random ``max_nodes`` of each side on average."""
        if max_nodes not in self._sampled:
            shard, sides = self._shard, [side for pair in self.nodes for side in pair]
            owned = shard.user_ids, shard.own_item_ids
            ids = [of_side[nodes.nodes] for pair in self.nodes for of_side, nodes in zip(owned, pair, strict=True)]
            streams = [batch.stream.child(side) for batch in self._drawn for side in ("users", "items")]
            found = sampled_each(sides, ids, streams, max_nodes=max_nodes, world=shard.world)
            self._sampled[max_nodes] = list(zip(found[::2], found[1::2], strict=True))
        return self._sampled[max_nodes]


def _summed(rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows whose counts sum to more than none, ascending, and these sums."""
    distinct, place = torch.unique(rows, return_inverse=True)
    sums = counts.new_zeros(distinct.numel()).index_add_(0, place, counts)
    some = sums > 0
    return distinct[some], sums[some]
