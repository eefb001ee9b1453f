"""Propagation over a relation: the one function through which all sparse products go."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.relation import Relation
from diffmm_dist.graph.targets import Places, Targets

Rows = tuple[Tensor, Tensor]


def propagate(
    graph: HeteroGraph, relation: str, user_rows: Tensor, item_rows: Tensor, *, with_input: bool = False
) -> Rows:
    """Return A^ [user_rows; item_rows] of one relation, with autograd.

    Every worker calls it at the same time, with the rows that it owns.

    Args:
        graph: the graph.
        relation: name of the relation.
        user_rows: float32 (own users, d).
        item_rows: float32 (own items, d).
        with_input: return (I + A^) [user_rows; item_rows], which takes as long.

    Returns:
        The user rows and the item rows of the product, of the same shapes.
    """
    product: Rows = _Propagate.apply(graph, graph.relations[relation], with_input, user_rows, item_rows)  # type: ignore[no-untyped-call, unused-ignore]
    return product


def propagate_tables(graph: HeteroGraph, relation: str, user_rows: Tensor, item_tables: Sequence[Tensor]) -> list[Rows]:
    """Return A^ [user_rows; X] for several item tables X, as ``propagate`` of each; the users' sums are taken once."""
    rows = _Propagate.apply(graph, graph.relations[relation], False, user_rows, *item_tables)  # type: ignore[no-untyped-call, unused-ignore]
    return list(zip(rows[: len(item_tables)], rows[len(item_tables) :], strict=True))


def propagate_to_users(graph: HeteroGraph, relation: str, user_rows: Tensor, item_rows: Tensor) -> Tensor:
    """Return the user rows of A^ [user_rows; item_rows] alone, in half the time of ``propagate``."""
    users: Tensor = _PropagateToUsers.apply(user_rows, item_rows, graph, graph.relations[relation])  # type: ignore[no-untyped-call, unused-ignore]
    return users


def users_from_items(graph: HeteroGraph, relation: str, item_rows: Tensor) -> Tensor:
    """Return the user rows of A^ [0; item_rows], (own users, d): one half of a product, without self loops."""
    users: Tensor = _Half.apply(graph, graph.relations[relation], True, item_rows)  # type: ignore[no-untyped-call, unused-ignore]
    return users


def items_from_users(graph: HeteroGraph, relation: str, user_rows: Tensor) -> Tensor:
    """Return the item rows of A^ [user_rows; 0], (own items, d): the other half."""
    items: Tensor = _Half.apply(graph, graph.relations[relation], False, user_rows)  # type: ignore[no-untyped-call, unused-ignore]
    return items


def propagate_to(targets: Targets, user_rows: Tensor, item_rows: Tensor, *, with_input: bool = False) -> Rows:
    """Return some rows of ``propagate``, in the time and with the messages that the edges to those rows take."""
    rows: Rows = _PropagateTo.apply(user_rows, item_rows, targets, with_input)  # type: ignore[no-untyped-call, unused-ignore]
    return rows


def select(rows: Rows, at: Places) -> Rows:
    """Return some rows of users and of items."""
    users, items = (
        table if which is None else table.index_select(0, which) for table, which in zip(rows, at, strict=True)
    )
    return users, items


def sum_of_layers(graph: HeteroGraph, rows: Rows, *, num_layers: int, targets: Targets | None = None) -> Rows:
    """Return sum_{l=0..L} A^^l [user rows; item rows] over the real graph, (U, d) and (I, d), or the rows of targets.

    Computed as rows + A^ (rows + A^ (... (I + A^) rows)); of the last product only the targets, which are that graph's.
    """
    at: Places = (None, None) if targets is None else targets.at
    if num_layers == 0:
        return select(rows, at)
    layer = rows
    for number in range(num_layers - 1):
        layer = propagate(graph, REAL, *layer, with_input=number == 0)
        if number > 0:
            layer = rows[0] + layer[0], rows[1] + layer[1]
    if targets is None:
        last = propagate(graph, REAL, *layer, with_input=num_layers == 1)
    else:
        last = propagate_to(targets, *layer, with_input=num_layers == 1)
    if num_layers == 1:
        return last
    base = select(rows, at)
    return base[0] + last[0], base[1] + last[1]


