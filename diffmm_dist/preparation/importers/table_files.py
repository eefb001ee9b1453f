"""Which files a table consists of: a file, a pattern, or a folder as pandas, Spark and Hugging Face leave it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from urllib.parse import unquote

from diffmm_dist import storage
from diffmm_dist.errors import UserError, closest

_FORMATS = {
    "parquet": "Parquet", "parq": "Parquet", "pq": "Parquet", "csv": "CSV", "tsv": "TSV", "tab": "TSV", "inter": "TSV",
    "arrow": "Arrow", "arrows": "Arrow", "feather": "Arrow", "ipc": "Arrow",
    "jsonl": "JSON lines", "ndjson": "JSON lines", "json": "JSON lines",
}  # fmt: skip
_DELIMITED = ("txt", "dat", "data")  # hold anything, but with --delimiter they are tables
_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}
_COMPRESSIBLE = ("CSV", "TSV", "JSON lines")
_HIVE = re.compile(r"^([^=]+)=(.*)$")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_HUGGING_FACE = ("dataset_info.json", "state.json", "dataset_dict.json")
_SHOWN = 3


@dataclass(frozen=True)
class Part:
    """One file of a table.

    Attributes:
        uri: where it is.
        format: Parquet, CSV, TSV, Arrow or JSON lines.
        codec: how the whole file is compressed, None for not at all.
        constants: columns that its path stands for, such as ``split`` of ``split=train/``.
    """

    uri: str
    format: str
    codec: str | None = None
    constants: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class TableFiles:
    """The files of a table.

    Attributes:
        parts: those with data, in the order of their paths.
        notes: what the user should know of the others.
    """

    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()


def find_files(uri: str, *, delimited: bool = False) -> TableFiles:
    """Return the files of a table.

    Names that begin with a dot or an underscore are no data, and neither is anything below a folder with such a name.

    Args:
        uri: a file, a folder, or a pattern with ``*``, ``?`` or ``[...]``; a path or an address.
        delimited: the user says how columns are separated, so .txt, .dat and .data are taken for CSV.

    Raises:
        UserError: there is nothing, nothing of a known format, or a mixture of formats.
    """
    if storage.is_folder(uri):
        found = _in_folder(uri, delimited)
    elif storage.exists(uri):
        found = TableFiles((_part(uri, {}, delimited),))
    elif has_magic(uri):
        found = _matching(uri, delimited)
    else:
        raise UserError(
            f"{uri} does not exist; give a table ({_known()}), a folder of tables or a pattern such as *.csv"
        )
    formats = sorted({part.format for part in found.parts})
    if len(formats) > 1:
        raise UserError(f"{uri} mixes files of {' and '.join(formats)}; give a folder or a pattern of one format")
    return found


def is_table(uri: str) -> bool:
    """Tell a table from another file by its ending."""
    return _part_or_none(uri, {}, delimited=False) is not None


def _known() -> str:
    return ", ".join(f".{name}" for name in _FORMATS)


def _part(uri: str, constants: dict[str, str | None], delimited: bool) -> Part:
    """Return a file as a part.

    Raises:
        UserError: its ending is none that is read.
    """
    part = _part_or_none(uri, constants, delimited)
    if part is None:
        ending = uri.rpartition("/")[2].rpartition(".")[2].lower()
        hint = "; with --delimiter it is read as CSV" if ending in _DELIMITED else closest(ending, list(_FORMATS))
        raise UserError(f"{uri} has an ending that is not supported; a table ends in {_known()}{hint}")
    return part


def _part_or_none(uri: str, constants: dict[str, str | None], delimited: bool) -> Part | None:
    stem, dot, ending = uri.rpartition("/")[2].lower().rpartition(".")
    codec = _CODECS.get(ending) if dot else None
    if codec is not None:
        _, dot, ending = stem.rpartition(".")
    kind = "CSV" if delimited and ending in _DELIMITED else _FORMATS.get(ending)
    if not dot or kind is None or (codec is not None and kind not in _COMPRESSIBLE):
        return None
    return Part(uri, kind, codec, constants)


def _in_folder(folder: str, delimited: bool) -> TableFiles:
    names = storage.list_tree(folder)
    if "dataset_dict.json" in names:
        return _hugging_face_splits(folder, names, delimited)
    if {"state.json", "dataset_info.json"} <= set(names):
        return TableFiles(tuple(_hugging_face_parts(folder, {}, delimited)))
    notes: tuple[str, ...] = ()
    if any(name.startswith("_delta_log/") for name in names):
        notes = (
            f"{folder} is a Delta table and is read as a folder of Parquet files, so rows that its log has removed or "
            "replaced count too; write it out anew if there are any",
        )
    visible = [name for name in names if not _is_hidden(name) and name.rpartition("/")[2] not in _HUGGING_FACE]
    return _parts(folder, folder, visible, notes, delimited)


def _matching(pattern: str, delimited: bool) -> TableFiles:
    """Return the files that match a pattern; a folder that matches stands for what is in it."""
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    names: list[str] = []
    for place in storage.glob(pattern):
        inside = [f"{place}/{name}" for name in storage.list_tree(place)] if storage.is_folder(place) else [place]
        names += [name.removeprefix(fixed).lstrip("/") if fixed else name for name in inside]
    visible = sorted({name for name in names if not _is_hidden(name)})
    if not visible:
        raise UserError(f"{pattern} matches no file; check the pattern and the folder before it")
    return _parts(pattern, fixed, visible, (), delimited)


def _parts(uri: str, folder: str, names: Sequence[str], notes: Iterable[str], delimited: bool) -> TableFiles:
    parts: list[Part] = []
    others: list[str] = []
    for name in names:
        part = _part_or_none(storage.join(folder, name) if folder else name, _hive(name), delimited)
        if part is None:
            others.append(name)
        else:
            parts.append(part)
    shown = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
    if not parts:
        what = f"holds {shown}, whose endings are not supported" if others else "holds no file with data"
        raise UserError(f"{uri} {what}; a table ends in {_known()}")
    if others:
        notes = (*notes, f"left out {len(others)} files of {uri} whose endings are not supported: {shown}")
    return TableFiles(tuple(parts), tuple(notes))


def _is_hidden(name: str) -> bool:
    """Tell what engines write beside the data; a partition's folder, ``_day=1``, is data whatever its column's name."""
    *folders, file = name.split("/")
    return any(
        part.startswith(".") or (part.startswith("_") and "=" not in part) for part in folders
    ) or file.startswith((".", "_"))


def _hive(name: str) -> dict[str, str | None]:
    """Return the columns that a path's folders stand for, such as ``split=train/part-0.parquet``."""
    found = (_HIVE.match(part) for part in name.split("/")[:-1])
    values = {unquote(match[1]): unquote(match[2]) for match in found if match}
    return {key: None if value == _HIVE_NULL else value for key, value in values.items()}


