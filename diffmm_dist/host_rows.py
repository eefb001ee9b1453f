"""Tables that stay in main memory: a device that has no room for one gets it a block at a time.

The block after the present one is on its way meanwhile: on a GPU from pinned memory, on a stream of its own, into the
buffer that is not in use. Streams wait for one another; the host waits for neither.

Shape suffixes: N rows, F columns, D columns of a product, b rows of a block.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 22
BUFFER_BYTES = 2 * _BLOCK_ELEMENTS * 4  # of float32 on the device; a table of fewer elements needs less


@dataclass(frozen=True, eq=False)
class HostRows:
    """Rows in main memory, and the device that computes with them.

    Attributes:
        rows_NF: (N, F), pinned if the device is a GPU.
        device: where blocks go.
    """

    rows_NF: Tensor
    device: torch.device

    @classmethod
    def of(cls, rows_NF: Tensor, device: torch.device) -> "HostRows":
        """Return rows for a device."""
        return cls(rows_NF.pin_memory() if device.type == "cuda" else rows_NF, device)

    @property
    def shape(self) -> torch.Size:
        """(N, F)."""
        return self.rows_NF.shape

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows."""
        return self.rows_NF.dtype

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the place of each block and the block on the device (b, F), which is another one later."""
        num_rows, width = self.shape
        step = max(1, _BLOCK_ELEMENTS // max(width, 1))
        places = [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
        if self.device.type == "cpu":
            yield from ((place, self.rows_NF[place]) for place in places)
            return
        buffers = _Buffers(self, min(step, num_rows))
        for number, place in enumerate(places):
            for coming in range(0 if number == 0 else number + 1, min(number + 2, len(places))):
                buffers.fetch(coming, places[coming])
            yield place, buffers.fetched(number, place)
            buffers.used(number)


class _Queues:
    """What a GPU does in order: copies on a stream of their own, and all that computes."""

    def __init__(self, buffers: Tensor) -> None:
        self._device = buffers.device
        self._copies = torch.cuda.Stream(self._device)
        self._copies.wait_stream(torch.cuda.current_stream(self._device))  # what had the buffers' memory before
        buffers.record_stream(self._copies)

    def copying(self) -> AbstractContextManager[Any]:
        """Have what is called inside come behind the copies before it."""
        return torch.cuda.stream(self._copies)

    def copied(self) -> torch.cuda.Event:
        """Return what says that all copies so far are done."""
        event: torch.cuda.Event = self._copies.record_event()
        return event

    def computed(self) -> torch.cuda.Event:
        """Return what says that all that has been queued besides is done."""
        event: torch.cuda.Event = torch.cuda.current_stream(self._device).record_event()
        return event


class _Buffers:
    """Two blocks on a device, which are filled and used in turns."""

    def __init__(self, table: HostRows, num_rows: int) -> None:
        self._rows = table.rows_NF
        buffers = self._rows.new_empty(2, num_rows, self._rows.shape[1], device=table.device)
        self._blocks = buffers.unbind()
        self._queues = _Queues(buffers) if table.device.type == "cuda" else None
        self._arrived: list[torch.cuda.Event | None] = [None, None]
        self._free: list[torch.cuda.Event | None] = [None, None]

    def fetch(self, number: int, place: slice) -> None:
        """Begin to copy rows as the block of a number, behind what uses the block that is two before it."""
        which, queues = number % 2, self._queues
        with nullcontext() if queues is None else queues.copying():
            _wait_for(self._free[which])
            self._blocks[which][: place.stop - place.start].copy_(self._rows[place], non_blocking=True)
            if queues is not None:
                self._arrived[which] = queues.copied()

    def fetched(self, number: int, place: slice) -> Tensor:
        """Return the block; what is queued from now on comes behind its copy."""
        which = number % 2
        _wait_for(self._arrived[which])
        return self._blocks[which][: place.stop - place.start]

    def used(self, number: int) -> None:
        """Say that all that uses the block is queued."""
        if self._queues is not None:
            self._free[number % 2] = self._queues.computed()


def _wait_for(event: torch.cuda.Event | None) -> None:
    """Have the present stream wait."""
    if event is not None:
        event.wait()


Table = Tensor | HostRows  # rows wherever they are


def product(rows: Table, weight_FD: Tensor) -> Tensor:
    """Return rows times a matrix, (N, D); the gradient of the matrix reads the rows once more."""
    if isinstance(rows, Tensor):
        return rows @ weight_FD
    found: Tensor = _Product.apply(weight_FD, rows)  # type: ignore[no-untyped-call, unused-ignore]
    return found


@torch.no_grad()
def transposed_product(left_ND: Tensor, rows: Table) -> Tensor:
    """Return left^T rows, (D, F), without gradient."""
    if isinstance(rows, Tensor):
        return left_ND.T @ rows
    out_DF = left_ND.new_zeros(left_ND.shape[1], rows.shape[1])
    for place, block_bF in rows.blocks():
        out_DF.addmm_(left_ND[place].T, block_bF)
    return out_DF


def blocks_of(rows: Table) -> Iterator[Tensor]:
    """Yield the rows in blocks, on their device; a block is another one later."""
    if isinstance(rows, HostRows):
        yield from (block for _, block in rows.blocks())
        return
    step = max(1, _BLOCK_ELEMENTS // max(rows.shape[1], 1))
    yield from rows.split(step)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_FD: Tensor, rows: HostRows) -> Tensor:
        ctx.rows = rows
        out_ND = weight_FD.new_empty(rows.shape[0], weight_FD.shape[1])
        for place, block_bF in rows.blocks():
            torch.mm(block_bF, weight_FD, out=out_ND[place])
        return out_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows: HostRows = ctx.rows
        gradient_FD = gradients[0].new_zeros(rows.shape[1], gradients[0].shape[1])
        for place, block_bF in rows.blocks():
            gradient_FD.addmm_(block_bF.T, gradients[0][place])
        return gradient_FD, None