class _Propagate(torch.autograd.Function):
    """Of K item tables: the user rows of each product, then the item rows of each.

    The backward pass is the same products with all edges reversed: A^ transposed. What users send is the same in all
    of them and so is what they get back, so forward one sum over users' rows is taken and backward one over items'.
    """

    @staticmethod
    def forward(
        ctx: Any, graph: HeteroGraph, relation: Relation, with_input: bool, user_rows: Tensor, *item_tables: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.graph, ctx.relation = graph, relation
        ctx.loops = relation.user_loop + int(with_input), relation.item_loop + int(with_input)
        # Each exchange is under way while others' rows are summed.
        halo_rows = [relation.messages.start_extend(table) for table in item_tables]
        own_sums = relation.messages.start_fold(graph.neighbor_sum(relation.to_items, user_rows))
        users = [graph.neighbor_sum(relation.to_users, rows()) for rows in halo_rows]
        for rows in users:
            rows.addcmul_(ctx.loops[0], user_rows)
        sums = own_sums()
        items = [torch.addcmul(sums, ctx.loops[1], table) for table in item_tables[1:]]
        return *users, sums.addcmul_(ctx.loops[1], item_tables[0]), *items

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        graph, halo = ctx.graph, ctx.relation.messages
        to_users, to_items = ctx.relation.to_items.reversed, ctx.relation.to_users.reversed
        user_grads, item_grads = gradients[: len(gradients) // 2], gradients[len(gradients) // 2 :]
        halo_rows = halo.start_extend(reduce(torch.add, item_grads))
        own_sums = [halo.start_fold(graph.neighbor_sum(to_items, gradient)) for gradient in user_grads]
        users = graph.neighbor_sum(to_users, halo_rows()).addcmul_(ctx.loops[0], reduce(torch.add, user_grads))
        items = [sums().addcmul_(ctx.loops[1], gradient) for sums, gradient in zip(own_sums, item_grads, strict=True)]
        return None, None, None, users, *items


class _PropagateTo(torch.autograd.Function):
    """Some rows of ``_Propagate``; backward, the same edges reversed."""

    @staticmethod
    def forward(
        ctx: Any, user_rows: Tensor, item_rows: Tensor, targets: Targets, with_input: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.targets, ctx.loops = targets, (targets.user_loop + int(with_input), targets.item_loop + int(with_input))
        halo_rows = targets.item_sources.start_extend(item_rows)
        own_sums = targets.item_targets.start_fold(targets.to_items.neighbor_sum(user_rows))
        users = targets.to_users.neighbor_sum(halo_rows()).addcmul_(
            ctx.loops[0], user_rows.index_select(0, targets.at[0])
        )
        items = own_sums().addcmul_(ctx.loops[1], item_rows.index_select(0, targets.at[1]))
        return users, items

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        targets: Targets = ctx.targets
        halo_rows = targets.item_targets.start_extend(gradients[1])
        own_sums = targets.item_sources.start_fold(targets.to_users.reversed.neighbor_sum(gradients[0]))
        users = targets.to_items.reversed.neighbor_sum(halo_rows())
        users.index_add_(0, targets.at[0], ctx.loops[0] * gradients[0])
        items = own_sums().index_add_(0, targets.at[1], ctx.loops[1] * gradients[1])
        return users, items, None, None


class _PropagateToUsers(torch.autograd.Function):
    """The user rows of ``_Propagate``; the backward pass sends their gradients to the items."""

    @staticmethod
    def forward(ctx: Any, user_rows: Tensor, item_rows: Tensor, graph: HeteroGraph, relation: Relation) -> Tensor:
        ctx.graph, ctx.relation = graph, relation
        users = graph.neighbor_sum(relation.to_users, relation.messages.extend(item_rows))
        return users.addcmul_(relation.user_loop, user_rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        relation: Relation = ctx.relation
        own_sums = relation.messages.start_fold(ctx.graph.neighbor_sum(relation.to_users.reversed, gradients[0]))
        user_grad = relation.user_loop * gradients[0]
        return user_grad, own_sums(), None, None


class _Half(torch.autograd.Function):
    """Rows of one side summed at the other; the backward pass goes the same way back."""

    @staticmethod
    def forward(ctx: Any, graph: HeteroGraph, relation: Relation, to_users: bool, rows: Tensor) -> Tensor:
        ctx.graph, ctx.relation, ctx.to_users = graph, relation, to_users
        if to_users:
            return graph.neighbor_sum(relation.to_users, relation.messages.extend(rows))
        return relation.messages.fold(graph.neighbor_sum(relation.to_items, rows))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, Tensor]:
        graph, relation = ctx.graph, ctx.relation
        if ctx.to_users:
            back = graph.neighbor_sum(relation.to_users.reversed, gradients[0])
            return None, None, None, relation.messages.fold(back)
        back = graph.neighbor_sum(relation.to_items.reversed, relation.messages.extend(gradients[0]))
        return None, None, None, back
