"""What the values of a column take once every repetition is written out, known before anything is."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.data.arrow_messages import MalformedError

_MOST_BYTES = 1 << 30  # of the values of one batch, where the file holds each only once
_Sizes = npt.NDArray[np.int64]


def check_repeats(column: pa.Array) -> None:
    """Check that a column which may hold a value once and repeat it in many rows has room when they are written out.

    Such columns are dictionaries, runs and views; others take what they take.

    Raises:
        MalformedError: the values would take more than a GiB, and more than twice what the column takes.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        size = _repeated(_sizes(column.dictionary), column.indices)
    elif pa.types.is_run_end_encoded(kind):
        size = int(_sizes(column.values).max(initial=0)) * len(column)
    elif _is_view(kind):
        size = int(_sizes(column).sum())
    else:
        return
    if size > max(_MOST_BYTES, 2 * column.get_total_buffer_size()):  # nbytes knows no views before pyarrow 25
        raise MalformedError(f"{len(column):,} rows repeat long values, {size:,} bytes in all, which is too much")


def is_text(kind: pa.DataType) -> bool:
    """Return whether the values are texts or bytes of any length."""
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bool(is_string or is_binary or pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _repeated(sizes: _Sizes, indices: pa.Array) -> int:
    """Return the sum of the sizes of the values that the indices name; a missing index has none."""
    if int(sizes.max(initial=0)) * len(indices) <= _MOST_BYTES:
        return 0  # whatever the indices are
    return int(sizes[indices.drop_null().to_numpy(zero_copy_only=False)].sum())


def _sizes(values: pa.Array) -> _Sizes:
    """Return the bytes of every value; a number's are not counted, since they cannot be many."""
    kind = values.type
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        words = np.frombuffer(values.buffers()[1], np.int32).reshape(-1, 4)  # the first of four is the length
        return words[values.offset : values.offset + len(values), 0].astype(np.int64)
    if pa.types.is_fixed_size_binary(kind):
        return np.full(len(values), kind.byte_width)
    if pa.types.is_fixed_size_list(kind):
        return np.full(len(values), kind.list_size * 8)
    if is_text(kind):
        return _numbers(pc.binary_length(values))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or _is_view(kind):
        return 8 * _numbers(pc.list_value_length(values))
    return np.zeros(len(values), np.int64)


def _numbers(counts: pa.Array) -> _Sizes:
    numbers: _Sizes = pc.fill_null(counts.cast(pa.int64()), 0).to_numpy()
    return numbers


def _is_view(kind: pa.DataType) -> bool:
    is_text = pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
    return bool(is_text or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))
