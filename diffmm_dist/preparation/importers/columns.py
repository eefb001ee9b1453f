"""What the values of a column mean: ids, times, numbers or text, whatever Arrow type they come in; missing is null."""

import uuid
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.repeats import check_repeats

# How programs write that a value is missing, where a column is text.
MISSING = ("", "NULL", "null", "NaN", "nan", "NA", "N/A", "n/a", "None", "none", "<NA>", "\\N", "#N/A")
_WHOLE = r"^(0|-?[1-9][0-9]*)$"
_WHOLE_OR_FLOAT = r"^(0|-?[1-9][0-9]*)([.]0)?$"
_LIKE_NUMBER = r"^[+-]?[0-9][0-9.eE+-]*$"
# Up to here every whole number is a float of so many bits.
_EXACT_IN_FLOAT = {16: 2**11, 32: 2**24, 64: 2**53}


def plain(column: pa.Array) -> pa.Array:
    """Return a column without what does not change its values: extension types, dictionaries, runs, views of text."""
    check_repeats(column)
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in column.storage.to_pylist()]
            return pa.array(texts, pa.string())
        return plain(column.storage)
    if pa.types.is_dictionary(kind):
        return plain(column.dictionary).take(column.indices)
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(column))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    return column


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that ``plain`` gives a column."""
    return plain(pa.nulls(0, kind)).type


def id_array(column: pa.Array, *, name: str, uri: str) -> pa.Array:
    """Return ids as int64 or string; text that is empty or only spaces is missing.

    Raises:
        UserError: they are neither whole numbers within int64 nor text.
    """
    column = plain(column)
    kind = column.type
    try:
        if pa.types.is_floating(kind):
            return _whole_floats(column)
        if pa.types.is_integer(kind) or pa.types.is_decimal(kind):
            return column.cast(pa.int64())
        if pa.types.is_string(kind) or pa.types.is_null(kind) or _is_binary(kind):
            texts = column.cast(pa.string())
            return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), pa.scalar(None, pa.string()), texts)
    except pa.ArrowInvalid as error:
        what = "is not UTF-8 text" if _is_binary(kind) else "is no whole number within 64 bits"
        raise UserError(
            f"{uri}: column '{name}' holds an id that does not fit: {kind} that {what}; convert it to strings first"
        ) from error
    raise UserError(
        f"{uri}: column '{name}' holds {kind}, but ids are whole numbers or strings; choose another column or convert "
        "it first"
    )


def as_text(ids: pa.Array) -> pa.Array:
    """Return ids as text."""
    return ids.cast(pa.string())


def count_missing_words(ids: pa.Array) -> int:
    """Return how many ids are texts that look as if a missing value had been written out, such as 'nan'."""
    if not pa.types.is_string(ids.type):
        return 0
    return int(pc.sum(pc.is_in(pc.utf8_trim_whitespace(ids), value_set=pa.array(MISSING[1:]))).as_py() or 0)


def typed_ids(texts: pa.ChunkedArray, *, column: str, uri: str) -> tuple[pa.ChunkedArray, list[str]]:
    """Return the ids of a file of texts as int64 if all of them are whole numbers, and else as they stand.

    A whole number is written without a plus, leading zeros or an exponent and fits 64 bits, so that no two ids become
    one; the ``.0`` that pandas adds to columns with missing values is taken off.

    Args:
        texts: all of them, or each once.
        column: for the notes.
        uri: for the notes.

    Returns:
        The ids, and sentences about what might surprise.
    """
    unlike = texts.filter(pc.invert(pc.match_substring_regex(texts, _WHOLE_OR_FLOAT)))
    if pc.count(unlike).as_py() == 0:
        plain_texts = pc.replace_substring_regex(texts, r"[.]0$", "")
        try:
            ids = plain_texts.cast(pa.int64())
        except pa.ArrowInvalid:  # beyond 64 bits
            lengths = pc.binary_length(plain_texts)
            unlike = pa.chunked_array([[pc.max(texts.filter(pc.equal(lengths, pc.max(lengths)))).as_py()]])
        else:
            floats = texts.filter(pc.ends_with(texts, ".0"))
            note = f"{uri}: ids of column '{column}' such as {least(floats)!r} are taken as whole numbers"
            return ids, [note] if len(floats) else []
    num_alike = pc.sum(pc.match_substring_regex(texts, _LIKE_NUMBER)).as_py() or 0
    note = (
        f"{uri}: the ids of column '{column}' stay text as they stand, as with `prepare tables --string-ids`, since "
        f"not all are plain whole numbers, such as {shortened(least(unlike))!r}"
    )
    return texts, [note] if 2 * num_alike > len(texts) else []


def shortened(text: str) -> str:
    """Return a text as a sentence may show it."""
    return text if len(text) <= 40 else text[:37] + "..."


def least(values: Any) -> Any:
    """Return the smallest value, an example that does not depend on the order; None of no values."""
    return pc.min(values).as_py()


def time_array(column: pa.Array, *, name: str, uri: str) -> pa.Array:
    """Return times as int64, float64, decimal or text, whichever keeps their order exactly.

    Dates and timestamps become a count of their own unit since 1970. Text is trimmed and not read yet.

    Raises:
        UserError: the column holds something else, infinity, or numbers that do not fit.
    """
    column = plain(column)
    kind = column.type
    try:
        if pa.types.is_timestamp(kind) or pa.types.is_date64(kind) or pa.types.is_duration(kind):
            return column.cast(pa.int64())
        if pa.types.is_date32(kind):
            return column.cast(pa.int32()).cast(pa.int64())
        if pa.types.is_integer(kind) or pa.types.is_null(kind):
            return column.cast(pa.int64())
        if pa.types.is_decimal(kind):
            return column.cast(pa.decimal128(38, kind.scale))
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri}: column '{name}' ({kind}) holds a time that does not fit; convert it first") from error
    if pa.types.is_string(kind):
        return text_array(column)
    if not pa.types.is_floating(kind):
        raise UserError(f"{uri}: column '{name}' holds {kind}, but numbers or times are needed; convert it first")
    times = _without_nan(column)
    if pc.any(pc.is_inf(times)).as_py():
        raise UserError(f"{uri}: column '{name}' holds an infinite time; drop or mend those rows first")
    return times


def number_array(column: pa.Array, *, name: str, uri: str) -> pa.Array:
    """Return numbers, or texts of numbers, as float64.

    Raises:
        UserError: the column holds something else.
    """
    column = plain(column)
    kind = column.type
    if pa.types.is_string(kind):
        return _numbers_of(text_array(column), name=name, uri=uri)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or is_decimal_or_null(kind)):
        raise UserError(f"{uri}: column '{name}' holds {kind}, but numbers are needed; convert it first")
    return _without_nan(column)


def text_array(column: pa.Array) -> pa.Array:
    """Return texts without the spaces around them, null where they say that a value is missing."""
    texts = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(texts, value_set=pa.array(MISSING)), pa.scalar(None, pa.string()), texts)


def is_decimal_or_null(kind: pa.DataType) -> bool:
    """Tell decimals, and columns in which everything is missing."""
    return bool(pa.types.is_decimal(kind) or pa.types.is_null(kind))


def _numbers_of(texts: pa.Array, *, name: str, uri: str) -> pa.Array:
    try:
        return _without_nan(texts.cast(pa.float64()))
    except pa.ArrowInvalid as error:
        for text in pc.unique(texts).to_pylist():
            try:
                float(text or 0)
            except ValueError:
                raise UserError(f"{uri}: column '{name}' holds {text!r}, but numbers are needed") from error
        raise UserError(f"{uri}: column '{name}' holds text that is no number") from error


def _whole_floats(column: pa.Array) -> pa.Array:
    """Return whole floats as int64, as which pandas writes ids where some are missing."""
    limit = _EXACT_IN_FLOAT[column.type.bit_width]
    numbers = _without_nan(column)
    whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less_equal(pc.abs(numbers), float(limit)))
    if not pc.all(whole).as_py():
        raise pa.ArrowInvalid("not whole, or so large that neighbours are the same float")
    return numbers.cast(pa.int64())


def _without_nan(column: pa.Array) -> pa.Array:
    """Return numbers as float64, null where they are NaN."""
    numbers = column.cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def _is_binary(kind: pa.DataType) -> bool:
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(is_binary or pa.types.is_fixed_size_binary(kind))
