"""Relational attention: each head's sum of its tails' rows, weighted by a softmax over the head's edges.

A worker has the edges of its own heads, so that a softmax is computed where its head is owned; the rows of tails come
from their owners (the halo), and their gradients go back there.

Shape suffixes: N own nodes, L local nodes (own ones, then the halo), h own heads, E edges, R relations, P pairs of a
node and a relation, D columns.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmm_dist.graph.hetero import HeteroGraph
from diffmm_dist.graph.relation import TRAFFIC, Edges
from diffmm_dist.parallel.halo import Halo, extended, localize
from diffmm_dist.parallel.shard import AllRows
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR

NEGATIVE_SLOPE = 0.2  # of the LeakyReLU on scores


class Pairs(NamedTuple):
    """The distinct pairs of a node and a relation that some edges have at one of their ends.

    Attributes:
        pattern: relations of each node (nodes x R).
        by_relation: nodes of each relation (R x nodes).
        order: place in ``pattern`` of each entry of ``by_relation``, int64 (P,).
        places: place in ``pattern`` of each edge's pair, int64 (E,).
    """

    pattern: CSR
    by_relation: CSR
    order: Tensor
    places: Tensor

    @classmethod
    def of(cls, nodes: Tensor, relations: Tensor, *, num_nodes: int, num_relations: int) -> "Pairs":
        """Return the pairs of edges, int64 (E,) of each end and relation."""
        keys, places = torch.unique(nodes * num_relations + relations, return_inverse=True)
        pattern = CSR.from_pairs(
            keys // num_relations, keys % num_relations, num_rows=num_nodes, num_columns=num_relations
        )
        return cls(pattern, pattern.transpose(), torch.argsort(pattern.indices, stable=True), places)

    def products(self, rows: Tensor, maps_RD: Tensor) -> Tensor:
        """Return the product of each pair's row and its relation's, (P,)."""
        return self.pattern.products_at(rows, maps_RD)

    def gradients(self, scores_E: Tensor, rows: Tensor, maps_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of rows and maps from those of the edges' scores."""
        scores_P = scores_E.new_zeros(self.pattern.num_entries).index_add_(0, self.places, scores_E)
        return (
            self.pattern.weighted_matmul(scores_P, maps_RD),
            self.by_relation.weighted_matmul(scores_P[self.order], rows),
        )


@dataclass(frozen=True, eq=False)
class TypedEdges:
    """Edges of relations, from local tails to own heads, which are the first of the own nodes.

    Attributes:
        edges: tails of each head; their weights are ones.
        halo: how the tails are reached.
        by_source: place of each edge of ``edges.by_source`` among those of ``edges.by_target``, int64 (E,).
        head_pairs: heads with the relations that they are heads of.
        tail_pairs: local nodes with the relations that they are tails of.
    """

    edges: Edges
    halo: Halo
    by_source: Tensor
    head_pairs: Pairs
    tail_pairs: Pairs

    @classmethod
    def of(
        cls,
        tails: CSR,
        relations: Tensor,
        nodes: AllRows,
        world: World,
        *,
        num_relations: int,
        messages: torch.dtype | None = None,
    ) -> "TypedEdges":
        """Plan how the tails are reached; every worker calls it at the same time.

        Args:
            tails: node ids of each own head (heads x node ids).
            relations: of each entry, int64 (E,).
            nodes: all nodes.
            world: the workers.
            num_relations: R.
            messages: as what rows and gradients of tails travel; None for as they are.
        """
        halo, local = localize(nodes.rows[tails.indices], nodes.ownership, world, purpose=TRAFFIC)
        by_target = CSR(tails.indptr, local, halo.num_local)
        ones = torch.ones(local.numel(), device=local.device)
        sizes = {"num_relations": num_relations}
        return cls(
            Edges(by_target, by_target.transpose(), ones, ones),
            halo.sending(messages),
            torch.argsort(local, stable=True),
            Pairs.of(by_target.row_ids, relations, num_nodes=by_target.num_rows, **sizes),
            Pairs.of(local, relations, num_nodes=halo.num_local, **sizes),
        )

    @property
    def num_heads(self) -> int:
        """Own heads."""
        return self.edges.by_target.num_rows


class Attention(NamedTuple):
    """What each edge counts, float (E,) in the order of ``edges.by_target``.

    Attributes:
        scores: behind the LeakyReLU.
        weights: their softmax over the edges of each head.
    """

    scores: Tensor
    weights: Tensor


