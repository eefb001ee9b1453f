"""Products with matrices that have the pattern of a relation and values of their own, such as gates or a pruned graph.

A worker has the entries of its own users' edges, in both directions, and the self loops of its own nodes. The values of
all of them are one tensor of V = 2 E + U + I numbers, in this order:

    item -> user of every edge (row u, column i), user -> item of every edge (row i, column u), loops of users, of items

with edges in the order of ``Relation.to_users.by_target``. A matrix need not be symmetric: both directions of an edge
have values of their own.

Shape suffixes: U own users, I own items, L local items (own ones, then the halo), E own edges, V entries, D columns.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffmm_dist.graph.hetero import HeteroGraph
from diffmm_dist.graph.relation import Relation
from diffmm_dist.parallel.halo import Halo, extended

Rows = tuple[Tensor, Tensor]
_BLOCK_ELEMENTS = 1 << 20  # of the rows of edges that are held at a time: 4 MiB


class Entries(NamedTuple):
    """One tensor's parts.

    Attributes:
        to_users: (E,) or (E, ...).
        to_items: the same.
        user_loops: (U,) or (U, ...).
        item_loops: (I,) or (I, ...).
    """

    to_users: Tensor
    to_items: Tensor
    user_loops: Tensor
    item_loops: Tensor

    @classmethod
    def of(cls, values_V: Tensor, relation: Relation) -> "Entries":
        """Return views of the parts of a tensor."""
        num_edges, (num_users, num_items) = relation.to_users.num_edges, _num_nodes(relation)
        return cls(*values_V.split([num_edges, num_edges, num_users, num_items]))

    def joined(self) -> Tensor:
        """Return the parts as one tensor."""
        return torch.cat(self)


def entry_values(relation: Relation) -> Tensor:
    """Return the relation's own values, float32 (V,)."""
    loops = relation.user_loop[:, 0], relation.item_loop[:, 0]
    return Entries(relation.to_users.weights, relation.to_items.weights_by_source, *loops).joined()


def num_entries(relation: Relation) -> int:
    """Return V."""
    return 2 * relation.to_users.num_edges + sum(_num_nodes(relation))


def entry_keys(relation: Relation) -> Tensor:
    """Return a number of each entry that depends on the ids of its row and its column alone, int64 (V,)."""
    shard = relation.shard
    total = shard.num_users + shard.num_items
    users, items = shard.user_ids[relation.pairs.row_ids], relation.pairs.indices + shard.num_users
    loops = [nodes * (total + 1) for nodes in (shard.user_ids, shard.own_item_ids + shard.num_users)]
    return Entries(users * total + items, items * total + users, loops[0], loops[1]).joined()


def sums_of_ends(relation: Relation, row_scores: Rows, column_scores: Rows) -> Tensor:
    """Return the score of each entry's row plus that of its column, (V,), with autograd.

    Every worker calls it at the same time.

    Args:
        relation: the pattern.
        row_scores: what own users and own items count as rows, (U,) and (I,).
        column_scores: what they count as columns.
    """
    (row_U, row_I), (column_U, column_I) = row_scores, column_scores
    users, items = relation.to_users.by_target.row_ids, relation.to_users.by_target.indices
    row_L, column_L = extended(torch.stack([row_I, column_I], dim=1), relation.halo).unbind(1)
    return Entries(
        row_U.index_select(0, users) + column_L.index_select(0, items),
        row_L.index_select(0, items) + column_U.index_select(0, users),
        row_U + column_U,
        row_I + column_I,
    ).joined()


