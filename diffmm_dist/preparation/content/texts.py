"""Texts of items in a table of any size: read twice, once for the ids and what is wrong, once for the model.

What is held of all rows is an id, a hash and two flags each.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.errors import UserError, one_line
from diffmm_dist.preparation.content.items import ITEMS_PER_BLOCK, Block, Content, Damage, examples
from diffmm_dist.preparation.content.request import ContentRequest
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.columns import (
    as_text,
    count_missing_words,
    id_array,
    plain,
    plain_type,
    text_array,
    typed_ids,
)

LONGEST_TEXT = 200_000  # characters; no model reads as much
_ROWS_AT_A_TIME = 4096  # as Python's own texts


class TextSource:
    """The texts of a table, an item to a row.

    Args:
        request: which table, and its columns.

    Attributes:
        notes: sentences about what might surprise.
        damaged: items without text.
        num_items: items with text.
        id_type: int64 or string.

    Raises:
        UserError: there is no such table or column, or a column holds no texts.
    """

    id_type: pa.DataType

    def __init__(self, request: ContentRequest) -> None:
        self._uri, self._id, self._columns = request.source, request.id_column, request.text_columns
        self._table = Table(request.source, request.text)
        self._table.check_columns([self._id, *self._columns])
        self._check_types()
        self._text_ids = request.text_ids
        self.notes = list(self._table.notes)
        self.damaged: list[Damage] = []
        self.num_items = 0

    def scan(self) -> None:
        """Read the table once; an item that has several texts is an error, as is whatever cannot be read."""
        ids, hashes, empty = self._scanned()
        self._ids = self._typed(ids)
        self.id_type = self._ids.type
        self._kept = self._first_rows(hashes) & ~empty
        self.num_items = int(self._kept.sum())
        lacking = pc.unique(self._ids.filter(pa.array(empty))).drop_null().to_pylist()
        of = f"it has no text in {', '.join(self._columns)}"
        self.damaged = [Damage(f"item {name!r}", of) for name in lacking]
        if not self.num_items and not self.damaged:
            raise UserError(f"{self._uri} has no row with an id in column '{self._id}'; check --id")

    def blocks(self) -> Iterator[Block]:
        """Yield the items with text, in the order of the table; the errors are those of reading it."""
        kept = np.flatnonzero(self._kept)
        ids, texts, row, number = self._ids, list[Content](), 0, 0
        for _, batch_texts in self._rows():
            flags = self._kept[row : row + len(batch_texts)]
            if len(flags) < len(batch_texts):
                raise UserError(f"{self._uri} changed while it was read; run the same command again")
            row += len(batch_texts)
            texts += [Content("", text) for text, is_kept in zip(batch_texts, flags, strict=True) if is_kept]
            while len(texts) >= ITEMS_PER_BLOCK or (texts and row == len(self._kept)):
                start = number * ITEMS_PER_BLOCK
                rows = pa.array(kept[start : start + ITEMS_PER_BLOCK])
                block, texts = texts[:ITEMS_PER_BLOCK], texts[ITEMS_PER_BLOCK:]
                yield Block(number, ids.take(rows).combine_chunks(), [[text] for text in block])
                number += 1

    def _check_types(self) -> None:
        wrong = [
            f"'{name}' ({kind})" for name in self._columns
            if not _is_text(plain_type(kind := self._table.schema.field(name).type))
        ]  # fmt: skip
        if wrong:
            raise UserError(
                f"{self._uri}: column {', '.join(wrong)} holds no texts; name columns of texts, or of lists of texts, "
                "in --text"
            )

    def _rows(self) -> Iterator[tuple[pa.Array, list[str]]]:
        """Yield ids and texts, empty where there is none, of some rows at a time."""
        for batch in self._table.batches([self._id, *self._columns]):
            for start in range(0, batch.num_rows, _ROWS_AT_A_TIME):
                rows = batch.slice(start, _ROWS_AT_A_TIME)
                ids = id_array(rows[self._id], name=self._id, uri=self._uri)
                columns = [self._texts_of(rows[name]) for name in self._columns]
                yield ids, ["\n".join(filter(None, parts))[:LONGEST_TEXT] for parts in zip(*columns, strict=True)]

    def _texts_of(self, column: pa.Array) -> list[str | None]:
        column = plain(column)
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise UserError(f"cannot read {self._uri}: {one_line(error)}; save it as UTF-8") from error
        if not _is_list(column.type):
            texts: list[str | None] = text_array(column.cast(pa.string())).to_pylist()
            return texts
        inner = text_array(plain(column.flatten()).cast(pa.string())).to_pylist()
        ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False))
        starts = [0, *ends[:-1]]
        return [" ".join(filter(None, inner[start:end])) for start, end in zip(starts, ends, strict=True)]

    def _scanned(self) -> tuple[pa.ChunkedArray, npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
        """Return the ids of all rows, hashes of their texts, and which are empty."""
        ids, hashes, empty = [], [np.zeros(0, np.uint64)], [np.zeros(0, np.bool_)]
        for some, texts in self._rows():
            ids.append(some)
            digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
            hashes.append(np.frombuffer(digests, np.uint64))
            empty.append(np.array([not text for text in texts]))
        kind = next((some.type for some in ids if not pa.types.is_null(some.type)), pa.string())
        return pa.chunked_array(ids, kind), np.concatenate(hashes), np.concatenate(empty)

    def _typed(self, ids: pa.ChunkedArray) -> pa.ChunkedArray:
        self._note(ids.null_count, "rows without an id are left out")
        self._note(sum(map(count_missing_words, ids.chunks)), "rows have an id that looks like a missing value, such "
                   "as 'nan'; it is taken as an id")  # fmt: skip
        if self._text_ids:
            return as_text(ids)
        if self._table.is_text:
            ids, notes = typed_ids(ids, column=self._id, uri=self._uri)
            self.notes += notes
        return ids

    def _first_rows(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Return which rows are the first of their item; the errors name items that have several texts."""
        coded = self._ids.combine_chunks().dictionary_encode()
        codes = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
        is_first = np.zeros(len(codes), dtype=np.bool_)
        known, first_rows, places = np.unique(codes, return_index=True, return_inverse=True)
        is_first[first_rows[known >= 0]] = True
        repeats = np.flatnonzero(~is_first & (codes >= 0))
        different = repeats[hashes[first_rows[places[repeats]]] != hashes[repeats]]
        if different.size:
            row = int(different[0])
            names = dict.fromkeys(self._ids[int(one)].as_py() for one in different[:1000])
            raise UserError(
                f"{self._uri}: {different.size:,} rows give items a second text that differs from the first, of items "
                f"such as {examples(names)} (rows {first_rows[places[row]] + 1} and {row + 1}); keep one of them"
            )
        self._note(repeats.size, "rows repeat an item with the same text")
        return is_first

    def _note(self, count: int, sentence: str) -> None:
        if count:
            self.notes.append(f"{count:,} {sentence}")


def _is_text(kind: pa.DataType) -> bool:
    """Tell texts, lists of texts, and columns in which everything is missing."""
    if _is_list(kind):
        kind = plain_type(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_null(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
