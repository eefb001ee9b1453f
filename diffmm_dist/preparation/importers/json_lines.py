"""Lines with a JSON object each, parsed by Arrow, which believes too much: what it is given has bounds.

Arrow's parser calls itself for every level of nesting, and makes a cell of every line and every key that any line has.
So lines are looked through first, and new keys are looked for in a few lines at a time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as json

from diffmm_dist.errors import UserError
from diffmm_dist.json_text import DEEPEST
from diffmm_dist.preparation.importers.table_schemas import UnifiedSchema, check_width, num_fields
from diffmm_dist.preparation.importers.text_source import Readable
from diffmm_dist.regular_files import size_text

LONGEST_LINE = 32 << 20
MOST_KEYS = 1 << 16  # of a line
_MOST_CELLS = 32 << 20  # of a piece that is parsed at once
_FIRST_BYTES = 16 << 10  # in which keys are looked for that nobody has seen yet
_SHORTEST_KEY = len('"":1')
_LINE_END, _BRACE, _BRACKET, _CLOSING = b"\n{[}"
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"{[")], _STEPS[list(b"}]")] = 1, -1


@dataclass(frozen=True)
class Lines:
    """Whole lines of a file.

    Attributes:
        uri: of the file, for errors.
        text: the lines.
        first: number of the first one, from 1.
    """

    uri: str
    text: bytes
    first: int

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing in them."""
        return not self.text or self.text.isspace()

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return self.text.count(b"\n") + (not self.text.endswith(b"\n"))

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """Where each line ends, behind its line break."""
        ends = np.flatnonzero(np.frombuffer(self.text, np.uint8) == _LINE_END) + 1
        return ends if self.text.endswith(b"\n") else np.append(ends, len(self.text))

    def pieces(self, num_columns: int) -> Iterator["Lines"]:
        """Yield the lines, as many at a time as so many columns leave room for."""
        most = self._most(num_columns)
        if self.count <= most:
            yield self
            return
        for start in range(0, self.count, most):
            yield self._part(start, start + most)

    def beginning(self, start: int, size: int, num_columns: int) -> "Lines":
        """Return the lines from one on that fit into so many bytes, at least one, as columns leave room for."""
        offset = int(self._ends[start - 1]) if start else 0
        stop = int(np.searchsorted(self._ends, offset + size, side="right"))
        return self._part(start, min(max(stop, start + 1), start + self._most(num_columns)))

    def _most(self, num_columns: int) -> int:
        return _MOST_CELLS // max(num_columns, 1)

    def _part(self, start: int, stop: int) -> "Lines":
        begin, end = int(self._ends[start - 1]) if start else 0, int(self._ends[min(stop, self.count) - 1])
        return Lines(self.uri, self.text[begin:end], self.first + start)

    def check(self) -> None:
        """Raise a ``UserError`` for a line that is no object, or one nested too deep or with too many keys.

        A line break is never inside a text. So where every line begins with { and ends with }, nothing is nested across
        lines, or the parser stops there.
        """
        text = np.frombuffer(self.text, np.uint8)
        ends = self._ends
        firsts = text[np.append(0, ends[:-1])]
        lasts = text[np.maximum(ends - 1 - (text[ends - 1] == _LINE_END), 0)]
        for number in np.flatnonzero((firsts != _BRACE) | (lasts != _CLOSING)).tolist():
            line = self._line(number).strip()
            if line and not (line.startswith(b"{") and line.endswith(b"}")):
                raise UserError(
                    f"cannot read {self.uri}: line {self.first + number} is no JSON object, or not all of one; write "
                    "one object per line"
                )
        for number in np.union1d(self._with_many_openings(text), self._long()).tolist():
            self._check_line(number)

    def _with_many_openings(self, text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return the lines that may be nested too deep, by how often anything is opened in them."""
        counts = [int(np.count_nonzero(text == mark)) for mark in (_BRACE, _BRACKET)]
        if sum(counts) < self.count + DEEPEST:  # each has one
            return np.empty(0, np.int64)
        places = np.flatnonzero((text == _BRACE) | (text == _BRACKET))
        last = np.searchsorted(self._ends, places[DEEPEST:], side="right")
        first = np.searchsorted(self._ends, places[:-DEEPEST], side="right")
        return np.unique(last[last == first])

    def _long(self) -> npt.NDArray[np.int64]:
        """Return the lines that have room for too many keys."""
        return np.flatnonzero(np.diff(self._ends, prepend=0) > MOST_KEYS * _SHORTEST_KEY)

    def _line(self, number: int) -> bytes:
        return self._part(number, number + 1).text

    def _check_line(self, number: int) -> None:
        parts = self._line(number).replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        marks = b"".join(parts[::2])  # what stands outside of texts
        depth = int(np.cumsum(_STEPS[np.frombuffer(marks, np.uint8)], dtype=np.int32).max(initial=0))
        for is_wrong, what in (
            (depth > DEEPEST, f"is nested deeper than {DEEPEST} levels"),
            (marks.count(b":") > MOST_KEYS, f"has more than {MOST_KEYS:,} keys"),
        ):
            if is_wrong:
                raise UserError(f"cannot read {self.uri}: line {self.first + number} {what}; is this a table?")


def whole_lines(uri: str, source: Readable, *, size: int) -> Iterator[Lines]:
    """Yield the lines of a file, as many as make up a block of about ``size`` bytes.

    Raises:
        UserError: a line is too long, or the file is one JSON array.
    """
    rest, first, is_start = b"", 1, True
    while piece := source.read(size):
        text = rest + piece
        if is_start:
            text = text.removeprefix(b"\xef\xbb\xbf")
            _check_start(uri, text)
            is_start = False
        end = text.rfind(b"\n") + 1
        rest = text[end:]
        lines = Lines(uri, text[:end], first)
        if not lines.is_blank:
            yield lines
        first += text.count(b"\n")
        if len(rest) > LONGEST_LINE:
            raise UserError(
                f"cannot read {uri}: line {first} is longer than {size_text(LONGEST_LINE)}; write one object per line"
            )
    last = Lines(uri, rest, first)
    if not last.is_blank:
        yield last


def _check_start(uri: str, text: bytes) -> None:
    if text.lstrip()[:1] == b"[":
        raise UserError(
            f"{uri} is one JSON array; write one object per line instead, such as with "
            "jq -c '.[]' or to_json(orient='records', lines=True)"
        )


def schema_of(uri: str, blocks: Iterable[Lines]) -> pa.Schema:
    """Return the schema of all lines, each looked at.

    Raises:
        UserError: a line cannot be, a column holds what no type has room for, or there are too many columns.
        pa.ArrowException: this is no JSON.
    """
    inference = _Inference(uri)
    for block in blocks:
        block.check()
        inference.take_in(block)
    return inference.schema


class _Inference:
    """Finds the columns of lines: as many as there are are parsed with the columns of those before them.

    Where that fails, a few are parsed with whatever columns they have.
    """

    def __init__(self, uri: str) -> None:
        self.schema = pa.schema([])
        self._uri = uri
        self._unified = UnifiedSchema()
        self._bytes = _FIRST_BYTES

    def take_in(self, block: Lines) -> None:
        start = 0
        while start < block.count:
            num_columns = num_fields(self.schema)
            lines = block.beginning(start, self._bytes, num_columns)
            if _fits(lines, self.schema):
                self._bytes = min(2 * self._bytes, LONGEST_LINE)
            else:
                lines = block.beginning(start, _FIRST_BYTES, num_columns)
                self._bytes = 2 * _FIRST_BYTES
                self._widen(lines)
            start += lines.count

    def _widen(self, lines: Lines) -> None:
        self._unified.add(f"the lines from {lines.first} on", _without_times(parse(lines).schema))
        if self._unified.conflicts:
            raise UserError(f"{self._uri}: {'; '.join(self._unified.conflicts.values())}; convert them to one type")
        self.schema = self._unified.schema
        check_width(self._uri, num_fields(self.schema))


def _fits(lines: Lines, schema: pa.Schema) -> bool:
    """Tell whether lines have no other columns, and no values that the types have no room for."""
    try:
        parse(lines, schema, others="error")
    except pa.ArrowInvalid:
        return False
    return True


def parse(lines: Lines, schema: pa.Schema | None = None, *, others: str = "infer") -> pa.Table:
    """Parse lines at once.

    Args:
        lines: what is parsed.
        schema: of the columns that are known.
        others: what becomes of columns that are not: infer, ignore or error.
    """
    if lines.is_blank:
        return (schema or pa.schema([])).empty_table()
    return json.read_json(
        pa.BufferReader(lines.text),
        json.ReadOptions(block_size=len(lines.text) + 1),
        json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=others),
    )


def _without_times(schema: pa.Schema) -> pa.Schema:
    """JSON knows no times: what Arrow takes for one is a text."""
    return pa.schema([field.with_type(_without_time(field.type)) for field in schema])


def _without_time(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_time(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_time(field.type)) for field in kind])
    return kind
