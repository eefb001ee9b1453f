"""A batch of interactions with negatives: where its items are reached, and the nodes that stand in it.

To plan that, workers tell each other what they need: small messages whose time is that of the way, not of the bytes. So
they plan several batches at a time, with the messages of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.layout import Layout, Reads, StepReading
from diffmm_dist.graph.propagate import Rows
from diffmm_dist.graph.relation import Relation
from diffmm_dist.graph.targets import edges_to_each
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
    """The interactions of a step whose users this worker owns: of one micro-batch, or of several in a row.

    Attributes:
        shard: what this worker owns.
        user_rows: own users, local numbers, int64 (b,).
        item_halo: how the items of ``pos_items``, ``neg_items`` and ``further_items`` are reached.
        pos_items: an item that each user has interacted with, local numbers, int64 (b,).
        neg_items: an item that each has not, local numbers, int64 (b,).
        further_items: more items of each user, local numbers, int64 (b, n).
        size: interactions of all micro-batches, of all workers.
        num_micro_batches: how many they are.
        stream: random stream of the first of them.
        together: the batches that it was planned with.
        place: which of them it is.
    """

    shard: Shard
    user_rows: Tensor
    item_halo: Halo
    pos_items: Tensor
    neg_items: Tensor
    further_items: Tensor
    size: int
    num_micro_batches: int
    stream: RandomStream
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
        return PlannedBatches(shard, [[drawn]])[0]

    def bpr(self, own: Rows, *, divisor: int) -> Tensor:
        """Return this worker's share of the BPR loss from the final embeddings of own users and own items."""
        return self.bpr_of_local((own[0], extended(own[1], self.item_halo)), divisor=divisor)

    def bpr_of_local(self, local: Rows, *, divisor: int) -> Tensor:
        """Return the same from those of own users and local items; a micro-batch's sum of losses is over ``divisor``.

        Of several micro-batches it is the mean.
        """
        users_UD, items_LD = local
        return bpr_loss(
            users_UD.index_select(0, self.user_rows),
            items_LD.index_select(0, self.pos_items),
            items_LD.index_select(0, self.neg_items),
            divisor=divisor * self.num_micro_batches,
        )

    @cached_property
    def reads(self) -> Reads:
        """The rows whose final embeddings the workers read."""
        items = torch.cat([self.pos_items, self.neg_items])
        own = items[items < self.item_halo.num_inner]
        of_any = torch.unique(torch.cat([own, self.item_halo.send_rows]))
        return Reads(torch.unique(self.user_rows), of_any, self.item_halo)

    def reading(self, layout: Layout, graph: HeteroGraph) -> StepReading:
        """Return how they get here from the layout's graph; every worker asks at the same time."""
        return self.together.readings(layout, graph.relations[REAL])[self.place]

    @property
    def nodes(self) -> list[Sides]:
        """The users and the positive items of each micro-batch, at their owners; every worker asks at the same time."""
        return self.together.nodes[self.place]

    def contrasted_nodes(self, max_nodes: int | None) -> list[Sides]:
        """Return ``nodes``, at most ``max_nodes`` of each side on average; None for all."""
        return self.nodes if max_nodes is None else self.together.sampled_nodes(max_nodes)[self.place]


