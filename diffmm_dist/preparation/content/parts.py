"""Blocks of features that are kept until all are there, beside the file that they are for.

A block's name says what it was made of and what is in it, so a command that was killed goes on with those that fit,
and makes the others anew, such as those whose files have been mended since.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from typing_extensions import TypedDict

from diffmm_dist import storage
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.places import target_of
from diffmm_dist.preparation.content.encoder import Vectors
from diffmm_dist.preparation.content.items import Block, Damage
from diffmm_dist.preparation.content.request import FEATURES
from diffmm_dist.staging import alone_in

_MANIFEST = "manifest.json"
_NAME = re.compile(r"(\d{8}-[0-9a-f]{16})-([0-9a-f]{64})\.arrow")
_LARGEST_PART = 1 << 30
_PARTS_PER_GROUP = 32  # in a row group of the file
_DAMAGED, _MADE_OF = b"damaged", b"diffmm_dist"


class Manifest(TypedDict):
    """What all blocks of a folder have in common."""

    format: Literal["diffmm_dist features"]
    version: Literal[1]
    made_with: dict[str, str | int | float]


@dataclass(frozen=True)
class Made:
    """The features of a block.

    Attributes:
        ids: of the items that have some (n,).
        vectors: theirs (n, width).
        damaged: contents that count for nothing.
    """

    ids: pa.Array
    vectors: Vectors
    damaged: list[Damage]


class Parts:
    """The blocks of one file of features.

    Args:
        out: the file.
        force: replace it if it is there, and remove blocks that were made with something else.

    Attributes:
        num_changed: blocks that were there, made of something else.

    Raises:
        UserError: the file is there, no block is, and ``force`` is not given.
    """

    def __init__(self, out: str, *, force: bool) -> None:
        self._out, self._force = out, force
        parent, _, name = target_of(out).rpartition("/")
        self._folder = f"{parent}/.{name}.parts"
        self._used: list[str] = []
        self.num_changed = 0
        self._kept = self._listed()
        if storage.exists(out) and not (force or self._kept):
            raise UserError(f"{out} already exists; choose another place or pass --force to replace it")

    @contextmanager
    def opened(self, made_with: Mapping[str, str | int | float]) -> Iterator[None]:
        """Work with the folder, alone where the disk has locks.

        Args:
            made_with: what the values depend on, beside the contents.

        Raises:
            UserError: another command is at work, or blocks were made with something else.
        """
        with nullcontext() if storage.is_remote(self._folder) else alone_in(self._folder, what=self._out):
            self._kept = self._listed()  # what is there now that nobody else is at work
            if self._kept:
                self._compare(made_with)
            manifest = Manifest(format="diffmm_dist features", version=1, made_with=dict(made_with))
            storage.write_record(storage.join(self._folder, _MANIFEST), manifest)
            try:
                yield
            finally:
                if not (self._kept or self._used):
                    storage.remove_folder(self._folder)

    def _listed(self) -> dict[str, str]:
        """Return the names of the blocks that are there, by what stands before their checksums."""
        names = map(_NAME.fullmatch, storage.list_names(self._folder))
        return {match[1]: match[0] for match in names if match}

    def _compare(self, now: Mapping[str, str | int | float]) -> None:
        try:
            found: Manifest = storage.read_record(
                storage.join(self._folder, _MANIFEST), Manifest, remedy="pass --force to begin anew",
                must_be_sealed=True,
            )  # fmt: skip
            before = found["made_with"]
            different = [f"{key} {before.get(key)} (now {now.get(key)})" for key in {**before, **now}
                         if before.get(key) != now.get(key)]  # fmt: skip
            if different:
                raise UserError(
                    f"{self._folder} holds what an earlier command has made for {self._out} with "
                    f"{', '.join(different)}; give the same again, choose another --out, or pass --force to begin anew"
                )
        except UserError:
            if not self._force:
                raise
            for name in self._kept.values():
                storage.remove_file(storage.join(self._folder, name))
            self._kept = {}

    def find(self, block: Block) -> Made | None:
        """Return what is kept of a block, None if it is not there, or not as it was written."""
        key = _key(block)
        name = self._kept.get(key)
        if name is None:
            self.num_changed += any(kept.startswith(f"{block.number:08d}-") for kept in self._kept)
            return None
        try:
            made = self._read(name)
        except DamagedError:
            return None
        self._used.append(name)
        return made

    def keep(self, block: Block, made: Made) -> None:
        """Write a block, which is there as a whole or not at all."""
        damaged = json.dumps([asdict(one) for one in made.damaged])
        schema = pa.schema([("item", made.ids.type), (FEATURES, pa.list_(pa.float32()))], {_DAMAGED: damaged})
        offsets = np.arange(len(made.ids) + 1, dtype=np.int32) * made.vectors.shape[1]
        features = pa.ListArray.from_arrays(offsets, made.vectors.reshape(-1))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(pa.Table.from_arrays([made.ids, features], schema=schema))
        data = sink.getvalue().to_pybytes()
        name = f"{_key(block)}-{hashlib.sha256(data).hexdigest()}.arrow"
        storage.write_bytes(storage.join(self._folder, name), data)
        self._used.append(name)

    def _read(self, name: str) -> Made:
        """Read a part, whose checksum is in its name.

        Raises:
            DamagedError: it is not what was written.
        """
        uri = storage.join(self._folder, name)
        data = storage.read_bytes(uri, limit=_LARGEST_PART)
        if f"-{hashlib.sha256(data).hexdigest()}.arrow" not in name:
            raise DamagedError(f"{uri} is damaged: it does not match its checksum; run the same command again")
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        table.validate(full=True)
        vectors = table[FEATURES].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        damaged = [Damage(**one) for one in json.loads(table.schema.metadata[_DAMAGED])]
        return Made(table["item"].combine_chunks(), vectors, damaged)

    def write(self, *, id_column: str, id_type: pa.DataType, width: int, made_of: Mapping[str, str]) -> None:
        """Write the file from all blocks that were found or kept, and remove these.

        Args:
            id_column: what its column of ids is called.
            id_type: int64 or string.
            width: of the features.
            made_of: for the file's metadata.
        """
        features = pa.list_(pa.float32(), width)
        schema = pa.schema([(id_column, id_type), (FEATURES, features)], {_MADE_OF: json.dumps(dict(made_of))})
        with storage.replacing_file(self._out) as file, parquet.ParquetWriter(
            storage.unclosed(file), schema, compression="zstd", use_dictionary=False
        ) as writer:  # fmt: skip
            for names in _groups(self._used, _PARTS_PER_GROUP):
                made = [one for one in map(self._read, names) if len(one.ids)]
                if made:
                    ids = pa.concat_arrays([one.ids for one in made])
                    values = pa.array(np.concatenate([one.vectors for one in made]).reshape(-1))
                    vectors = pa.FixedSizeListArray.from_arrays(values, width)
                    writer.write_table(pa.Table.from_arrays([ids, vectors], schema=schema))
        storage.remove_folder(self._folder, marker=_MANIFEST)


def _key(block: Block) -> str:
    return f"{block.number:08d}-{block.fingerprint()[:16]}"


def _groups(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
