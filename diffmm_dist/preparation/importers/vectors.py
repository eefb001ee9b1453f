"""Which columns of a table hold the feature vectors of its items, and the vectors of a batch of its rows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.data.checks import refuse_half_integers
from diffmm_dist.errors import UserError, closest
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.columns import plain, plain_type, shortened, text_array

_NUMBERED = re.compile(r"(.*?)([0-9]+)")
_WILDCARDS = re.compile(r"[*?\[]")
_SEPARATOR = r"\s*,\s*|\s+"  # JSON has commas, NumPy prints spaces
_BRACKETED = r"(?s)^\[.*\]$"
_SHOWN = 6
_PEEKED = 100

Form = Literal["list", "text", "number", "empty", "other"]


@dataclass(frozen=True)
class VectorColumns:
    """The columns with the feature vectors of a modality.

    Attributes:
        uri: of the table.
        names: one column of lists or of texts of lists, or one column per dimension, in their order.
        is_list: which of these it is.
        note: what is used and what is not, for the user.
        maybe_bits: whether values could be whole numbers that are the bits of others.
    """

    uri: str
    names: tuple[str, ...]
    is_list: bool
    note: str
    maybe_bits: bool

    def read(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Return the vectors of the rows that have one, and which rows these are.

        A missing or an empty list is no vector, nor is a row in which every column is missing. A value that is missing
        within a vector becomes NaN.

        Returns:
            The vectors (n, width), and booleans (rows of the batch,), n of them true.

        Raises:
            UserError: a text is no number or no list of numbers, or lists have different widths.
        """
        columns = [plain(batch[name]) for name in self.names]
        if not self.is_list:
            numbers = [self._numbers(column, name) for column, name in zip(columns, self.names, strict=True)]
            values = np.stack(numbers, axis=1)
            present = ~np.isnan(values).all(axis=1) if values.dtype.kind == "f" else np.ones(len(values), dtype=bool)
            return values[present], present
        lists = columns[0]
        if pa.types.is_string(lists.type):
            lists = self._parsed(lists)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        present = lengths > 0
        widths = np.unique(lengths[present])
        if widths.size > 1:
            self.refuse_widths(widths.tolist())
        flat = _as_numpy(plain(lists.filter(pa.array(present)).flatten()))
        return flat.reshape(-1, int(widths[0]) if widths.size else 1), present

    def refuse_widths(self, widths: Sequence[int]) -> NoReturn:
        """Raise a ``UserError`` about lists of different widths."""
        raise UserError(
            f"{self.uri}: lists of {' and '.join(map(str, sorted(widths)[:2]))} numbers in column '{self.names[0]}'; "
            "features of one modality have one width"
        )

    def _numbers(self, column: pa.Array, name: str) -> npt.NDArray[Any]:
        if not pa.types.is_string(column.type):
            return _as_numpy(column)
        return self._cast(text_array(column), name)

    def _parsed(self, column: pa.Array) -> pa.Array:
        """Return texts such as '[0.1, 0.2]' as lists."""
        texts = text_array(column)
        unlike = texts.filter(pc.invert(pc.match_substring_regex(texts, _BRACKETED)))
        if pc.count(unlike).as_py():
            self._refuse_text(unlike[0].as_py(), self.names[0], "list of numbers such as [0.1, 0.2]")
        inner = pc.utf8_trim_whitespace(pc.utf8_slice_codeunits(texts, 1, -1))
        inner = pc.if_else(pc.equal(inner, ""), pa.scalar(None, pa.string()), inner)
        parts = pc.split_pattern_regex(inner.drop_null(), _SEPARATOR)
        numbers = pa.array(self._cast(text_array(parts.flatten()), self.names[0]))
        lists = pa.ListArray.from_arrays(parts.offsets, numbers)
        places = pc.cumulative_sum(pc.is_valid(inner).cast(pa.int64()))
        return lists.take(pc.if_else(pc.is_valid(inner), pc.subtract(places, 1), pa.scalar(None, pa.int64())))

    def _cast(self, texts: pa.Array, name: str) -> npt.NDArray[Any]:
        try:
            return _as_numpy(texts.cast(pa.float64()))
        except pa.ArrowInvalid:
            wrong = next((text for text in pc.unique(texts).to_pylist() if not _is_number(text)), "")
            self._refuse_text(wrong, name, "number")

    def _refuse_text(self, text: str, name: str, needed: str) -> NoReturn:
        raise UserError(f"{self.uri}: column '{name}' holds {shortened(text)!r}, which is no {needed}; mend it first")


