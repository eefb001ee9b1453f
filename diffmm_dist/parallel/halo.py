"""Halo rows: what a worker needs of rows that others own, and the way back of what it adds to them.

A worker numbers the rows that it touches locally: its own ("inner") rows first, then its halo rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.parallel.collectives import exchange_counts, exchange_each, exchange_rows, start_exchange
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World


@dataclass(frozen=True, eq=False)
class Halo:
    """A plan to fetch rows from their owners, used as often as wanted.

    Attributes:
        world: the workers.
        num_inner: rows that this worker owns.
        global_ids: the halo rows, ascending and so in the order of their owners, int64 (H,).
        receive_counts: halo rows that each worker owns.
        send_rows: own rows that other workers need, local, in the order of these workers, int64 (S,).
        send_counts: own rows that each worker needs.
        purpose: what the traffic is counted under.
        dtype: as what rows travel, and are rounded to; None sends them as they are. What a worker reads of its own rows
            is never rounded, so an owner and those that read its row see it a little differently: no two workers may
            compute the same thing from it and rely on the same bits.
    """

    world: World
    num_inner: int
    global_ids: Tensor
    receive_counts: list[int]
    send_rows: Tensor
    send_counts: list[int]
    purpose: str
    dtype: torch.dtype | None = None

    def sending(self, dtype: torch.dtype | None) -> "Halo":
        """Return the same plan for rows that travel as a type."""
        return replace(self, dtype=dtype)

    def told_owners(self, needed: Tensor) -> Tensor:
        """Tell owners which of their rows are needed, bool (H,); return which of ``send_rows`` are, bool (S,)."""
        return self._told(needed, self.receive_counts, self.send_counts)

    def told_readers(self, given: Tensor) -> Tensor:
        """Tell readers which of ``send_rows`` are given, bool (S,); return which halo rows are, bool (H,)."""
        return self._told(given, self.send_counts, self.receive_counts)

    def _told(self, flags: Tensor, send: list[int], receive: list[int]) -> Tensor:
        told = exchange_rows(flags.to(torch.uint8), send, receive, self.world, purpose=f"{self.purpose}_plan")
        return told.to(torch.bool)

    def narrowed(self, needed: Tensor, given: Tensor) -> "Halo":
        """Return the plan of some halo rows alone, bool (H,), of which owners know that they give them, bool (S,)."""
        return replace(
            self,
            global_ids=self.global_ids[needed],
            receive_counts=_kept(needed, self.receive_counts),
            send_rows=self.send_rows[given],
            send_counts=_kept(given, self.send_counts),
        )

    @property
    def num_local(self) -> int:
        """Inner and halo rows."""
        return self.num_inner + self.global_ids.numel()

    def extend(self, inner: Tensor) -> Tensor:
        """Return inner rows (num_inner, ...) followed by their halo rows: (num_local, ...)."""
        return self.start_extend(inner)()

    def fold(self, local: Tensor) -> Tensor:
        """Return inner rows with what every worker's halo holds of them added: the transpose of ``extend``."""
        return self.start_fold(local)()

    def start_extend(self, inner: Tensor) -> Callable[[], Tensor]:
        """Begin ``extend``; the returned function finishes it, so that work can be done in between."""
        if self.world.size == 1:
            return lambda: inner
        received = self._start(inner[self.send_rows], self.send_counts, self.receive_counts)
        return lambda: torch.cat([inner, received()])

    def start_fold(self, local: Tensor) -> Callable[[], Tensor]:
        """Begin ``fold``; the returned function finishes it."""
        if self.world.size == 1:
            return lambda: local
        inner, halo = local[: self.num_inner], local[self.num_inner :]
        received = self._start(halo, self.receive_counts, self.send_counts)
        return lambda: inner.index_add(0, self.send_rows, received())

    def _start(self, rows: Tensor, send: list[int], receive: list[int]) -> Callable[[], Tensor]:
        return start_exchange(rows, send, receive, self.world, purpose=self.purpose, dtype=self.dtype)


def _kept(flags: Tensor, counts: list[int]) -> list[int]:
    """Return how many flags are set of each worker's, which stand one worker's after the other's."""
    kept: list[int] = torch.stack([part.sum() for part in flags.split(counts)]).tolist()
    return kept


def localize(rows: Tensor, ownership: Ownership, world: World, *, purpose: str) -> tuple[Halo, Tensor]:
    """Plan how to reach rows anywhere; every worker calls it at the same time.

    Args:
        rows: int64, global rows with repeats.
        ownership: of these rows.
        world: the workers.
        purpose: what the traffic is counted under.

    Returns:
        The plan, and the local number of each row, of the shape of ``rows``.
    """
    return localize_each([rows], ownership, world, purpose=purpose)[0]


def localize_each(
    wanted: Sequence[Tensor], ownership: Ownership, world: World, *, purpose: str
) -> list[tuple[Halo, Tensor]]:
    """Plan how to reach each of several sets of rows, as ``localize`` does, with the exchanges of one."""
    own = ownership.own
    if world.size == 1:
        nothing = [rows.new_empty(0) for rows in wanted]
        halos = [Halo(world, own.size, none, [0], none, [0], purpose) for none in nothing]
        return list(zip(halos, wanted, strict=True))
    inside = [(rows >= own.start) & (rows < own.stop) for rows in wanted]
    halo_ids = [torch.unique(rows[~within]) for rows, within in zip(wanted, inside, strict=True)]
    owners = [torch.bincount(ownership.owner_of(ids), minlength=world.size) for ids in halo_ids]
    receive = torch.stack(owners, dim=1).cpu()
    send_counts: list[list[int]] = exchange_counts(receive, world).T.tolist()
    receive_counts: list[list[int]] = receive.T.tolist()
    asked = exchange_each(halo_ids, receive_counts, send_counts, world, purpose=f"{purpose}_plan")
    plans = []
    for place, (rows, within, ids) in enumerate(zip(wanted, inside, halo_ids, strict=True)):
        send_rows = asked[place] - own.start
        halo = Halo(world, own.size, ids, receive_counts[place], send_rows, send_counts[place], purpose)
        plans.append((halo, torch.where(within, rows - own.start, torch.searchsorted(ids, rows) + own.size)))
    return plans


def returned_each(halos: Sequence[Halo], halo_rows: Sequence[Tensor]) -> list[Tensor]:
    """Send halo rows of each plan (H, ...) back to their owners, with one exchange; return what ``send_rows`` get."""
    receive, send = [halo.receive_counts for halo in halos], [halo.send_counts for halo in halos]
    return exchange_each(halo_rows, receive, send, halos[0].world, purpose=halos[0].purpose)


def extended(inner: Tensor, halo: Halo) -> Tensor:
    """Return ``halo.extend(inner)`` with autograd: the gradients of halo rows go back to their owners."""
    if halo.world.size == 1:
        return inner
    rows: Tensor = _Extend.apply(inner, halo)  # type: ignore[no-untyped-call, unused-ignore]
    return rows


class _Extend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner: Tensor, halo: Halo) -> Tensor:
        ctx.halo = halo
        return halo.extend(inner)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        halo: Halo = ctx.halo
        return halo.fold(gradients[0]), None
