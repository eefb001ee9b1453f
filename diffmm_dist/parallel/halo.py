"""Halo rows: what a worker needs of rows that others own, and the way back of what it adds to them.

A worker numbers the rows that it touches locally: its own ("inner") rows first, then its halo rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.parallel.collectives import exchange_counts, exchange_rows, start_exchange
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
    own = ownership.own
    if world.size == 1:
        none = rows.new_empty(0)
        return Halo(world, own.size, none, [0], none, [0], purpose), rows
    inside = (rows >= own.start) & (rows < own.stop)
    halo_ids = torch.unique(rows[~inside])
    owners = torch.bincount(ownership.owner_of(halo_ids), minlength=world.size)
    wanted = exchange_counts(owners, world)
    receive_counts, send_counts = owners.tolist(), wanted.tolist()
    send_ids = exchange_rows(halo_ids, receive_counts, send_counts, world, purpose=f"{purpose}_plan")
    halo = Halo(world, own.size, halo_ids, receive_counts, send_ids - own.start, send_counts, purpose)
    return halo, torch.where(inside, rows - own.start, torch.searchsorted(halo_ids, rows) + own.size)


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
