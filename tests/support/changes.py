"""The ways to damage a file of any kind."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from diffmm_dist.records import sealed

_FLIPS = 10


def _flip(bit):
    def change(path):
        data = bytearray(path.read_bytes())
        place = (len(data) - 1) * bit // (_FLIPS - 1)
        data[place] ^= 1 << (bit * 3 % 8)
        path.write_bytes(data)

    return change


def _cut(size):
    return lambda path: path.write_bytes(path.read_bytes()[: size(path.stat().st_size)])


def _folder(path):
    path.unlink()
    path.mkdir()


def _zeros(path):
    data = bytearray(path.read_bytes())
    start = len(data) // 3
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)


def _rotate(path):
    """Move the first row to the end."""
    if path.suffix == ".arrow":
        table = pa.ipc.open_file(path.read_bytes()).read_all()
        _write_arrow(path, pa.concat_tables([table.slice(1), table.slice(0, 1)]))
    elif path.suffix == ".parquet":
        table = parquet.read_table(path)
        parquet.write_table(pa.concat_tables([table.slice(1), table.slice(0, 1)]), path)
    elif path.suffix == ".npy":
        np.save(path, np.roll(np.load(path), -1, axis=0))
    else:
        head, first, *others = path.read_bytes().splitlines(keepends=True) or [b""] * 2
        path.write_bytes(b"".join([head, *others, first]))


def _write_arrow(path, table):
    table = table.combine_chunks()
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def _patch_offsets(path):
    """Make the offsets of texts, or the lengths of buffers, point elsewhere; the numbers of rows stay."""
    table = pa.ipc.open_file(path.read_bytes()).read_all().combine_chunks()
    _write_arrow(path, table)
    data = path.read_bytes()
    column = table.column(0).chunk(0)
    if pa.types.is_string(column.type):
        old = column.buffers()[1].to_pybytes()[: 4 * (len(column) + 1)]
        new = np.frombuffer(old, np.int32).copy()
        new[len(new) // 2] = 2**30
        assert old in data
        path.write_bytes(data.replace(old, new.tobytes()))
    else:
        rows = len(column).to_bytes(8, "little")
        assert rows in data
        path.write_bytes(data.replace(rows, (10**7).to_bytes(8, "little")))


def _resealed(change):
    """Damage a file and then write its new checksum wherever the old one stands, as a forger would."""

    def forge(path):
        old = hashlib.sha256(path.read_bytes()).hexdigest()
        change(path)
        new = hashlib.sha256(path.read_bytes()).hexdigest()
        for record in (record for folder in path.parents[:3] for record in folder.glob("*.json")):
            text = record.read_text()
            if old in text:
                content = json.loads(text.replace(old, new))
                content.pop("sha256", None)
                record.write_text(json.dumps(sealed(content)))

    return forge


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


OF_ANOTHER = "another's"  # the same file of another run, dataset, bundle or folder, intact by itself
MUTATIONS = {
    **{f"flip {bit}": _flip(bit) for bit in range(_FLIPS)},
    "half": _cut(lambda size: size // 2),
    "one byte less": _cut(lambda size: size - 1),
    "16 bytes": _cut(lambda size: min(size - 1, 16)),
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "folder": _folder,
    "pipe": _pipe,
    "device": _device,
    OF_ANOTHER: None,
    "junk behind": lambda path: path.write_bytes(path.read_bytes() + b"\x00junk\xff"),
    "junk": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "zeros": _zeros,
    "rotated": _rotate,
}
ARROW_MUTATIONS = {"offsets": _patch_offsets, "forged offsets": _resealed(_patch_offsets)}
