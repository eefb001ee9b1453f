"""Some rows of a relation's products: what a batch reads of the last one, which few edges lead to.

As in relation.py a worker keeps the edges of its own users. Of them it takes those that lead to the users that it
reads, whose items come from their owners, and those that lead to items that any worker reads, whose sums go to their
owners. So there is a halo for each direction, of the rows that these edges touch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffmm_dist.graph.relation import Edges, Relation
from diffmm_dist.parallel.halo import Halo
from diffmm_dist.sparse import CSR

Places = tuple[Tensor | None, Tensor | None]  # some rows of users and of items, int64, each once; None for all
Counts = tuple[int, int]  # of edges that lead to some users, and to some items


@dataclass(frozen=True, eq=False)
class Targets:
    """Own users and own items of which products are read.

    Attributes:
        at: the rows, int64 local numbers of users and of items, each once.
        to_users: edges from local items to these users, numbered by their places in ``at``.
        item_sources: how these local items are reached; all own ones are among them.
        to_items: edges from own users to local items.
        item_targets: how these local items are reached: those in ``at``, then other workers' that they read.
        user_loop: weight of each such user's self loop, float32.
        item_loop: of each such item's.
    """

    at: tuple[Tensor, Tensor]
    to_users: Edges
    item_sources: Halo
    to_items: Edges
    item_targets: Halo
    user_loop: Tensor
    item_loop: Tensor

    @classmethod
    def of(cls, relation: Relation, at: Places, edges: Counts | None = None) -> "Targets | None":
        """Return these rows of a relation, None where all of them are; every worker calls it at the same time.

        Args:
            relation: the relation.
            at: the rows.
            edges: what ``edges_to_each`` says of them; None counts, for which a GPU's host waits.
        """
        users, items = at
        if users is None or items is None:
            return None
        halo = relation.messages
        to_users, to_items = (None, None) if edges is None else edges
        by_user, places = relation.to_users.by_target.select_entries(users, num_entries=to_users)
        sources, by_user = _needed(halo, by_user)
        targets, local = _read(halo, items)
        return cls(
            (users, items),
            Edges.of(by_user, relation.to_users.weights[places]),
            sources,
            relation.to_items.onto(local, num_edges=to_items),
            targets,
            relation.user_loop.index_select(0, users),
            relation.item_loop.index_select(0, items),
        )


def edges_to_each(relation: Relation, rows: Sequence[Places]) -> list[Counts | None]:
    """Return how many edges lead to each of several selections of rows, for which a GPU's host waits once.

    None stands for what is not known before other workers' items are: in a relation of several workers.
    """
    if relation.halo.world.size > 1:
        return [None] * len(rows)
    degrees = relation.to_users.by_target.row_counts, relation.to_items.by_target.row_counts
    sums = [degree[of_side].sum() for both in rows for degree, of_side in zip(degrees, both, strict=True)]
    counts: list[Counts] = list(map(tuple, torch.stack(sums).view(-1, 2).tolist()))
    return [*counts]


def _needed(halo: Halo, by_user: CSR) -> tuple[Halo, CSR]:
    """Return the halo of the local items that edges come from, and the edges with these numbered by it."""
    if halo.world.size == 1:
        return halo, by_user
    touched = torch.zeros(halo.num_local, dtype=torch.bool, device=halo.send_rows.device)
    touched[by_user.indices] = True
    touched[: halo.num_inner] = True  # own rows keep their numbers
    needed = touched[halo.num_inner :]
    narrow = halo.narrowed(needed, halo.told_owners(needed))
    numbers = touched.cumsum(0) - 1
    return narrow, replace(by_user, indices=numbers[by_user.indices], num_columns=narrow.num_local)


def _read(halo: Halo, items: Tensor) -> tuple[Halo, Tensor]:
    """Return the halo of items that any worker reads, own ones numbered by their places, and their local numbers."""
    if halo.world.size == 1:
        return replace(halo, num_inner=items.numel()), items
    places = items.new_full((halo.num_inner,), -1)
    places[items] = torch.arange(items.numel(), device=items.device)
    given = places[halo.send_rows] >= 0
    needed = halo.told_readers(given)
    narrow = halo.narrowed(needed, given)
    narrow = replace(narrow, num_inner=items.numel(), send_rows=places[narrow.send_rows])
    return narrow, torch.cat([items, torch.nonzero(needed)[:, 0] + halo.num_inner])
