"""The messages of an Arrow IPC file one after the other, and what they say of themselves, before Arrow acts on it.

Arrow's reader takes as much memory as a compressed buffer says that it needs, and says so to nobody before. So the few
numbers of a message that lead to memory are read here, from the tables of FlatBuffers in which they stand.
"""

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import pyarrow as pa

_MAGIC = b"ARROW1\0\0"
_SCHEMA, _DICTIONARY, _RECORD_BATCH = 1, 2, 3
_BLOCK = "<qiiq"  # of a footer: where a message lies, and how long its parts are
_MOST_ROWS, _ROWS_PER_BYTE = 1 << 20, 1000  # of one message of anybody's: so many, or so many for each byte of the file
_MOST_BYTES = 64 << 20
_PADDING = 64  # bytes that a buffer may have behind its values
_EXPLAINED = 64 << 10  # bytes of text that a buffer of any size may hold,
_TEXT_PER_BYTE = 1000  # and more of them for each byte of it


class MalformedError(ValueError):
    """Messages are not what they must be; the text says in which respect."""


class Seekable(Protocol):
    """The file."""

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        ...

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place and return it."""
        ...


class Message(NamedTuple):
    """One message whose body has not been read yet.

    Attributes:
        file: where it lies.
        place: of the body.
        framed: its metadata, as it stands in the file.
        table: in the metadata.
        size: of the body in bytes.
    """

    file: Seekable
    place: int
    framed: bytes
    table: "_Table"
    size: int

    @property
    def is_schema(self) -> bool:
        """Whether it is the schema."""
        return self.table.number(1, "<B") == _SCHEMA

    @property
    def rows(self) -> int:
        """How many rows a record batch says that it has."""
        if self.table.number(1, "<B") != _RECORD_BATCH:
            raise MalformedError("it holds something else than record batches")
        return self.table.table(2).number(0, "<q")

    def read(self) -> pa.Buffer:
        """Return the whole message."""
        self.file.seek(self.place)
        return pa.py_buffer(self.framed + _exactly(self.file, self.size))

    def place_of_last_buffer(self) -> int | None:
        """Return where the last buffer of a checked record batch begins in the file, None if it is compressed."""
        batch = self.table.table(2)
        return None if batch.has(3) else self.place + batch.structs(2, "<qq")[-1][0]

    def sizes(self) -> tuple[int, int]:
        """Return how many rows a message of any kind has, and how many bytes its compressed buffers say they hold."""
        kind = self.table.number(1, "<B")
        if kind not in (_DICTIONARY, _RECORD_BATCH):
            return 0, 0
        batch = self.table.table(2) if kind == _RECORD_BATCH else self.table.table(2).table(1)
        size = 0
        for start, length in batch.structs(2, "<qq") if batch.has(3) else ():
            if length >= 8:
                self.file.seek(self.place + max(0, min(start, self.size)))
                size += max(0, int.from_bytes(_exactly(self.file, 8), "little", signed=True))
        return batch.number(0, "<q"), size

    def check(self, data: pa.Buffer, schema: pa.Schema) -> None:
        """Raise a ``MalformedError`` unless a record batch's buffers hold no more than its rows need.

        Args:
            data: the whole message.
            schema: of the record batch.
        """
        batch = self.table.table(2)
        is_compressed = batch.has(3)
        body = memoryview(data)[len(self.framed) :]
        buffers = batch.structs(2, "<qq")
        limits = [limit for kind in schema.types for limit in _limits(kind, self.rows)]
        if len(buffers) != len(limits):
            raise MalformedError(f"it holds a record batch of {len(buffers)} buffers where {len(limits)} are expected")
        for (start, length), limit in zip(buffers, limits, strict=True):
            if not 0 <= start <= start + length <= len(body):
                raise MalformedError("it holds a record batch whose buffers lie outside of it")
            if is_compressed and length >= 8:
                (size,) = struct.unpack_from("<q", body, start)
                most = max(_EXPLAINED, _TEXT_PER_BYTE * length) if limit is None else limit + _PADDING
                if size > most or size < -1:
                    raise MalformedError(f"it holds a compressed buffer of {size:,} bytes where {most:,} are the most")


def messages(file: Seekable) -> Iterator[Message]:
    """Yield the messages of a file that holds one after the other, as ours do.

    Raises:
        MalformedError: this is no file of messages, or it ends too early.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC:
        raise MalformedError("it does not begin as an Arrow file does")
    yield from _following(file, len(_MAGIC), end)


