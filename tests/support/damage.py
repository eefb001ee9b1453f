"""Ways in which files get damaged, and files that were forged to hide it."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa

from diffmm_dist.errors import UserError
from diffmm_dist.records import run_of_text, sealed, sealed_text, unsealed


def flip(path, place, bit=0):
    """Flip one bit of a file; ``place`` is a byte, or a share of the file between 0 and 1."""
    path = Path(path)
    data = bytearray(path.read_bytes())
    data[int(place * len(data)) if isinstance(place, float) else place] ^= 1 << bit
    path.write_bytes(data)


def empty(path):
    Path(path).write_bytes(b"")


def truncate(path):
    path = Path(path)
    os.truncate(path, path.stat().st_size * 2 // 3)


def delete(path):
    Path(path).unlink()


def into_folder(path):
    Path(path).unlink()
    Path(path).mkdir()


def lengthen(path):
    with open(path, "ab") as file:
        file.write(b"\0" * 8)


def swap(path, other):
    """Give two files each other's names."""
    aside = Path(path).with_name("aside")
    shutil.move(path, aside)
    shutil.move(other, path)
    shutil.move(aside, other)


# Whatever happens to a whole file, by the name of what happened.
WHOLE = {"emptied": empty, "truncated": truncate, "deleted": delete, "a folder": into_folder, "longer": lengthen}


def read_table(path):
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_table(path, table):
    """Replace an Arrow file by an intact one that holds something else."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)


def rotate_rows(path):
    """Move the first row of an Arrow file to its end."""
    table = read_table(path)
    write_table(path, pa.concat_tables([table.slice(1), table.slice(0, 1)]).combine_chunks())


def forge(folder, marker):
    """Make a dataset's manifest or a bundle's marker agree with the files as they are now."""
    place = Path(folder) / marker
    record = unsealed(json.loads(place.read_text()))
    _forge_entries(Path(folder), record)
    place.write_text(json.dumps(sealed(record)))


def forge_config(run, old, new):
    """Change a run's configuration and the checksum in it."""
    place = Path(run) / "config.yaml"
    text = place.read_text()
    run, content = run_of_text(text), text.rpartition("# run: ")[0]
    assert old in content
    place.write_text(sealed_text(content.replace(old, new), run=run))


def forge_checkpoint(folder):
    """Make a checkpoint's index agree with its files as they are now, and its state with the index."""
    index = json.loads((folder / "index.json").read_text())
    for entry in index["tensors"].values():
        for chunk in entry["chunks"]:
            data = (folder / chunk["file"]).read_bytes()[chunk["start"] : chunk["start"] + chunk["length"]]
            chunk["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    forge_state(folder)


def forge_state(folder):
    """Make a checkpoint's state agree with its index as it is now."""
    reseal(folder / "state.json", index=hashlib.sha256((folder / "index.json").read_bytes()).hexdigest())


def reseal(path, **changes):
    """Change a record and the checksum in it."""
    path.write_text(json.dumps(sealed({**unsealed(json.loads(path.read_text())), **changes})))


def _forge_entries(folder, value):
    if isinstance(value, list):
        for inner in value:
            _forge_entries(folder, inner)
    elif isinstance(value, dict):
        if "path" in value and "sha256" in value:
            value["sha256"] = hashlib.sha256((folder / value["path"]).read_bytes()).hexdigest()
        for name, inner in value.items():
            if name == "files" and isinstance(inner, dict):
                inner.update({file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in inner})
            _forge_entries(folder, inner)


def refusal(read, expected):
    """The sentence with which a read is refused, or None where it gives what is expected."""
    try:
        assert read() == expected
    except UserError as error:
        return str(error)
    return None
