"""A run of one interpreter is evaluated, exported and gone on with by every other, with the same figures.

``bash .ci/run between`` makes an environment for each, with several releases of torch among them, and names their
interpreters in DIFFMM_INTERPRETERS. Each runs as few processes as can be: starting one takes longer than what it does.
"""

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from diffmm_dist.bundles.bundle import read_bundle
from tests.support.builders import ROOT, metrics_of, synthetic_dataset, write_config

PYTHONS = [path for path in os.environ.get("DIFFMM_INTERPRETERS", "").split(os.pathsep) if path]
AT_ONCE = 2
END = "----- end of a command -----"
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
    for stream in (sys.stdout, sys.stderr):
        print(END, file=stream, flush=True)
""".replace("END", repr(END))


def name(python):
    """The name of an interpreter's environment, which ends with its version."""
    return Path(python).parents[1].name


PAIRS = [pytest.param(*pair, id=" to ".join(map(name, pair))) for pair in permutations(PYTHONS, 2)]
pytestmark = pytest.mark.skipif(not PYTHONS, reason="run them by `bash .ci/run between`")


def run(python, *commands):
    """Run commands one after the other in one process of an interpreter; return what each prints, and each's log."""
    texts = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([python, "-c", COMMANDS, texts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [stream.split(f"{END}\n")[:-1] for stream in (done.stdout, done.stderr)]


def by_each(function):
    """What a function of an interpreter returns for each of them; some run at once."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return dict(zip(PYTHONS, threads.map(function, PYTHONS), strict=True))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_config(
        folder / "c.yaml", data={"path": synthetic_dataset(folder / "d")}, run={"path": "to be set"},
        train={"epochs": 2}, checkpoint={"every_steps": 4, "keep": 100},
    )  # fmt: skip


class Finished(NamedTuple):
    """A run that an interpreter has finished, what it evaluates to, and its bundle, all by that interpreter itself."""

    run: Path
    figures: list[str]
    bundle: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
    """Of each interpreter."""
    folder = tmp_path_factory.mktemp("finished")

    def made(python):
        path, bundle = folder / name(python), folder / f"{name(python)}-bundle"
        printed, _ = run(
            python, ["train", "--config", config, f"run.path={path}"], ["evaluate", path],
            ["export", path, "--out", bundle],
        )  # fmt: skip
        return Finished(path, printed[1].splitlines(), bundle)

    return by_each(made)


def half(whole, folder):
    """A copy of a finished run as it stood inside its second epoch, and the name of its last checkpoint then."""
    shutil.copytree(whole, folder)
    (folder / "result.json").unlink()
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    inside = next(name for name in names if name.startswith("epoch-00001-phase-"))
    for later in names[names.index(inside) + 1 :]:
        shutil.rmtree(folder / "checkpoints" / later)
    return inside


class Read(NamedTuple):
    """What an interpreter has made of another's run.

    Attributes:
        figures: of its evaluation.
        bundle: exported from it.
        gone_on: the run, from inside an epoch to its end.
        log: of that.
        inside: the checkpoint that it went on from.
    """

    figures: list[str]
    bundle: Path
    gone_on: Path
    log: str
    inside: str


@pytest.fixture(scope="module")
def read(tmp_path_factory, config, finished):
    """From an interpreter to what it has made of every other's run."""
    folder = tmp_path_factory.mktemp("read")

    def by(python):
        found, commands = {}, []
        for wrote in PYTHONS:
            if wrote == python:
                continue
            own = folder / f"{name(python)} of {name(wrote)}"
            bundle, gone_on = own / "bundle", own / "run"
            inside = half(finished[wrote].run, gone_on)
            commands += [
                ["evaluate", finished[wrote].run], ["export", finished[wrote].run, "--out", bundle],
                ["train", "--config", config, f"run.path={gone_on}"],
            ]  # fmt: skip
            found[wrote] = bundle, gone_on, inside
        printed, logs = run(python, *commands)
        return {
            wrote: Read(printed[3 * place].splitlines(), bundle, gone_on, logs[3 * place + 2], inside)
            for place, (wrote, (bundle, gone_on, inside)) in enumerate(found.items())
        }

    return by_each(by)


def assert_close(ours, theirs):
    """Figures of two builds of torch, which may sum in another order."""
    assert len(ours) == len(theirs)
    for record, other in zip(ours, theirs, strict=True):
        assert record == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("wrote", "reads"), PAIRS)
def test_a_finished_run_is_evaluated_and_exported_with_the_same_figures(wrote, reads, finished, read):
    assert read[reads][wrote].figures == finished[wrote].figures
    ours, theirs = (read_bundle(str(bundle)) for bundle in (read[reads][wrote].bundle, finished[wrote].bundle))
    assert ours.user_ids == theirs.user_ids
    for table in ("user_rows", "item_rows"):
        found, expected = (getattr(bundle, table).array() for bundle in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("began", "goes_on"), PAIRS)
def test_a_run_that_stands_inside_an_epoch_goes_on_to_the_same_figures(began, goes_on, finished, read):
    found = read[goes_on][began]
    assert f"resuming {found.gone_on} from checkpoint {found.inside}" in found.log
    assert_close(metrics_of(found.gone_on), metrics_of(finished[began].run))
