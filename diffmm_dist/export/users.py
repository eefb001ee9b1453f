"""The users that somebody asks for: ids from a text file, standard input or a table."""

import sys
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist import storage
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.export.bundle import Bundle
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.columns import as_text, id_array
from diffmm_dist.preparation.importers.table_files import is_table
from diffmm_dist.words import shown

COLUMN = "user"


def read_users(place: str, bundle: Bundle) -> list[str]:
    """Return the ids that a file lists, as text, once each and in its order.

    Args:
        place: a table, as those that `prepare tables` reads, with a column ``user`` or only one column; any other file,
            or ``-`` for standard input, holds an id on each line. What is blank or missing is left out.
        bundle: whose users they are.

    Raises:
        UserError: it cannot be read, has no such column, or names nobody.
    """
    ids = list(dict.fromkeys(_of_table(place, bundle) if is_table(place) else _lines(place)))
    if not ids:
        raise UserError(f"{place} names no user; write an id on each line")
    return ids


def _lines(place: str) -> Iterator[str]:
    data = sys.stdin.buffer.read() if place == "-" else storage.read_bytes(place)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is no text in UTF-8 ({one_line(error)}); write an id on each line") from error
    return (line.removesuffix("\r") for line in text.split("\n") if line.strip())


def _of_table(place: str, bundle: Bundle) -> Iterator[str]:
    table = Table(place)
    name = _column(table.schema.names, place)
    _check_header(table, name, bundle)
    for batch in table.batches([name]):
        yield from as_text(id_array(batch[name], name=name, uri=place).drop_null()).to_pylist()


def _column(names: Sequence[str], place: str) -> str:
    if COLUMN in names:
        return COLUMN
    if len(names) != 1:
        raise UserError(f"{place} has the columns {', '.join(names) or 'none'}; call that of the users '{COLUMN}'")
    return names[0]


def _check_header(table: Table, name: str, bundle: Bundle) -> None:
    """Refuse a CSV file that begins with a user where the name of its column should be."""
    users = bundle.user_ids.cast(pa.string())
    if table.is_text and name != COLUMN and pc.is_in(pa.array([name]), users)[0].as_py():
        raise UserError(
            f"{table.uri} has no line with the name of its column: the first holds the user {shown(name)}; write "
            f"'{COLUMN}' above it, or name the file .txt"
        )