def _message(file: Seekable, place: int, end: int) -> Message | None:
    """Return the message at a place, None if the last one came before."""
    file.seek(place)
    frame = _exactly(file, 8)
    mark, length = struct.unpack("<Ii", frame)
    if mark != 0xFFFF_FFFF or not 0 <= length <= end - place:
        raise MalformedError("it holds something else than messages")
    if length == 0:
        return None
    metadata = _exactly(file, length)
    table = _Table.root(metadata)
    size = table.number(3, "<q")
    body = place + len(frame) + length
    if not 0 <= size <= end - body:
        raise MalformedError("it ends inside a message")
    return Message(file, body, frame + metadata, table, size)


def check_sizes(file: Seekable) -> None:
    """Raise a ``MalformedError`` for a file or a stream of anybody's that says it is much larger than it is."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_file = file.read(6) == _MAGIC[:6]
    for message in _in_footer(file, end) if is_file else _following(file, 0, end, marked=False):
        rows, size = message.sizes()
        if rows > max(_MOST_ROWS, _ROWS_PER_BYTE * end) or size > max(_MOST_BYTES, _TEXT_PER_BYTE * end):
            raise MalformedError(f"it says that {end:,} bytes hold {rows:,} rows of {size:,} bytes; save it anew")


def _in_footer(file: Seekable, end: int) -> Iterator[Message]:
    """Yield the record batches and dictionaries that the end of a file names."""
    file.seek(max(0, end - 10))
    length = int.from_bytes(_exactly(file, 10)[:4], "little")
    if length > end - 10:
        raise MalformedError("its end is missing")
    file.seek(end - 10 - length)
    footer = _Table.root(_exactly(file, length))
    for field in (2, 3):
        for place, *_ in footer.structs(field, _BLOCK) if footer.has(field) else ():
            message = _message(file, place, end) if 0 <= place < end else None
            if message is None:
                raise MalformedError("its end names messages that are not there")
            yield message


def _following(file: Seekable, place: int, end: int, *, marked: bool = True) -> Iterator[Message]:
    """Yield messages from a place on, up to the mark of the end, or of the file if there need not be one."""
    while (marked or place < end) and (message := _message(file, place, end)):
        yield message
        place = message.place + message.size


def _limits(kind: pa.DataType, rows: int) -> Iterator[int | None]:
    """Yield how many bytes each buffer of a column needs at the most, None for those of text."""
    yield rows // 8 + 1
    if pa.types.is_fixed_size_list(kind):
        yield from _limits(kind.value_type, rows * kind.list_size)
    elif pa.types.is_string(kind):
        yield from (4 * (rows + 1), None)
    else:
        yield rows * kind.bit_width // 8


def _exactly(file: Seekable, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise MalformedError("it ends inside a message")
    return bytes(data)  # on S3 it is a view of a block


class _Table(NamedTuple):
    """A table of FlatBuffers: at its start, how far before it a list of the places of its fields lies."""

    data: bytes
    start: int

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, _number(data, 0, "<I"))

    def _place(self, field: int) -> int | None:
        fields = self.start - _number(self.data, self.start, "<i")
        if 4 + 2 * field >= _number(self.data, fields, "<H"):
            return None
        offset = _number(self.data, fields + 4 + 2 * field, "<H")
        return self.start + offset if offset else None

    def has(self, field: int) -> bool:
        return self._place(field) is not None

    def number(self, field: int, form: str) -> int:
        """Return a number, 0 where none stands."""
        place = self._place(field)
        return 0 if place is None else _number(self.data, place, form)

    def table(self, field: int) -> "_Table":
        return _Table(self.data, self._followed(field))

    def structs(self, field: int, form: str) -> list[tuple[int, ...]]:
        """Return a list of numbers that stand together."""
        place, size = self._followed(field), struct.calcsize(form)
        count = _number(self.data, place, "<I")
        if place + 4 + count * size > len(self.data):
            raise MalformedError("it holds metadata that leads elsewhere")
        return list(struct.iter_unpack(form, self.data[place + 4 : place + 4 + count * size]))

    def _followed(self, field: int) -> int:
        place = self._place(field)
        if place is None:
            raise MalformedError("it holds metadata without what belongs there")
        return place + _number(self.data, place, "<I")


def _number(data: bytes, place: int, form: str) -> int:
    if not 0 <= place <= len(data) - struct.calcsize(form):
        raise MalformedError("it holds metadata that leads elsewhere")
    (number,) = struct.unpack_from(form, data, place)
    return int(number)
