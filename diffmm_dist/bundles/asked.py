"""What somebody asks for in a file: ids of users or of items, histories, categories."""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist import storage
from diffmm_dist.bundles.ids import Ids
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.columns import as_text, id_array
from diffmm_dist.preparation.importers.features import Features, FeatureSource
from diffmm_dist.preparation.importers.table_files import is_table
from diffmm_dist.words import shown


def read_ids(place: str, known: Ids) -> list[str]:
    """Return the ids that a file lists, as text, once each and in its order.

    Args:
        place: a table, as those that `prepare tables` reads, with a column ``user``, or ``item``, or only one column;
            any other file, or ``-`` for standard input, holds an id on each line. What is blank or missing is left out.
        known: the ids of the bundle, of the kind that is asked for.

    Raises:
        UserError: it cannot be read, has no such column, names nothing, or names what can be no id of the bundle.
    """
    ids = list(dict.fromkeys(_of_table(place, known) if is_table(place) else _lines(place)))
    if not ids:
        raise UserError(f"{place} names no {known.kind}; write an id on each line")
    try:
        known.column(ids)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    return ids


class Histories(NamedTuple):
    """Users who are lists of items.

    Attributes:
        users: ids, in the order of the file.
        pairs: the items of each that the bundle has.
        num_unknown: pairs whose item it does not have.
        num_empty: users of whose items it has none; they are left out.
    """

    users: pa.Array
    pairs: Pairs
    num_unknown: int
    num_empty: int


def read_histories(place: str, items: Ids) -> Histories:
    """Read a table of users and their items, one pair in each row.

    Args:
        place: a table, as those that `prepare tables` reads, with the columns ``user`` and ``item``.
        items: those of the bundle.

    Raises:
        UserError: it cannot be read, or none of its items is in the bundle.
    """
    users, pairs = _two_columns(place, "user", "item", "histories")
    rows = items.known(pairs)[1]
    codes = users.dictionary_encode()
    owners = codes.indices.to_numpy().astype(np.int64)
    is_known = rows >= 0
    kept, owners = np.unique(owners[is_known], return_inverse=True)
    if not len(kept):
        raise UserError(f"{place} names no item of the bundle, whose ids look like {shown(items.values[0].as_py())}")
    found = Pairs.of(owners.astype(np.int64), rows[is_known], num_rows=len(kept), num_items=len(items))
    return Histories(
        codes.dictionary.take(pa.array(kept)), found, int((~is_known).sum()), len(codes.dictionary) - len(kept)
    )


def read_categories(place: str, items: Ids) -> tuple[pa.Array, pa.Array]:
    """Read the categories of items: those of the bundle, and the category of each.

    Args:
        place: a table with the columns ``item`` and ``category``.
        items: those of the bundle.
    """
    names, categories = _two_columns(place, "item", "category", "categories")
    column, rows = items.known(names)
    kept = pa.array(rows >= 0)
    return column.filter(kept), categories.filter(kept)


class NewItems(NamedTuple):
    """Items of which only the features are known.

    Attributes:
        ids: original ids, each once.
        features: by modality, (items, width), float32 or float16.
    """

    ids: pa.Array
    features: dict[str, npt.NDArray[Any]]


def read_new_items(places: Mapping[str, str], items: Ids) -> NewItems:
    """Read the features of items that the bundle does not have.

    Args:
        places: by modality, a table as `prepare tables` reads for features, with a column ``item``.
        items: those of the bundle.

    Raises:
        UserError: a table cannot be read, is not of the same items as the others, or has no numbers.
    """
    ids: pa.Array | None = None
    found = {}
    with tempfile.TemporaryDirectory(prefix="diffmm_dist-") as folder:
        for modality, place in places.items():
            own = items.column(list(_texts_of(Table(place), "item"))).unique()
            if not len(own):
                raise UserError(f"{place} names no item; give a row for each new one")
            table = Features(FeatureSource(modality, place, "item"))
            table.read(as_text(own), folder, all_items=False, text_ids=True)
            ids = own if ids is None else ids
            lacking, more = (pc.sum(pc.invert(pc.is_in(a, value_set=b))).as_py() for a, b in ((ids, own), (own, ids)))
            if lacking or more:
                first = next(iter(places))
                raise UserError(
                    f"{place} lacks {lacking or 0:,} items of the {first} features and has {more or 0:,} others; give "
                    "tables of the same items"
                )
            found[modality] = np.concatenate([np.array(piece) for piece in table.rows_of(as_text(ids))])
    assert ids is not None
    return NewItems(ids, found)


def _texts_of(table: Table, name: str) -> Iterator[str]:
    table.check_columns([name])
    for batch in table.batches([name]):
        yield from as_text(id_array(batch[name], name=name, uri=table.uri).drop_null()).to_pylist()


def _two_columns(place: str, first: str, second: str, what: str) -> tuple[pa.Array, pa.Array]:
    if not is_table(place):
        raise UserError(f"{place} is no table; {what} are a table with the columns {first} and {second}")
    table = Table(place)
    table.check_columns([first, second])
    columns: tuple[list[pa.Array], list[pa.Array]] = ([], [])
    for batch in table.batches([first, second]):
        both = [id_array(batch[name], name=name, uri=place) for name in (first, second)]
        is_whole = pc.and_(both[0].is_valid(), both[1].is_valid())
        for column, ids in zip(columns, both, strict=True):
            column.append(as_text(ids.filter(is_whole)))
    joined = [pa.chunked_array(column, pa.string()).combine_chunks() for column in columns]
    return joined[0], joined[1]


def _lines(place: str) -> Iterator[str]:
    data = sys.stdin.buffer.read() if place == "-" else storage.read_bytes(place)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is no text in UTF-8 ({one_line(error)}); write an id on each line") from error
    return (line.removesuffix("\r") for line in text.split("\n") if line.strip())


def _of_table(place: str, known: Ids) -> Iterator[str]:
    table = Table(place)
    name = _column(table.schema.names, place, known.kind)
    _check_header(table, name, known)
    yield from _texts_of(table, name)


def _column(names: Sequence[str], place: str, kind: str) -> str:
    if kind in names:
        return kind
    if len(names) != 1:
        raise UserError(f"{place} has the columns {', '.join(names) or 'none'}; call that of the {kind}s '{kind}'")
    return names[0]


def _check_header(table: Table, name: str, known: Ids) -> None:
    """Refuse a CSV file that begins with an id where the name of its column should be."""
    ids = known.values.cast(pa.string())
    if table.is_text and name != known.kind and pc.is_in(pa.array([name]), ids)[0].as_py():
        raise UserError(
            f"{table.uri} has no line with the name of its column: the first holds the {known.kind} {shown(name)}; "
            f"write '{known.kind}' above it, or name the file .txt"
        )