def edge_blocks(relation: Relation, width: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (edges, their users, their local items), so many that rows of a width fit in a block."""
    edges = relation.to_users.by_target
    step = max(1, _BLOCK_ELEMENTS // max(width, 1))
    for start in range(0, edges.num_entries, step):
        block = slice(start, start + step)
        yield block, edges.row_ids[block], edges.indices[block]


def propagate_entries(
    graph: HeteroGraph, relation: Relation, values_V: Tensor, rows: Rows, *, exact: bool = False
) -> Rows:
    """Return M [user rows; item rows] of the matrix M with these values, differentiable in rows and values.

    With y = M x and the gradient g of y, that of x is M^T g and that of the value at (i, j) is g_i . x_j. Every worker
    calls it at the same time.

    Args:
        graph: whose kernel sums; it has the relation.
        relation: the pattern.
        values_V: (V,).
        rows: of own users (U, D) and own items (I, D).
        exact: rows and sums travel as they are, whatever the shard says of tables.
    """
    halo = relation.halo if exact else relation.messages
    product: Rows = _PropagateEntries.apply(graph, relation, halo, values_V, *rows)  # type: ignore[no-untyped-call, unused-ignore]
    return product


def row_sums(graph: HeteroGraph, relation: Relation, values_V: Tensor) -> Rows:
    """Return the sum of each row's values, (U, 1) and (I, 1), differentiable in the values."""
    ones = [values_V.new_ones(count, 1) for count in _num_nodes(relation)]
    return propagate_entries(graph, relation, values_V, (ones[0], ones[1]), exact=True)


def _num_nodes(relation: Relation) -> tuple[int, int]:
    return relation.user_loop.shape[0], relation.item_loop.shape[0]


class _PropagateEntries(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        graph: HeteroGraph,
        relation: Relation,
        halo: Halo,
        values_V: Tensor,
        user_rows: Tensor,
        item_rows: Tensor,
    ) -> Rows:
        ctx.graph, ctx.relation, ctx.halo = graph, relation, halo
        entries, order = Entries.of(values_V, relation), relation.order_by_item
        item_rows_L = halo.start_extend(item_rows)
        sums = halo.start_fold(graph.neighbor_sum(relation.to_items, user_rows, entries.to_items[order]))
        items_LD = item_rows_L()
        users = graph.neighbor_sum(relation.to_users, items_LD, entries.to_users)
        users.addcmul_(entries.user_loops[:, None], user_rows)
        items = torch.addcmul(sums(), entries.item_loops[:, None], item_rows)
        ctx.save_for_backward(values_V, user_rows, items_LD)
        return users, items

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        graph, relation, halo = ctx.graph, ctx.relation, ctx.halo
        values_V, user_rows, items_LD = ctx.saved_tensors
        entries = Entries.of(values_V, relation)
        grad_U, grad_I = gradients
        grad_L = halo.extend(grad_I)
        user_grad = item_grad = value_grad = None
        if ctx.needs_input_grad[5]:
            weights = entries.to_users[relation.order_by_item]
            sums = halo.start_fold(graph.neighbor_sum(relation.to_items, grad_U, weights))
            item_grad = torch.addcmul(sums(), entries.item_loops[:, None], grad_I)
        if ctx.needs_input_grad[4]:
            user_grad = graph.neighbor_sum(relation.to_users, grad_L, entries.to_items)
            user_grad.addcmul_(entries.user_loops[:, None], grad_U)
        if ctx.needs_input_grad[3]:
            value_grad = _value_gradient(relation, (grad_U, grad_L), (user_rows, items_LD))
        return None, None, None, value_grad, user_grad, item_grad


def _value_gradient(relation: Relation, gradients: Rows, rows: Rows) -> Tensor:
    """Return g_i . x_j of each entry (i, j), from users' and local items' rows of both."""
    (grad_U, grad_L), (user_rows, items_LD) = gradients, rows
    num_items = relation.item_loop.shape[0]
    out = grad_U.new_empty(num_entries(relation))
    entries = Entries.of(out, relation)
    edges = relation.to_users.by_target
    edges.products_at(grad_U, items_LD, out=entries.to_users)
    edges.products_at(user_rows, grad_L, out=entries.to_items)
    torch.linalg.vecdot(grad_U, user_rows, out=entries.user_loops)
    torch.linalg.vecdot(grad_L[:num_items], items_LD[:num_items], out=entries.item_loops)
    return out
