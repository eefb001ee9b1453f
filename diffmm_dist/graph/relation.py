"""Relations between users and items: edges in both directions with symmetric normalisation and self loops.

A^ = D^-1/2 (A + I) D^-1/2 with A = [[0, R], [R^T, 0]] and D = the row sums of A + I. It is kept as factors on node
rows, so propagation reads no edge weights: A^ x = D^-1/2 (A (D^-1/2 x)) + D^-1 x.

Shape suffixes: U users, I items.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.sparse import CSR


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges from source rows to target rows.

    Attributes:
        by_target: sources of each target (targets x sources).
        by_source: the same edges, targets of each source (sources x targets).
    """

    by_target: CSR
    by_source: CSR

    @cached_property
    def reversed(self) -> "Edges":
        """The same edges, pointing the other way."""
        return Edges(self.by_source, self.by_target)

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return self.by_target.num_entries


@dataclass(frozen=True, eq=False)
class Relation:
    """One normalised bipartite relation.

    Attributes:
        to_users: edges from items to users.
        to_items: edges from users to items.
        user_scale: D^-1/2 of users, float32 (U, 1).
        item_scale: D^-1/2 of items, float32 (I, 1).
        user_loop: weight of each user's self loop, float32 (U, 1).
        item_loop: weight of each item's self loop, float32 (I, 1).
        edge_scale: factor on all edges (1 / keep probability of a dropped graph).
    """

    to_users: Edges
    to_items: Edges
    user_scale: Tensor
    item_scale: Tensor
    user_loop: Tensor
    item_loop: Tensor
    edge_scale: float = 1.0

    @classmethod
    def normalized(cls, pairs: CSR) -> "Relation":
        """Return A^ of the bipartite graph whose edges are the entries of ``pairs`` (U x I)."""
        to_users = Edges(pairs, pairs.transpose())
        user_degrees = (pairs.row_counts + 1).to(torch.float32)[:, None]
        item_degrees = (pairs.column_counts + 1).to(torch.float32)[:, None]
        return cls(
            to_users,
            to_users.reversed,
            user_degrees.rsqrt(),
            item_degrees.rsqrt(),
            user_degrees.reciprocal(),
            item_degrees.reciprocal(),
        )

    def dropped(self, keep_prob: float, stream: RandomStream) -> "Relation":
        """Keep each stored entry of A^ with a probability, and divide the kept ones by it.

        Both directions of an edge and the self loops are drawn independently of each other, as published; draws are
        keyed by the entry's (row, column).

        Args:
            keep_prob: 1 keeps all and returns the relation itself, 0 keeps nothing.
            stream: the random stream of this graph and epoch.
        """
        if keep_prob == 1:
            return self
        scale = 1 / keep_prob if keep_prob > 0 else 0.0
        loops = {
            name: loop * scale * _kept(torch.arange(loop.numel(), device=loop.device), keep_prob, stream, name)[:, None]
            for name, loop in (("user_loop", self.user_loop), ("item_loop", self.item_loop))
        }
        return Relation(
            _drop(self.to_users, keep_prob, stream, "to_users"),
            _drop(self.to_items, keep_prob, stream, "to_items"),
            self.user_scale,
            self.item_scale,
            loops["user_loop"],
            loops["item_loop"],
            scale,
        )


def _kept(ids: Tensor, keep_prob: float, stream: RandomStream, purpose: str) -> Tensor:
    return stream.child(purpose).uniform(ids) < keep_prob


def _drop(edges: Edges, keep_prob: float, stream: RandomStream, purpose: str) -> Edges:
    by_target = edges.by_target.filter(_kept(edges.by_target.keys, keep_prob, stream, purpose))
    return Edges(by_target, by_target.transpose())
