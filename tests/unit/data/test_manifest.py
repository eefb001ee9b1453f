"""Manifests that somebody else wrote: every field has a form and a bound, and nothing leads out of the dataset."""

import json
import os
import shutil

import pytest

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.partitioning import partition_dataset
from tests.support.builders import synthetic_dataset


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("d")
    synthetic_dataset(path / "whole")
    partition_dataset(str(path / "whole"), str(path / "parts"), num_parts=2, method="random", seed=1)
    return path / "parts"


@pytest.fixture
def dataset(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "d")
    return tmp_path / "d"


def rewrite(dataset, change):
    """Write a manifest as a forger would: consistent in itself, so without the checksum of the old one."""
    content = json.loads((dataset / "manifest.json").read_text())
    content.pop("sha256", None)
    change(content)
    (dataset / "manifest.json").write_text(json.dumps(content))


def put(*path, value):
    def change(content):
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    return change


def deep(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


NAMES = ["../x", "a b", "", "x" * 99]
ENTRY = {"path": "a", "rows": 0, "sha256": "a" * 64, "row_start": 0}
MODALITY = {"width": 1, "dtype": "float32", "files": []}
FILE = ("user_ids", "files", 0)
HASHES = ["../victim", "/etc/passwd", "", "A" * 64, "a" * 63, "a" * 64 + "\n", "a" * 65, "a" * 32 + "/" * 32]
PATHS = ["../victim", "/etc/passwd", "a/../../b", "..", "./x", "a//b", "a/./b", "a\\..\\b", "C:x", "a\0b", "a\nb", "",
         "a/", "~/x", "x" * 600, "s3://b/x", "%2e%2e/x", "a/.hidden"]  # fmt: skip
HOSTILE = {
    **{f"a checksum {value!r:.20}": put(*FILE, "sha256", value=value) for value in HASHES},
    **{f"a path {value!r:.20}": put(*FILE, "path", value=value) for value in PATHS},
    **{f"a modality called {value!r:.9}": put("modalities", value, value={}) for value in NAMES},
    "negative rows": put(*FILE, "rows", value=-1),
    "rows beyond counting": put(*FILE, "rows", value=2**63),
    "rows that do not fit": put(*FILE, "rows", value=10**9),
    "a fraction of a row": put(*FILE, "rows", value=1.5),
    "users beyond counting": put("num_users", value=2**40),
    "users that no file has": put("num_users", value=2**31 - 1),
    "fewer users": put("num_users", value=1),
    "no users": put("num_users", value=0),
    "items that no file has": put("num_items", value=10**9),
    "a start that leaves a gap": put("user_ids", "files", 1, "row_start", value=59),
    "a start that overlaps": put("user_ids", "files", 1, "row_start", value=0),
    "files in another order": lambda content: content["user_ids"]["files"].reverse(),
    "users of files overlap": put("interactions", "train", 1, "user_start", value=0),
    "users of files turned around": put("interactions", "train", 0, "user_stop", value=0),
    "a file for everything": put("user_ids", "files", 1, "path", value="ids/items-00000.arrow"),
    "one file missing": lambda content: content["user_ids"]["files"].pop(),
    "no files": put("modalities", "visual", "files", value=[]),
    "too many files": put("user_ids", "files", value=[ENTRY] * 200_000),
    "a width beyond memory": put("modalities", "visual", "width", value=2**40),
    "a width of nothing": put("modalities", "visual", "width", value=0),
    "too many modalities": put("modalities", value={f"m{i}": MODALITY for i in range(99)}),
    "bounds that fall": put("partition", "user_bounds", value=[0, 50, 40]),
    "bounds beyond the users": put("partition", "user_bounds", value=[0, 30, 10**6]),
    "bounds that do not start": put("partition", "item_bounds", value=[1, 20, 40]),
    "one bound": put("partition", "item_bounds", value=[0]),
    "other numbers of parts": put("partition", "item_bounds", value=[0, 10, 20, 40]),
    "a report of texts": put("partition", "report", value={"random": {"cut_edges": "x"}}),
    "a history without end": put("made_by", value={"importer": "x" * 10**6}),
    "a history nested deep": put("made_by", value=deep(200)),
    "an unknown field": put("extra", value=1),
    "another format": put("format", value="x" * 10**6),
    "another version": put("version", value=["x"] * 10**5),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_manifest_is_one_sentence(dataset, kind):
    rewrite(dataset, HOSTILE[kind])
    with pytest.raises(UserError) as error:
        Dataset.open(str(dataset))
    assert "manifest.json" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_figures_of_a_partition_may_be_missing(dataset, run_cli):
    rewrite(dataset, put("partition", "report", value={"random": {}}))
    status, out, _ = run_cli("inspect", dataset)
    assert status == 0
    assert "nan" in out


def test_a_file_that_is_a_link_out_of_the_dataset_is_not_followed(dataset, tmp_path, run_cli):
    file = dataset / "ids" / "users-00000.arrow"
    shutil.move(file, tmp_path / "elsewhere.arrow")
    file.symlink_to(tmp_path / "elsewhere.arrow")
    opened = Dataset.open(str(dataset))
    for read in (lambda: opened.original_ids("users"), opened.verify):
        with pytest.raises(UserError, match="is a link that leads out of"):
            read()
    file.unlink()
    shutil.move(tmp_path / "elsewhere.arrow", dataset / "ids" / "kept.arrow")
    file.symlink_to("kept.arrow")
    (tmp_path / "linked").symlink_to(dataset)
    assert len(Dataset.open(str(tmp_path / "linked")).original_ids("users")) == 60


def test_a_file_that_is_a_pipe_is_not_waited_for(dataset):
    file = dataset / "ids" / "users-00000.arrow"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="no regular file"):
        Dataset.open(str(dataset)).original_ids("users")
