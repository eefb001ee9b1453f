"""Files of items below a folder, on a disk or a store, and which item each belongs to."""

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import NoReturn

import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.content.items import ITEMS_PER_BLOCK, Block, Content, Damage, examples
from diffmm_dist.preparation.content.request import ContentRequest
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.columns import as_text, id_array, typed_ids
from diffmm_dist.stores.access import explained, resolve
from diffmm_dist.stores.registry import store_of


def versions_of(folder: str) -> dict[str, str]:
    """Return the paths of the files in a folder and below, each with what tells its present version from others.

    Links to files are read; those to folders are listed as what they are and not followed, since they may lead back.
    """
    _, path = resolve(folder)
    with explained(folder, "list"):
        if not storage.is_remote(folder):
            return dict(_walked(path))
        found = store_of(folder).versions(path)
        root = f"{path.rstrip('/')}/"
        return {name.removeprefix(root): version for name, version in found.items() if name.startswith(root)}


def _walked(root: str) -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(root, onerror=_refuse):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in [*files, *links]:
            path = os.path.join(folder, name)
            version = ""
            with suppress(OSError):  # a link that leads nowhere is told when it is read
                found = os.stat(path)
                version = f"{found.st_size} {found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else "no file"
            yield os.path.relpath(path, root), version


def _refuse(error: OSError) -> NoReturn:
    raise error  # instead of leaving out a folder that may not be read


class FileSource:
    """The files of a folder; several of one item stand together.

    Args:
        request: which folder, and what ids are.
        endings: of the files that count, small and with their dots; with a table of ids those count that it names.

    Attributes:
        notes: sentences about what is left out or might surprise.
        damaged: files that the table of ids names and the folder lacks.
        num_items: items that have files.
        id_type: int64 or string.

    Raises:
        UserError: there is no such folder, table or column.
    """

    id_type: pa.DataType

    def __init__(self, request: ContentRequest, endings: Collection[str]) -> None:
        self._folder, self._request, self._endings = request.source, request, endings
        self.notes: list[str] = []
        self.damaged: list[Damage] = []
        if not storage.is_folder(self._folder):
            what = "is no folder" if storage.exists(self._folder) else "does not exist"
            raise UserError(f"{self._folder} {what}; name a folder with the files of the items")
        self._map: Table | None = None
        if request.ids is not None:
            self._map = Table(request.ids, request.text)
            self._map.check_columns([request.file_column, request.id_column])
            self.notes += self._map.notes
        self.num_items = 0

    def scan(self) -> None:
        """List the folder; it is an error if it is not clear which item a file belongs to."""
        versions = versions_of(self._folder)
        odd = sorted(name for name in versions if not _is_text(name))
        if odd:
            raise UserError(
                f"{self._folder} has {len(odd):,} files whose names are no UTF-8, such as {odd[0]!r}; rename them"
            )
        owners: Mapping[str, int | str]
        owners = self._named(versions) if self._map is None else self._mapped(versions, self._map)
        names = sorted(owners, key=lambda name: (str(owners[name]), name))
        self._contents: list[list[Content]] = []
        ids: list[int | str] = []
        for name in names:
            if not ids or ids[-1] != owners[name]:
                ids.append(owners[name])
                self._contents.append([])
            self._contents[-1].append(Content(name, storage.join(self._folder, name), versions[name]))
        self._ids = self._typed(ids)
        self.id_type = self._ids.type
        self.num_items = len(ids)
        several = sum(len(contents) > 1 for contents in self._contents)
        if several:
            self.notes.append(f"{several:,} items have several files, whose features are averaged")

    def blocks(self) -> Iterator[Block]:
        """Yield the items in the order of their ids as text."""
        for number, start in enumerate(range(0, self.num_items, ITEMS_PER_BLOCK)):
            rows = slice(start, start + ITEMS_PER_BLOCK)
            yield Block(number, self._ids[rows].combine_chunks(), self._contents[rows])

    def _named(self, versions: dict[str, str]) -> dict[str, str]:
        """Return the item of each file that counts, by the names of files or folders."""
        chosen = [name for name in versions if not _is_hidden(name) and _ending(name) in self._endings]
        known = ", ".join(sorted(self._endings))
        if not chosen:
            raise UserError(f"{self._folder} holds no file that ends in {known}; check the folder")
        left_out = sorted(set(versions) - set(chosen))
        if left_out:
            self.notes.append(f"left out {len(left_out):,} files that do not end in {known}: {examples(left_out)}")
        if self._request.id_from == "folder":
            loose = sorted(name for name in chosen if "/" not in name)
            if loose:
                raise UserError(
                    f"{self._folder}: {len(loose):,} files lie in no folder of an item, such as {examples(loose)}; "
                    "move them, or leave --id-from out"
                )
            return {name: name.split("/")[-2] for name in chosen}
        self._refuse_same_names(chosen)
        return {name: _stem(name) for name in chosen}

    def _refuse_same_names(self, names: list[str]) -> None:
        """Refuse names that stand in several folders, where the folder may well be what tells items apart."""
        folders: dict[str, str] = {}
        for name in sorted(names):
            folder = name.rpartition("/")[0]
            if folders.setdefault(_stem(name), folder) != folder:
                first = f"{folders[_stem(name)]}/{name.rpartition('/')[2]}".lstrip("/")
                raise UserError(
                    f"{self._folder}: files of one name lie in several folders, such as {first} and {name}; pass "
                    "--id-from folder if the folder is the item, or --ids with a table of which item each file is of"
                )

    def _mapped(self, versions: dict[str, str], table: Table) -> dict[str, int | str]:
        """Return the item of each file by the table of ids."""
        columns = [self._request.file_column, self._request.id_column]
        owners: dict[str, int | str] = {}
        missing: dict[str, None] = {}
        num_lacking = 0
        for batch in table.batches(columns):
            files, ids = (id_array(batch[name], name=name, uri=table.uri).to_pylist() for name in columns)
            for file, item in zip(files, ids, strict=True):
                if file is None or item is None:
                    num_lacking += 1
                    continue
                name = str(file).removeprefix("./")
                if owners.setdefault(name, item) != item:
                    raise UserError(f"{table.uri}: {name} is of item {owners[name]!r} and {item!r}; keep one of them")
                if name not in versions:
                    missing[name] = None
        if len(missing) == len(owners):
            raise UserError(
                f"{table.uri}: {self._folder} has none of the files of column '{columns[0]}', such as "
                f"{examples(missing) or 'none'} (it has {examples(sorted(versions)) or 'none'}); write paths within it"
            )
        if num_lacking:
            self.notes.append(f"{num_lacking:,} rows of {table.uri} without a file or an id are left out")
        unnamed = sorted(name for name in versions if name not in owners)
        if unnamed:
            self.notes.append(f"left out {len(unnamed):,} files that {table.uri} does not name: {examples(unnamed)}")
        self.damaged = [Damage(name, "it is not there") for name in missing]
        return {name: item for name, item in owners.items() if name not in missing}

    def _typed(self, ids: list[int | str]) -> pa.ChunkedArray:
        found = pa.chunked_array([pa.array(ids)])
        if self._request.text_ids:
            return as_text(found)
        if self._map is None or self._map.is_text:  # ids that nobody has read as numbers yet
            typed, notes = typed_ids(found, column="file name", uri=self._folder)
            if len(typed.unique()) == len(found):  # 7 and 7.0 are two items
                self.notes += notes
                return typed
        return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _stem(name: str) -> str:
    stem, dot, _ = name.rpartition("/")[2].rpartition(".")
    return stem if dot else name.rpartition("/")[2]


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
