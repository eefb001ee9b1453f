"""Sums, agreements and exchanges over all workers; each is the identity in a world of one.

Every call adds what this worker sends to ``world.sent_bytes`` under a purpose, and 1 to ``world.exchanges``: an
exchange the rows that leave for other workers, a broadcast its rows once for each receiver, and a sum of n bytes
2 n (W - 1) / W, which is what the ring algorithm sends.

What the host goes on to read, counts and votes, lies in its own memory and goes over Gloo, so that no GPU is waited
for; rows lie on the device and go over NCCL where that is a GPU (group.py).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffmm_dist.errors import LostWorkerError, TakenOverError, TryAgainError, UserError, may_pass, one_line
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World

T = TypeVar("T")
CONTROL = "control"  # counts, votes and metrics: a few numbers at a time


def _together(operation: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Run one of torch's collectives, which raises whatever its backend does when a worker is gone or too late."""
    try:
        return operation(*arguments, **options)
    except RuntimeError as error:
        raise LostWorkerError(one_line(error)) from error


def _count(world: World, purpose: str, num_bytes: int) -> None:
    """Count one message or sum, and the bytes of it that this worker sends."""
    world.sent_bytes[purpose] += num_bytes
    world.exchanges[purpose] += 1


def all_reduce_sum(tensor: Tensor, world: World, *, purpose: str = CONTROL) -> Tensor:
    """Return the elementwise sum of every worker's tensor; the input is left as it is."""
    if world.size == 1:
        return tensor
    return all_reduce_sum_(tensor.clone(), world, purpose=purpose)


def all_reduce_sum_each(tensors: Sequence[Tensor], world: World, *, purpose: str = CONTROL) -> list[Tensor]:
    """Return the sum of every worker's tensor for each of several of one type, with one exchange."""
    if world.size == 1:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    parts = all_reduce_sum_(flat, world, purpose=purpose).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def all_reduce_sum_(tensor: Tensor, world: World, *, purpose: str = CONTROL) -> Tensor:
    """Replace a contiguous tensor by the elementwise sum of every worker's, and return it."""
    if world.size > 1 and tensor.numel():
        _together(dist.all_reduce, tensor, group=world.group)
        _count(world, purpose, ring_bytes(tensor.numel() * tensor.element_size(), world.size))
    return tensor


def ring_bytes(num_bytes: int, num_workers: int) -> int:
    """Return what each worker sends when ``num_bytes`` are summed over a ring of workers."""
    return 2 * num_bytes * (num_workers - 1) // num_workers


def all_reduce_max(value: float, world: World) -> float:
    """Return the largest of every worker's value."""
    if world.size == 1:
        return value
    return float(all_reduce_largest(torch.tensor(value, dtype=torch.float64), world))


def all_reduce_largest(tensor: Tensor, world: World) -> Tensor:
    """Return the elementwise largest of every worker's tensor; the input is left as it is."""
    if world.size == 1:
        return tensor
    largest = tensor.clone()
    _together(dist.all_reduce, largest, op=dist.ReduceOp.MAX, group=world.group)
    _count(world, CONTROL, 0)
    return largest


def any_worker(flag: bool, world: World) -> bool:
    """Return whether any worker says yes, the same answer on all."""
    return all_reduce_max(float(flag), world) > 0


def agree(check: Callable[[], T], world: World) -> T:
    """Return ``check()``, or raise on every worker if it fails with one of our errors on any.

    Without it the workers that found nothing wrong would wait for the one that did.
    """
    error: UserError | TakenOverError | None = None
    try:
        value = check()
    except (UserError, TakenOverError) as caught:
        error = caught
    worst = all_reduce_max(_rank(error), world)
    if worst:
        kind, text = _FROM_ANOTHER[worst]
        raise error if error is not None and _rank(error) == worst else kind(text)
    return value


def _rank(error: Exception | None) -> float:
    """Return how final an error is."""
    if error is None:
        return 0.0
    return 3.0 if isinstance(error, TakenOverError) else 1.0 if may_pass(error) else 2.0