@torch.no_grad()
def attention_of(edges: TypedEdges, rows_LD: Tensor, head_maps_RD: Tensor, tail_maps_RD: Tensor) -> Attention:
    """Return the attention of each edge (h, r, t), without autograd.

    With s = LeakyReLU(x_h . a_r + x_t . b_r), a of ``head_maps_RD`` and b of ``tail_maps_RD``, the weight is
    exp(s) / sum over the edges of h of exp(s).
    """
    heads = edges.head_pairs.products(rows_LD, head_maps_RD)[edges.head_pairs.places]
    scores = heads + edges.tail_pairs.products(rows_LD, tail_maps_RD)[edges.tail_pairs.places]
    F.leaky_relu_(scores, NEGATIVE_SLOPE)
    return Attention(scores, segment_softmax(scores, edges.edges.by_target))


def segment_softmax(scores_E: Tensor, rows: CSR) -> Tensor:
    """Return the softmax over the entries of each row, (E,)."""
    if not scores_E.numel():
        return scores_E
    largest = torch.segment_reduce(scores_E, "max", offsets=rows.indptr, initial=-torch.inf)
    weights = torch.exp(scores_E - largest[rows.row_ids])
    return weights.div_(_sums(weights, rows)[rows.row_ids])


def relational_attention(
    graph: HeteroGraph, edges: TypedEdges, rows_ND: Tensor, head_maps_RD: Tensor, tail_maps_RD: Tensor
) -> Tensor:
    """Return x_h + sum_t alpha(h, r, t) x_t of each own head (h, D), differentiable in all tensors.

    ``attention_of`` says what alpha is. Every worker calls it at the same time.

    Args:
        graph: whose kernel sums; it has the edges.
        edges: the edges.
        rows_ND: x of own nodes.
        head_maps_RD: a.
        tail_maps_RD: b.
    """
    rows_LD = extended(rows_ND, edges.halo)
    heads: Tensor = _RelationalAttention.apply(graph, edges, rows_LD, head_maps_RD, tail_maps_RD)  # type: ignore[no-untyped-call, unused-ignore]
    return heads


class _RelationalAttention(torch.autograd.Function):
    """With g the gradient of the result: that of a weight is g_h . x_t, and that of the scores follows the softmax."""

    @staticmethod
    def forward(
        ctx: Any, graph: HeteroGraph, edges: TypedEdges, rows_LD: Tensor, head_maps_RD: Tensor, tail_maps_RD: Tensor
    ) -> Tensor:
        ctx.graph, ctx.edges = graph, edges
        scores, weights = attention_of(edges, rows_LD, head_maps_RD, tail_maps_RD)
        ctx.save_for_backward(rows_LD, head_maps_RD, tail_maps_RD, scores, weights)
        return graph.neighbor_sum(edges.edges, rows_LD, weights).add_(rows_LD[: edges.num_heads])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        graph, edges = ctx.graph, ctx.edges
        rows_LD, head_maps_RD, tail_maps_RD, scores, weights = ctx.saved_tensors
        gradient_hD = gradients[0].contiguous()
        by_head = edges.edges.by_target
        grads_LD = graph.neighbor_sum(edges.edges.reversed, gradient_hD, weights[edges.by_source])
        grads_LD[: edges.num_heads] += gradient_hD
        of_scores = weights * by_head.products_at(gradient_hD, rows_LD)
        of_scores -= weights * _sums(of_scores, by_head)[by_head.row_ids]
        of_scores *= torch.where(scores < 0, NEGATIVE_SLOPE, 1.0)  # the sign of a score is that before the LeakyReLU
        heads_hD, head_maps = edges.head_pairs.gradients(of_scores, rows_LD[: edges.num_heads], head_maps_RD)
        tails_LD, tail_maps = edges.tail_pairs.gradients(of_scores, rows_LD, tail_maps_RD)
        grads_LD[: edges.num_heads] += heads_hD
        return None, None, grads_LD.add_(tails_LD), head_maps, tail_maps


def _sums(values_E: Tensor, rows: CSR) -> Tensor:
    """Return the sum of each row's entries, (rows,)."""
    return values_E.new_zeros(rows.num_rows).index_add_(0, rows.row_ids, values_E)
