"""Items and their contents, in blocks that are made, kept and taken up again as wholes."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

ITEMS_PER_BLOCK = 512
_NAMED = 3


@dataclass(frozen=True)
class Damage:
    """A content that counts for nothing.

    Attributes:
        name: of the file, or the item.
        reason: why.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Content:
    """One of the contents of an item.

    Attributes:
        name: of the file within its folder; empty for a text.
        value: the text, or the file's address.
        version: what tells the file as it is from what it was; empty for a text.
    """

    name: str
    value: str
    version: str = ""


@dataclass(frozen=True)
class Block:
    """Some items in the order of the source.

    Attributes:
        number: of the block, from 0.
        ids: of the items, int64 or string.
        contents: of each item, one or more.
    """

    number: int
    ids: pa.Array
    contents: Sequence[Sequence[Content]]

    def fingerprint(self) -> str:
        """Return a hash of what the block's features are made of, in hexadecimal."""
        parts = [self.ids.to_pylist(), [[(one.name or one.value, one.version) for one in of] for of in self.contents]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Source(Protocol):
    """Where items and their contents are.

    Attributes:
        notes: sentences about what might surprise.
        damaged: what is known to count for nothing before any content is read.
        num_items: that have contents.
        id_type: int64 or string.
    """

    notes: list[str]
    damaged: list[Damage]
    num_items: int
    id_type: pa.DataType

    def scan(self) -> None:
        """Find out what there is."""
        ...

    def blocks(self) -> Iterator[Block]:
        """Yield the items in blocks, once they have been looked for."""
        ...


def told(damaged: Sequence[Damage]) -> str:
    """Return a phrase that counts what is damaged and names the first few."""
    first = "; ".join(f"{one.name}: {one.reason}" for one in damaged[:_NAMED])
    return f"{len(damaged):,}, such as {first}" if len(damaged) > _NAMED else f"{len(damaged):,} ({first})"


def examples(names: Iterable[object]) -> str:
    """Return the first few of some names for a sentence."""
    return ", ".join(repr(name) for name, _ in zip(names, range(_NAMED), strict=False))