_FROM_ANOTHER: dict[float, tuple[type[Exception], str]] = {
    1.0: (TryAgainError, "another worker got no answer that it needs; its message says from what"),
    2.0: (UserError, "another worker has found something wrong; its message says what"),
    3.0: (TakenOverError, "another process has taken the run over; the first worker's message says which"),
}


def on_first(action: Callable[[], object], world: World) -> None:
    """Do something on the first worker alone, or raise on every worker if it fails there with a ``UserError``."""
    agree(action if world.is_first else lambda: None, world)


def send_to_owners(rows: Tensor, owners: Tensor, world: World, *, purpose: str) -> Tensor:
    """Return the rows of all workers that are for this one, in the order of who sends them.

    Args:
        rows: (n, ...).
        owners: the worker that each is for, int64 (n,).
        world: the workers.
        purpose: what the bytes are counted under.
    """
    if world.size == 1:
        return rows
    rows = rows[torch.argsort(owners, stable=True)]
    send = torch.bincount(owners, minlength=world.size).cpu()
    receive = exchange_counts(send, world)
    return exchange_rows(rows, send.tolist(), receive.tolist(), world, purpose=purpose)


def worker_counts(count: int, world: World) -> list[int]:
    """Return every worker's count, in the order of ranks."""
    return worker_counts_each([count], world)[0]


def worker_counts_each(counts: Sequence[int], world: World) -> list[list[int]]:
    """Return every worker's number of each of several counts, in the order of ranks, with one exchange."""
    if world.size == 1:
        return [[count] for count in counts]
    of_workers = torch.zeros(len(counts), world.size, dtype=torch.int64)
    of_workers[:, world.rank] = torch.tensor(counts)
    numbers: list[list[int]] = all_reduce_sum_(of_workers, world).tolist()
    return numbers


def gather_rows(own: Tensor, counts: Sequence[int], world: World, *, purpose: str) -> Tensor:
    """Return all workers' rows, one worker's after the other's.

    Args:
        own: this worker's rows, (counts[rank], ...).
        counts: rows of each worker.
        world: the workers.
        purpose: what the bytes are counted under.
    """
    if world.size == 1:
        return own
    whole = own.new_empty(sum(counts), *own.shape[1:])
    parts = whole.split(list(counts))
    parts[world.rank].copy_(own)
    for rank, part in enumerate(parts):
        _broadcast_(part, rank, world, purpose=purpose)
    return whole


def broadcast_rows(own: Tensor, source: int, count: int, world: World, *, purpose: str) -> Tensor:
    """Return the rows of one worker, on every worker.

    Args:
        own: this worker's rows; those of the worker ``source`` are sent.
        source: whose rows.
        count: how many they are.
        world: the workers.
        purpose: what the bytes are counted under.
    """
    mine = source == world.rank
    rows = own.contiguous() if mine else own.new_empty(count, *own.shape[1:])
    return _broadcast_(rows, source, world, purpose=purpose)


def _broadcast_(rows: Tensor, source: int, world: World, *, purpose: str) -> Tensor:
    """Fill a contiguous tensor with that of the worker ``source``, and return it."""
    if rows.numel() and world.size > 1:
        _together(dist.broadcast, rows, group=world.group, group_src=source)
        sent = rows.numel() * rows.element_size() * (world.size - 1)
        _count(world, purpose, sent if source == world.rank else 0)
    return rows


def gather_owned(own: Tensor, ownership: Ownership, world: World, *, purpose: str) -> Tensor:
    """Return all rows ``0 .. total - 1`` from each worker's own."""
    return gather_rows(own, ownership.sizes, world, purpose=purpose)


def exchange_counts(send_counts: Tensor, world: World) -> Tensor:
    """Tell every worker how many rows it is going to get; return how many come from each, int64 (W, ...), as given.

    The host has to know them, so they are given in its memory.
    """
    receive_counts = torch.empty_like(send_counts)
    _together(dist.all_to_all_single, receive_counts, send_counts, group=world.group)
    _count(world, CONTROL, (world.size - 1) * send_counts[0].numel() * send_counts.element_size())
    return receive_counts


