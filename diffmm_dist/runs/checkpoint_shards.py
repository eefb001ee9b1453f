"""A worker's rows of a table as torch.distributed.checkpoint (DCP) asks for them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from diffmm_dist.parallel.ranges import Ownership

# Says of a tensor, by its name and by its shape or that of some of its rows, who owns which of its rows; None where all
# workers have all of it.
OwnerOf = Callable[[str, Sequence[int]], Ownership | None]


def whole(_: str, __: Sequence[int]) -> None:
    """Say that every worker has all of every tensor."""


class RowShard(Tensor):
    """A worker's own rows of a table.

    Attributes:
        local: the own rows.
        ownership: of the table's rows.
    """

    local: Tensor
    ownership: Ownership

    def size(self, dim: Any = None) -> Any:
        """Return the size of the whole table."""
        return torch.Size([self.ownership.total, *self.local.shape[1:]])

    def _chunk(self) -> ChunkStorageMetadata:
        start = self.ownership.own.start
        return ChunkStorageMetadata(torch.Size([start, *(0 for _ in self.local.shape[1:])]), self.local.shape)

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        if not self.local.numel():
            return []
        chunk = self._chunk()
        data = TensorWriteData(chunk, TensorProperties.create_from_tensor(self.local), self.size())
        return [WriteItem(MetadataIndex(fqn, chunk.offsets), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()] if self.local.numel() else []

    def __get_tensor_shard__(self, _: MetadataIndex) -> Tensor:
        return self.local


def shard(local: Tensor, ownership: Ownership | None) -> Tensor:
    """Return a worker's own rows of a table as what they are to DCP; a replicated tensor stays one."""
    if ownership is None:
        return local
    assert local.shape[0] == ownership.own.size
    rows = Tensor._make_subclass(RowShard, local.detach())
    assert isinstance(rows, RowShard)
    rows.local, rows.ownership = local.detach(), ownership
    return rows


def empty(name: str, entry: Any, owner_of: OwnerOf) -> Tensor:
    """Return room for a tensor of a checkpoint, or for a worker's own rows of it.

    Raises:
        ValueError: the table has another number of rows.
    """
    assert isinstance(entry, TensorStorageMetadata)
    ownership = owner_of(name, entry.size)
    if ownership is None:
        return torch.empty(entry.size, dtype=entry.properties.dtype)
    if entry.size[0] != ownership.total:
        raise ValueError(f"it holds {entry.size[0]} rows of a table of {ownership.total}")
    return shard(torch.empty(ownership.own.size, *entry.size[1:], dtype=entry.properties.dtype), ownership)