class PlannedBatches:
    """Batches that are planned together; every worker makes them, and asks what is planned, at the same time.

    Args:
        shard: what this worker owns.
        drawn: the micro-batches of each.
    """

    def __init__(self, shard: Shard, drawn: Sequence[Sequence[DrawnBatch]]) -> None:
        self._shard = shard
        self._drawn = [list(batch) for batch in drawn]
        rows = [shard.item_rows[torch.cat([micro.item_ids for micro in batch])] for batch in drawn]
        self._plans = localize_each(rows, shard.items, shard.world, purpose=TRAFFIC)
        self._sampled: dict[int, list[list[Sides]]] = {}
        self._readings: tuple[Layout, list[StepReading]] | None = None

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, place: int) -> RankingBatch:
        drawn, (halo, items) = self._drawn[place], self._plans[place]
        return RankingBatch(
            self._shard,
            torch.cat([micro.user_rows for micro in drawn]),
            halo,
            items[:, 0].contiguous(),
            items[:, 1].contiguous(),
            items[:, 2:],
            size=sum(micro.size for micro in drawn),
            num_micro_batches=len(drawn),
            stream=drawn[0].stream,
            together=self,
            place=place,
        )

    def readings(self, layout: Layout, real: Relation) -> list[StepReading]:
        """Return how what each batch reads gets here, and how many edges of the layout's real relation lead to it."""
        if self._readings is None or self._readings[0] is not layout:
            steps = layout.readings([self[place].reads for place in range(len(self))])
            edges = edges_to_each(real, [step.local.rows for step in steps])
            counted = [
                StepReading(replace(step.local, edges=count), replace(step.own, edges=count))
                for step, count in zip(steps, edges, strict=True)
            ]
            self._readings = layout, counted
        return self._readings[1]

    @cached_property
    def nodes(self) -> list[list[Sides]]:
        """Users and positive items of each micro-batch of each batch."""
        micros = [micro for batch in self._drawn for micro in batch]
        counted = [torch.unique(micro.user_rows, return_counts=True) for micro in micros] + self._counted_items()
        of_workers = worker_counts_each([nodes.numel() for nodes, _ in counted], self._shard.world)
        most = [max(owners.sizes) for owners in (self._shard.users, self._shard.items) for _ in micros]
        sides = [
            BatchNodes(nodes, counts / micro.size, numbers, most_rows)
            for (nodes, counts), micro, numbers, most_rows in zip(counted, micros * 2, of_workers, most, strict=True)
        ]
        return self._by_batch(list(zip(sides[: len(micros)], sides[len(micros) :], strict=True)))

    def _by_batch(self, of_micros: list[Sides]) -> list[list[Sides]]:
        """Return what there is of all micro-batches in a list for each batch."""
        rest = iter(of_micros)
        return [list(islice(rest, len(batch))) for batch in self._drawn]

    def _counted_items(self) -> list[tuple[Tensor, Tensor]]:
        """Return own items that stand in each micro-batch as positive ones of any worker's, and how often they do."""
        halos, own, of_others = [], [], []
        for batch, (halo, items) in zip(self._drawn, self._plans, strict=True):
            for pos_items in items[:, 0].split([len(micro.user_rows) for micro in batch]):
                local, counts = torch.unique(pos_items, return_counts=True)
                inside = local < halo.num_inner
                halos.append(halo)
                own.append((local[inside], counts[inside]))
                of_halo = counts.new_zeros(halo.global_ids.numel())
                of_others.append(of_halo.index_copy_(0, local[~inside] - halo.num_inner, counts[~inside]))
        returned = returned_each(halos, of_others)
        return [
            _summed(torch.cat([items, halo.send_rows]), torch.cat([counts, back]))
            for (items, counts), halo, back in zip(own, halos, returned, strict=True)
        ]

    def sampled_nodes(self, max_nodes: int) -> list[list[Sides]]:
        """Return the same nodes, or a random ``max_nodes`` of each side of a micro-batch on average."""
        if max_nodes not in self._sampled:
            shard, pairs = self._shard, [pair for batch in self.nodes for pair in batch]
            ids = [
                of_side[side.nodes]
                for pair in pairs
                for of_side, side in zip((shard.user_ids, shard.own_item_ids), pair, strict=True)
            ]
            micros = [micro for batch in self._drawn for micro in batch]
            streams = [micro.stream.child(side) for micro in micros for side in ("users", "items")]
            sides = [side for pair in pairs for side in pair]
            found = sampled_each(sides, ids, streams, max_nodes=max_nodes, world=shard.world)
            self._sampled[max_nodes] = self._by_batch(list(zip(found[::2], found[1::2], strict=True)))
        return self._sampled[max_nodes]


def _summed(rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows whose counts sum to more than none, ascending, and these sums."""
    distinct, place = torch.unique(rows, return_inverse=True)
    sums = counts.new_zeros(distinct.numel()).index_add_(0, place, counts)
    some = sums > 0
    return distinct[some], sums[some]