def _hugging_face_splits(folder: str, names: Sequence[str], delimited: bool) -> TableFiles:
    """Return the parts of a DatasetDict that was saved to disk; each split's name is a column."""
    splits = [name.removesuffix("/state.json") for name in names if re.fullmatch(r"[^/]+/state\.json", name)]
    parts = [
        part
        for split in splits
        for part in _hugging_face_parts(storage.join(folder, split), {"split": split}, delimited)
    ]
    if not parts:
        raise UserError(f"{folder} has a dataset_dict.json but no split with a state.json; save the dataset again")
    return TableFiles(tuple(parts))


def _hugging_face_parts(folder: str, constants: dict[str, str | None], delimited: bool) -> list[Part]:
    """Return the parts that a saved Hugging Face dataset names; other files beside them are its caches."""
    place = storage.join(folder, "state.json")
    state = storage.read_json(place)
    try:
        files = [str(entry["filename"]) for entry in state["_data_files"]]
        indices = state.get("_indices_data_files") or state.get("_indices_files")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place} does not name the files of a saved dataset; save the dataset again") from error
    if indices:
        raise UserError(
            f"{folder} is a selection of rows kept in a file of its own; save it again after flatten_indices()"
        )
    bad = [name for name in files if "/" in name or "\\" in name or name.startswith(".")]
    if bad or not files:
        raise UserError(f"{place} names {repr(bad[0]) if bad else 'no file'} as data; save the dataset again")
    return [_part(storage.join(folder, name), constants, delimited) for name in files]