def choose_columns(table: Table, *, item: str, modality: str, pattern: str | None) -> VectorColumns:
    """Return the columns that hold the vectors of a modality.

    Args:
        table: where they are.
        item: its column of item ids, which is none of them.
        modality: for the note and errors.
        pattern: of their names with ``*`` and ``?``, or names separated by commas; None to find the one column of lists
            or the one complete series of numbered columns that there is.

    Raises:
        UserError: there is none, or it is not clear which.
    """
    forms = _forms(table, item)
    if pattern is None:
        candidates = _candidates(forms)
        problem = "" if len(candidates) == 1 else f"there is {'none' if not candidates else 'more than one of these'}"
        names = candidates[0] if len(candidates) == 1 else []
    else:
        names = _matching(pattern, forms, uri=table.uri)
        candidates, problem = [names], ""
    is_list = len(names) == 1 and forms[names[0]] in ("list", "text")
    if not problem and not is_list:
        explicit = pattern is not None and (pattern in forms or not _WILDCARDS.search(pattern))
        names, problem = _in_order(names, forms, explicit=explicit, is_text=table.is_text)
    if problem:
        shown = " or ".join(_described(candidate) for candidate in candidates) or _typed(table, forms)
        raise UserError(
            f"{table.uri}: the features of modality '{modality}' must be one column of lists, or numbered columns such "
            f"as emb_0, emb_1 and so on without a gap: {problem}, found {shown}; choose with --feature-columns "
            f"{modality}=PATTERN, or with names separated by commas"
        )
    kinds = [_element(plain_type(table.schema.field(name).type)) for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if pa.types.is_int16(kind) or pa.types.is_uint16(kind):
            refuse_half_integers(f"{table.uri}: column '{name}'", str(kind))
    whole = next((str(kind) for kind in kinds if pa.types.is_integer(kind)), None)
    note = f"{modality}: {_described(names)}{', lists' if is_list else f', {len(names)} columns'}"
    unused = [name for name, form in forms.items() if form in ("list", "text", "number") and name not in names]
    note += f"; not used: {_few(unused)}" if unused else ""
    note += f"; whole numbers ({whole}) are taken as they are" if whole else ""
    return VectorColumns(table.uri, tuple(names), is_list, note, table.is_text or whole is not None)


def _forms(table: Table, item: str) -> dict[str, Form]:
    """Return what each column but that of the items could be."""
    kinds = {field.name: plain_type(field.type) for field in table.likely_schema if field.name != item}
    forms = {name: _form(kind) for name, kind in kinds.items()}
    texts = [name for name, kind in kinds.items() if pa.types.is_string(kind)]
    batches = (batch for batch in table.batches(texts) if batch.num_rows) if texts else iter(())
    first = next(batches, None)
    for name in texts:
        seen = text_array(plain(first[name])).drop_null()[:_PEEKED] if first is not None else ()
        if 2 * (pc.sum(pc.match_substring_regex(seen, _BRACKETED)).as_py() or 0) > len(seen):
            forms[name] = "text"
    return forms


def _form(kind: pa.DataType) -> Form:
    if pa.types.is_null(kind):
        return "empty"
    if _is_list(kind):
        return "list" if _is_numeric(_element(kind)) else "other"
    return "number" if _is_numeric(kind) else "other"


def _candidates(forms: dict[str, Form]) -> list[list[str]]:
    """Return each column of lists, and each group of columns that are, or nearly are, a numbered series."""
    groups: dict[str, list[str]] = {}
    for name, form in forms.items():
        match = _NUMBERED.fullmatch(name)
        if match and form not in ("list", "text"):
            groups.setdefault(match[1], []).append(name)
    series = [
        group
        for group in groups.values()
        if len(group) > 1 and any(forms[name] == "number" for name in group) and min(map(_number, group)) < 2
    ]
    return [[name] for name, form in forms.items() if form in ("list", "text")] + series


def _matching(pattern: str, forms: dict[str, Form], *, uri: str) -> list[str]:
    """Return the columns that a pattern or a list of names means."""
    if pattern in forms:
        return [pattern]
    names = list(forms)
    if _WILDCARDS.search(pattern):
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise UserError(f"{uri}: no column matches --feature-columns {pattern}; its columns are {_few(names)}")
        return found
    chosen = pattern.split(",")
    unknown = [name for name in chosen if name not in forms]
    if unknown:
        described = ", ".join(f"'{name}'{closest(name, names)}" for name in unknown)
        raise UserError(f"{uri} has no column {described}, which --feature-columns names; it has {_few(names)}")
    return list(dict.fromkeys(chosen))


def _in_order(names: list[str], forms: dict[str, Form], *, explicit: bool, is_text: bool) -> tuple[list[str], str]:
    """Return columns of numbers in their order, and what is wrong with them if anything is.

    What texts hold shows when all are read: a single word among numbers is to be named, not its column.
    """
    wrong = [name for name in names if forms[name] not in ("number", "empty")]
    if not is_text and (wrong or not any(forms[name] == "number" for name in names)):
        return names, f"{_few(wrong or names)} holds no numbers"
    if explicit:
        return names, ""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if not all(matches) or len({match[1] for match in matches if match}) > 1:
        return names, "these are not numbered columns of one name"
    names = sorted(names, key=_number)
    numbers = [_number(name) for name in names]
    first = min(numbers[0], 1)
    if numbers == list(range(first, first + len(names))):
        return names, ""
    gap = next(number for number in range(first, numbers[-1] + 1) if numbers.count(number) != 1)
    return names, f"number {gap} is {'there twice' if gap in numbers else 'missing'}"


def _number(name: str) -> int:
    match = _NUMBERED.fullmatch(name)
    return int(match[2]) if match else -1


def _described(names: Sequence[str]) -> str:
    return _few(names) if len(names) < 3 else f"{names[0]} .. {names[-1]}"


def _few(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _typed(table: Table, forms: dict[str, Form]) -> str:
    return _few([f"{name}: {table.likely_schema.field(name).type}" for name in forms]) or "no other column"


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list,
             pa.types.is_list_view, pa.types.is_large_list_view)  # fmt: skip
    return any(test(kind) for test in tests)


def _element(kind: pa.DataType) -> pa.DataType:
    return plain_type(kind.value_type) if _is_list(kind) else kind


def _is_numeric(kind: pa.DataType) -> bool:
    tests = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _is_number(text: str | None) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _as_numpy(column: pa.Array) -> npt.NDArray[Any]:
    """Return numbers, with NaN where they are missing; booleans are 0 and 1."""
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan, dtype=np.float16)
    if pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.float32() if pa.types.is_boolean(kind) else pa.float64())
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values
