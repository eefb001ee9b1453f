"""A run of one interpreter is evaluated, exported and gone on with by every other, with the same figures.

``bash .ci/run interpreters`` makes an environment for each and names their interpreters in DIFFMM_INTERPRETERS.
"""

import json
import os
import shutil
import subprocess
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest
import torch

from diffmm_dist.export.bundle import read_bundle
from tests.support.builders import ROOT, metrics_of, synthetic_dataset, write_config

PYTHONS = [path for path in os.environ.get("DIFFMM_INTERPRETERS", "").split(os.pathsep) if path]
COMMANDS = """
import json, sys
from diffmm_dist import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["launch.py", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


def name(python):
    """The name of an interpreter's environment, which ends with its version."""
    return Path(python).parents[1].name


PAIRS = [
    pytest.param(*pair, id=" to ".join(map(name, pair)), marks=pytest.mark.xdist_group(name(pair[0])))
    for pair in permutations(PYTHONS, 2)
]
pytestmark = pytest.mark.skipif(not PYTHONS, reason="run them by `bash .ci/run interpreters`")


def run(python, *commands):
    """Run commands one after the other in one process of an interpreter; return what they print."""
    texts = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([python, "-c", COMMANDS, texts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_config(
        folder / "c.yaml", data={"path": synthetic_dataset(folder / "d")}, run={"path": "to be set"},
        train={"epochs": 2}, checkpoint={"every_steps": 4, "keep": 100},
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
    """From an interpreter to a finished run, what it evaluates to, and its bundle, all by that interpreter itself."""
    folder = tmp_path_factory.mktemp("finished")

    @cache
    def made(python):
        path, bundle = folder / name(python), folder / f"{name(python)}-bundle"
        run(python, ["train", "--config", config, f"run.path={path}"])
        figures, _ = run(python, ["evaluate", path], ["export", path, "--out", bundle])
        return path, figures.splitlines()[:-1], bundle

    return made


def assert_close(ours, theirs):
    """Figures of two builds of torch, which may sum in another order."""
    assert len(ours) == len(theirs)
    for record, other in zip(ours, theirs, strict=True):
        assert record == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("wrote", "reads"), PAIRS)
def test_a_finished_run_is_evaluated_and_exported_with_the_same_figures(wrote, reads, finished, tmp_path):
    path, figures, bundle = finished(wrote)
    shown, _ = run(reads, ["evaluate", path], ["export", path, "--out", tmp_path / "bundle"])
    assert shown.splitlines()[:-1] == figures
    ours, theirs = read_bundle(str(tmp_path / "bundle")), read_bundle(str(bundle))
    assert ours.user_ids == theirs.user_ids
    for table in ("user_embeddings", "item_embeddings"):
        torch.testing.assert_close(getattr(ours, table), getattr(theirs, table), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("began", "goes_on"), PAIRS)
def test_a_run_that_stands_inside_an_epoch_goes_on_to_the_same_figures(began, goes_on, finished, config, tmp_path):
    whole, _, _ = finished(began)
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    (half / "result.json").unlink()
    names = sorted(path.name for path in (half / "checkpoints").iterdir())
    inside = next(name for name in names if name.startswith("epoch-00001-phase-"))
    for later in names[names.index(inside) + 1 :]:
        shutil.rmtree(half / "checkpoints" / later)
    _, log = run(goes_on, ["train", "--config", config, f"run.path={half}"])
    assert f"resuming {half} from checkpoint {inside}" in log
    assert_close(metrics_of(half), metrics_of(whole))
