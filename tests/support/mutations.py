"""One of each kind of file that the program reads, the ways to damage it, and what the program then says.

``python -m tests.support.mutations`` damages everything and prints the table of docs/reliability.md.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import yaml

from diffmm_dist import cli
from diffmm_dist.data import stream
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.preparation.partitioning import partition_dataset
from tests.support.builders import ROOT, SMALL, metrics_of, published_folder, synthetic_dataset
from tests.support.changes import ARROW_MUTATIONS, MUTATIONS, OF_ANOTHER

OUTCOMES = ("right", "refused", "said", "as written", "silent", "traceback")
MEASURED = "contrast.json"


def run(*words):
    """Run the command line in this process: exit status or traceback, standard output, standard error."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    status: int | str = 0
    with (
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
        mock.patch.object(sys, "argv", ["launch.py", *map(str, words)]),
    ):
        try:
            cli.main()
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            status = traceback.format_exc()
    out, err = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in streams)
    return status, out, err


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the kind.
        folder: what is copied before it is damaged, below the world.
        file: which file in it.
        read: runs what reads it, in a copy of the folder; returns status, what came out, and what was said.
        checked: the program wrote it, with a checksum: another result is never right.
    """

    name: str
    folder: str
    file: str
    read: Callable[..., Any]
    checked: bool = True


def build(world, *, seed):
    """Make one of everything below a folder, as a user would."""
    world.mkdir(exist_ok=True)
    synthetic_dataset(world / "plain", users=40, items=30, interactions=300, modalities={"visual": 3}, seed=seed)
    partition_dataset(str(world / "plain"), str(world / "dataset"), num_parts=2, method="random", seed=1)
    configs = world / "configs"
    configs.mkdir()
    tree = {**SMALL, "data": {"path": "d"}, "run": {"path": "r", "seed": seed}}
    (configs / "base.yaml").write_text(yaml.safe_dump(tree))
    (configs / "c.yaml").write_text("extends: base.yaml\ntrain: {epochs: 2}\n")
    words = ["train", configs / "base.yaml", f"data.path={world / 'plain'}", f"run.path={world / 'run' / 'r'}"]
    assert run(*words, "train.epochs=2", "graph.kernel=csr", "model.name=lightgcn", "checkpoint.keep=2")[0] == 0
    assert run("export", world / "run" / "r", "--out", world / "bundle")[0] == 0
    published_folder(world / "published", seed=seed)
    _tables(world, seed)
    shutil.copytree(world / "dataset", world / "cached" / "dataset")
    assert _cached(world / "cached")[0] == 0
    (world / "bench").mkdir()
    for name in ("a", "b"):
        shutil.copy(ROOT / "docs" / "benchmarks" / MEASURED, world / "bench" / f"{name}.json")


def _tables(world, seed):
    random = np.random.default_rng(seed)
    table = pa.table({"u": random.integers(0, 9, 80), "i": random.integers(0, 7, 80)})
    folder = world / "tables"
    folder.mkdir()
    parquet.write_table(table, folder / "t.parquet")
    with pa.ipc.new_file(folder / "t.arrow", table.schema) as writer:
        writer.write_table(table)
    rows = list(zip(*table.to_pydict().values(), strict=True))
    (folder / "t.csv").write_text("\n".join(["u,i", *(f"{u},{i}" for u, i in rows)]) + "\n")
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"u": int(u), "i": int(i)}) for u, i in rows) + "\n")
    (world / "mmrec").mkdir()
    lines = ["userID\titemID\tx_label", *(f"{u}\t{i}\t{n % 3}" for n, (u, i) in enumerate(rows))]
    (world / "mmrec" / "baby.inter").write_text("\n".join(lines) + "\n")


def contents(path):
    """All that a dataset holds."""
    dataset = Dataset.open(str(path))
    rows = [dataset.interactions(split) for split in ("train", "valid", "test")]
    return [
        *([part.indptr.tolist(), part.indices.tolist()] for part in rows),
        {name: dataset.features(name).tolist() for name in dataset.manifest.modalities},
        *(dataset.original_ids(kind).to_pylist() for kind in ("users", "items")),
        *(dataset.source_rows(kind).tolist() for kind in ("users", "items")),
    ]


def _as_command(function):
    """Run something as the command line does, in place of a command."""
    with mock.patch.object(cli, "app", side_effect=lambda **_: function()):
        return run()


def _dataset(folder):
    found = []
    status, _, err = _as_command(lambda: found.extend(contents(folder)))
    return status, found, err


def _imported(*words):
    def read(folder):
        out = folder.parent / "out"
        status, said, err = run("prepare", *(str(word).format(folder=folder) for word in words), "--out", out)
        return status, contents(out) if status == 0 else None, said + err

    return read


def _table(name):
    return _imported("tables", f"{{folder}}/{name}", "--user", "u", "--item", "i")


def _shown(*words):
    def read(folder):
        return run(*(str(word).format(folder=folder) for word in words))

    return read


def _recommended(folder):
    out = folder.parent / "recs.parquet"
    status, _, err = run("recommend", folder, "--all", "--k", "5", "--out", out)
    return status, parquet.read_table(out).to_pylist() if status == 0 else None, err


def _resumed(folder):
    """Go on with the run for an epoch; its data are where they were."""
    text = (folder / "r" / "config.yaml").read_text()
    tree = yaml.safe_load(text)
    (folder / "go.yaml").write_text(text)
    status, _, err = run(
        "train", folder / "go.yaml", f"run.path={folder / 'r'}", f"train.epochs={tree['train']['epochs'] + 1}"
    )
    return status, metrics_of(folder / "r") if status == 0 else None, err


def _cached(folder):
    """Read a dataset that claims to be on S3, whose files are in the cache."""

    class Remote:
        def __getattr__(self, name):
            return getattr(sys.modules["diffmm_dist.storage"], name)

        @staticmethod
        def is_remote(_):
            return True

    dataset = folder / "dataset"
    found = []

    def read():
        opened = Dataset.open(str(dataset), stream.Reading(cache=str(folder / "cache")))
        found.append(opened.original_ids("users").to_pylist())

    with mock.patch.object(stream, "storage", Remote()):
        status, _, err = _as_command(read)
    return status, found, err


EVALUATED = _shown("evaluate", "{folder}/r", "--k", "5")
COMPARED = _shown("bench", "compare", "{folder}/a.json", "{folder}/b.json")
KINDS = [
    Kind("configuration", "configs", "c.yaml", _shown("config", "show", "{folder}/c.yaml"), checked=False),
    Kind("extended configuration", "configs", "base.yaml", _shown("config", "show", "{folder}/c.yaml"), checked=False),
    Kind("manifest", "dataset", "manifest.json", _dataset),
    Kind("interactions", "dataset", "interactions/split=train/part-00000.arrow", _dataset),
    Kind("features", "dataset", "items/modality=visual/part-00000.arrow", _dataset),
    Kind("ids of users", "dataset", "ids/users-00000.arrow", _dataset),
    Kind("ids of items", "dataset", "ids/items-00001.arrow", _dataset),
    Kind("order of a partition", "dataset", "order/users-00000.arrow", _dataset),
    Kind("cached file", "cached", "cache/{sha256}.arrow", _cached),
    Kind("run.json", "run", "r/run.json", EVALUATED),
    Kind("config.yaml of a run", "run", "r/config.yaml", EVALUATED),
    Kind("result.json", "run", "r/result.json", _shown("compare", "{folder}/r", "--k", "5")),
    Kind("metrics.jsonl", "run", "r/metrics.jsonl", _resumed),
    Kind("state of a checkpoint", "run", "r/checkpoints/epoch-00002/state.json", _resumed),
    Kind("index of a checkpoint", "run", "r/checkpoints/epoch-00002/index.json", _resumed),
    Kind("tensors of a checkpoint", "run", "r/checkpoints/epoch-00002/__0_0.distcp", _resumed),
    Kind("bundle.json", "bundle", "bundle.json", _recommended),
    Kind("users of a bundle", "bundle", "users.arrow", _recommended),
    Kind("items of a bundle", "bundle", "items.arrow", _recommended),
    Kind("seen of a bundle", "bundle", "seen.arrow", _recommended),
    Kind("features of a bundle", "bundle", "content.arrow", _recommended),
    Kind("pickle", "published", "trnMat.pkl", _imported("published", "{folder}"), checked=False),
    Kind(".npy", "published", "image_feat.npy", _imported("published", "{folder}"), checked=False),
    Kind("Parquet table", "tables", "t.parquet", _table("t.parquet"), checked=False),
    Kind("Arrow table", "tables", "t.arrow", _table("t.arrow"), checked=False),
    Kind("CSV table", "tables", "t.csv", _table("t.csv"), checked=False),
    Kind("JSON lines", "tables", "t.jsonl", _table("t.jsonl"), checked=False),
    Kind(".inter", "mmrec", "baby.inter", _imported("mmrec", "{folder}"), checked=False),
    Kind("benchmark", "bench", "a.json", COMPARED, checked=False),
]  # fmt: skip


def mutations_of(kind):
    """The ways to damage a kind of file."""
    is_ours = kind.file.endswith(".arrow") and kind.folder != "cached"
    return {**MUTATIONS, **(ARROW_MUTATIONS if is_ours else {})}


def _file_of(kind, folder):
    if "{sha256}" not in kind.file:
        return kind.file
    return kind.file.format(sha256=Dataset.open(str(folder / "dataset")).manifest.user_ids.files[0].sha256)


class Laboratory:
    """The world, and what each kind says undamaged."""

    def __init__(self, folder):
        self.world, self.twin = Path(folder) / "world", Path(folder) / "twin"
        build(self.world, seed=3)
        build(self.twin, seed=4)
        self._expected = {}

    def read(self, kind, mutate=None):
        """Read a copy, damaged if asked for; return the outcome and the file."""
        with tempfile.TemporaryDirectory(dir=self.world) as scratch:
            copy = Path(scratch) / "copy"
            shutil.copytree(self.world / kind.folder, copy)
            name = _file_of(kind, copy)
            if mutate == OF_ANOTHER:
                shutil.copy(self.twin / kind.folder / _file_of(kind, self.twin / kind.folder), copy / name)
            elif mutate is not None:
                mutations_of(kind)[mutate](copy / name)
            status, value, said = kind.read(copy)
            value = value.replace(str(copy), "") if isinstance(value, str) else value
            return status, value, said.replace(str(copy), ""), Path(name).name

    def outcome(self, kind, mutation):
        """Say what a damaged file leads to, one of ``OUTCOMES``, and what was said."""
        if kind.name not in self._expected:
            status, value, said, _ = self.read(kind)
            assert status == 0, f"{kind.name}, undamaged: {said}{status}"
            self._expected[kind.name] = value, set(said.splitlines())
        expected, usual = self._expected[kind.name]
        status, value, said, name = self.read(kind, mutation)
        if isinstance(status, str):
            return "traceback", status
        if status != 0:
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            one = status in (1, 2) and len(errors) == 1 and said.rstrip().endswith(errors[0])
            return ("refused" if one else "traceback"), said
        if value == expected:
            return "right", said
        names = {name, Path(kind.file).parent.name or name}
        if any(name in line for line in set(said.splitlines()) - usual for name in names):
            return "said", said
        return ("silent" if kind.checked else "as written"), said


def table(laboratory):
    """The table of docs/reliability.md."""
    lines = ["| file | damaged | right all the same | refused in a sentence | goes on and says so | read as it now is "
             "| silent | traceback |", "| --- " * 8 + "|"]  # fmt: skip
    totals: Counter[str] = Counter()
    for kind in KINDS:
        counts = Counter(laboratory.outcome(kind, mutation)[0] for mutation in mutations_of(kind))
        totals += counts
        lines.append(_row(kind.name, counts))
    return "\n".join([*lines, _row("all", totals)])


def _row(name, counts):
    return f"| {name} | {sum(counts.values())} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(table(Laboratory(place)))