def start_exchange(
    rows: Tensor,
    send_counts: Sequence[int],
    receive_counts: Sequence[int],
    world: World,
    *,
    purpose: str,
    dtype: torch.dtype | None = None,
) -> Callable[[], Tensor]:
    """Begin to send rows to their workers; the returned function waits for the rows that come in and returns them.

    Args:
        rows: (sum(send_counts), ...), in the order of ranks.
        send_counts: rows for each worker.
        receive_counts: rows from each worker.
        world: the workers; of one, its own rows are what comes in.
        purpose: what the bytes are counted under.
        dtype: rows travel as this, rounded to the nearest, ties to even, and are what they were again where they
            arrive; those that this worker sends to itself are not rounded. None sends them as they are.
    """
    if world.size == 1:
        return lambda: rows
    sent = rows.to(dtype or rows.dtype).contiguous()
    received = sent.new_empty(sum(receive_counts), *rows.shape[1:])
    counts = list(receive_counts), list(send_counts)
    work = _together(dist.all_to_all_single, received, sent, *counts, group=world.group, async_op=True)
    leaving = sum(send_counts) - send_counts[world.rank]
    _count(world, purpose, leaving * rows[:1].numel() * sent.element_size())
    finish = partial(_finish, work, received, sent)
    if sent.dtype == rows.dtype:
        return finish
    own = rows.split(counts[1])[world.rank].clone()  # a view would keep all of them
    return partial(_restored, finish, own, sum(counts[0][: world.rank]))


def _finish(work: dist.Work, received: Tensor, sent: Tensor) -> Tensor:
    """Wait for an exchange; ``sent`` is an argument so that its rows live until they have left."""
    _together(work.wait)
    return received


def _restored(finish: Callable[[], Tensor], own: Tensor, start: int) -> Tensor:
    """Return what an exchange of rounded rows brings, in the type of the own rows, which did not leave."""
    received = finish().to(own.dtype)
    received[start : start + own.shape[0]] = own
    return received


def exchange_rows(
    rows: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int], world: World, *, purpose: str
) -> Tensor:
    """Return the rows that come in from a whole exchange, as they are; arguments as of ``start_exchange``."""
    return start_exchange(rows, send_counts, receive_counts, world, purpose=purpose)()


def exchange_each(
    rows: Sequence[Tensor],
    send_counts: Sequence[Sequence[int]],
    receive_counts: Sequence[Sequence[int]],
    world: World,
    *,
    purpose: str,
) -> list[Tensor]:
    """Return what ``exchange_rows`` brings for each of several tables of rows of one shape, with one exchange."""
    if world.size == 1:
        return list(rows)
    parts = [table.split(list(counts)) for table, counts in zip(rows, send_counts, strict=True)]
    sent = torch.cat([part[rank] for rank in range(world.size) for part in parts])
    leaving, coming = ([sum(of_rank) for of_rank in zip(*each, strict=True)] for each in (send_counts, receive_counts))
    received = exchange_rows(sent, leaving, coming, world, purpose=purpose)
    arrived = received.split([counts[rank] for rank in range(world.size) for counts in receive_counts])
    return [torch.cat(arrived[place :: len(parts)]) for place in range(len(parts))]


def gather_each(own: Sequence[Tensor], counts: Sequence[Sequence[int]], world: World, *, purpose: str) -> list[Tensor]:
    """Return ``gather_rows`` of each of several small tables with rows of one shape, with one exchange.

    What is sent stands in memory once for every worker.
    """
    if world.size == 1:
        return list(own)
    copies = [rows.repeat(world.size, *[1] * (rows.dim() - 1)) for rows in own]
    sent = [[rows.shape[0]] * world.size for rows in own]
    return exchange_each(copies, sent, counts, world, purpose=purpose)
