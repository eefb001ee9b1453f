"""Relations between users and items: a pattern of edges in both directions, and a normaliser of its entries.

With A = [[0, R], [R^T, 0]], or A + I where there are self loops, and D the sums of its rows, the entries are those of
D^-1/2 A D^-1/2 (``symmetric``), D^-1 A (``row``), D^-1/2 A (``row_root``) or A itself (``none``). They stand beside the
edges, and the self loops are factors on node rows: scaling the rows before and after the sums instead would read no
weights, but pass over the tables four times more (docs/architecture.md). graph/entries.py has products with the same
pattern and other values.

A worker keeps the edges of its own users, in both directions: its users' sums read item rows from their owners (the
halo), and its share of the items' sums goes back to them. So one plan serves both directions and both passes.

Shape suffixes: U own users, I own items, L local items (own ones, then the halo).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from diffmm_dist.parallel.halo import Halo, localize
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.sparse import CSR

TRAFFIC = "propagation"
Normalizer = Literal["symmetric", "row", "row_root", "none"]
_ADDED_TO_ROOT = 1e-8  # to the degree under the root of ``row_root``, as published


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges from source rows to target rows.

    Attributes:
        by_target: sources of each target (targets x sources).
        by_source: the same edges, targets of each source (sources x targets).
        weights: of the entries of ``by_target``, float32.
        weights_by_source: of those of ``by_source``.
    """

    by_target: CSR
    by_source: CSR
    weights: Tensor
    weights_by_source: Tensor

    @classmethod
    def of(cls, by_target: CSR, weights: Tensor) -> "Edges":
        """Return edges with the weights of their entries, float32 (edges,)."""
        by_source, order = by_target.transpose_entries()
        return cls(by_target, by_source, weights, weights[order])

    @classmethod
    def weighted(
        cls, by_target: CSR, by_source: CSR, target_scale: Tensor, source_scale: Tensor, factor: float = 1.0
    ) -> "Edges":
        """Return edges whose weights are products of their ends' scales, float32 (targets,) and (sources,)."""
        scale = target_scale * factor
        weights = scale[by_target.row_ids] * source_scale[by_target.indices]
        return cls(by_target, by_source, weights, source_scale[by_source.row_ids] * scale[by_source.indices])

    @cached_property
    def reversed(self) -> "Edges":
        """The same edges, pointing the other way."""
        return Edges(self.by_source, self.by_target, self.weights_by_source, self.weights)

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return self.by_target.num_entries

    def onto(self, targets: Tensor, *, num_edges: int | None = None) -> "Edges":
        """Return the edges to some targets alone, int64, each once; they are numbered by their places.

        Args:
            targets: those.
            num_edges: how many they are, if known: on a GPU, counting them makes the host wait.
        """
        by_target, places = self.by_target.select_entries(targets, num_entries=num_edges)
        return Edges.of(by_target, self.weights[places])

    def neighbor_sum(self, source_rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return, for each target, the sum of its sources' rows (targets, d) by these weights or the edges' own."""
        return self.by_target.weighted_matmul(self.weights if weights is None else weights, source_rows)


@dataclass(frozen=True, eq=False)
class Relation:
    """One normalised bipartite relation, as one worker sees it.

    Attributes:
        pairs: edges of the own users (U x item ids).
        shard: what this worker owns.
        halo: how the local items are reached.
        to_users: edges from local items to own users.
        to_items: edges from own users to local items.
        user_scale: factor of each own user's row, float32 (U,).
        item_scale: of each local item's, float32 (L,).
        user_column_scale: factor of each own user's column, float32 (U,); with ``symmetric`` that of the row.
        item_column_scale: of each local item's, float32 (L,).
        user_loop: weight of each user's self loop, float32 (U, 1).
        item_loop: weight of each item's self loop, float32 (I, 1).
    """

    pairs: CSR
    shard: Shard
    halo: Halo
    to_users: Edges
    to_items: Edges
    user_scale: Tensor
    item_scale: Tensor
    user_column_scale: Tensor
    item_column_scale: Tensor
    user_loop: Tensor
    item_loop: Tensor

    @classmethod
    def normalized(
        cls,
        pairs: CSR,
        shard: Shard | None = None,
        *,
        normalizer: Normalizer = "symmetric",
        self_loops: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> "Relation":
        """Return the normalised matrix of the bipartite graph whose edges are the entries of ``pairs``.

        Every worker calls it at the same time.

        Args:
            pairs: edges of the own users, rows x item ids.
            shard: what this worker owns; everything by default.
            normalizer: what the entries are divided by; rows without any stay zeros.
            self_loops: every node has an edge to itself.
            dtype: of the values.
        """
        shard = shard or Shard.whole(pairs.num_rows, pairs.num_columns)
        halo, local_items = localize(shard.item_rows[pairs.indices], shard.items, shard.world, purpose=TRAFFIC)
        by_user = CSR(pairs.indptr, local_items, halo.num_local)
        loops = int(self_loops)
        user_degrees = (pairs.row_counts + loops).to(dtype)
        item_degrees = (halo.fold(by_user.column_counts[:, None]) + loops).to(dtype)
        user_scale = _row_scale(user_degrees, normalizer)
        item_scale = halo.start_extend(_row_scale(item_degrees, normalizer))()[:, 0]
        columns = user_scale, item_scale
        if normalizer != "symmetric":
            columns = torch.ones_like(user_scale), torch.ones_like(item_scale)
        to_users = Edges.weighted(by_user, by_user.transpose(), user_scale, columns[1])
        to_items = to_users.reversed
        if normalizer != "symmetric":
            to_items = Edges.weighted(to_users.by_source, by_user, item_scale, columns[0])
        of_loops: Normalizer = "row" if normalizer == "symmetric" else normalizer
        return cls(
            pairs,
            shard,
            halo,
            to_users,
            to_items,
            user_scale,
            item_scale,
            *columns,
            _row_scale(user_degrees, of_loops)[:, None] * loops,
            _row_scale(item_degrees, of_loops) * loops,
        )

    @cached_property
    def messages(self) -> Halo:
        """The halo, for rows of tables that propagate, which travel as the shard says; ``halo`` itself is exact."""
        return self.halo.sending(self.shard.messages)

    @cached_property
    def order_by_item(self) -> Tensor:
        """Place of each edge of ``to_items.by_target`` among those of ``to_users.by_target``, int64 (E,)."""
        return torch.argsort(self.to_users.by_target.indices, stable=True)

    def dropped(self, keep_prob: float, stream: RandomStream) -> "Relation":
        """Keep each stored entry of A^ with a probability, and divide the kept ones by it.

        Both directions of an edge and the self loops are drawn independently of each other, as published; draws are
        keyed by the ids of the entry's row and column.

        Args:
            keep_prob: 1 keeps all and returns the relation itself, 0 keeps nothing.
            stream: the random stream of this graph and epoch.
        """
        if keep_prob == 1:
            return self
        scale = 1 / keep_prob if keep_prob > 0 else 0.0

        def kept(ids: Tensor, purpose: str) -> Tensor:
            return stream.child(purpose).uniform(ids) < keep_prob

        users, items = self.shard.user_ids[self.pairs.row_ids], self.pairs.indices
        by_user = self.to_users.by_target
        to_users = by_user.filter(kept(users * self.shard.num_items + items, "to_users"))
        to_items = by_user.filter(kept(items * self.shard.num_users + users, "to_items"))
        return Relation(
            self.pairs,
            self.shard,
            self.halo,
            Edges.weighted(to_users, to_users.transpose(), self.user_scale, self.item_column_scale, scale),
            Edges.weighted(to_items.transpose(), to_items, self.item_scale, self.user_column_scale, scale),
            self.user_scale,
            self.item_scale,
            self.user_column_scale,
            self.item_column_scale,
            self.user_loop * scale * kept(self.shard.user_ids, "user_loop")[:, None],
            self.item_loop * scale * kept(self.shard.own_item_ids, "item_loop")[:, None],
        )


def _row_scale(degrees: Tensor, normalizer: Normalizer) -> Tensor:
    """Return the factor of each row from its sum, of any shape; 0 of a row without entries."""
    if normalizer == "none":
        return torch.ones_like(degrees)
    scales = {
        "symmetric": torch.rsqrt,
        "row": torch.reciprocal,
        "row_root": lambda degrees: torch.rsqrt(degrees + _ADDED_TO_ROOT),
    }
    return torch.where(degrees > 0, scales[normalizer](degrees), 0)
