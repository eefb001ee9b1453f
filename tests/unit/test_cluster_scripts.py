"""The images of cluster/ and its scripts: linted, and run where what they call can be played."""

import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from diffmm_dist.statuses import again_may_help
from tests.support.builders import ROOT
from tests.support.kubernetes import FOLDER, objects, ray_cluster

CLUSTER = ROOT / "cluster"
DOCKERFILE = CLUSTER / "docker" / "Dockerfile"
SAVE_AND_STOP = CLUSTER / "docker" / "save-and-stop.sh"
SLURM = CLUSTER / "slurm" / "train.sbatch"
SKY = yaml.safe_load((CLUSTER / "sky" / "train.yaml").read_text())


def linter(name):
    """A linter of the package index, beside this Python."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return found or pytest.skip(f"{name} is not installed")


def complaints(*command, text=None):
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr if done.returncode else ""


def test_the_image_is_as_the_linter_wants_it():
    assert complaints(linter("hadolint"), "--no-color", str(DOCKERFILE)) == ""
    wrong = DOCKERFILE.read_text().replace("USER 1000:1000", "USER root")
    assert "DL3002" in complaints(linter("hadolint"), "--no-color", "-", text=wrong)


def test_the_image_holds_what_the_clusters_need():
    text = DOCKERFILE.read_text()
    (python,) = re.findall(r"^FROM python:([0-9.]+)-slim$", text, re.M)
    assert SpecifierSet(metadata("diffmm-dist")["Requires-Python"]).contains(python)
    assert "requirements.py pyproject.toml aws serve >" in text
    for program in ("wget", "procps", "rsync", "openssh-client", "ca-certificates"):
        assert program in text.split()


def test_the_image_gets_the_packages_before_the_code():
    pytest.importorskip("tomllib", reason="the image's Python has it, 3.10 has not")
    script = CLUSTER / "docker" / "requirements.py"
    words = [sys.executable, str(script), str(ROOT / "pyproject.toml"), "aws", "serve"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert {Requirement(line).name for line in listed} >= {"torch", "ray", "boto3"}  # Ray's AWS provider wants the last
    assert {extra for line in listed for extra in Requirement(line).extras} >= {"default", "train", "serve"}


def test_ray_is_the_same_everywhere():
    (image,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", DOCKERFILE.read_text(), re.M)
    (sky,) = re.findall(r'"ray==(\S+)"', SKY["setup"])
    of_objects = {ray_cluster(tree)["rayVersion"] for path in FOLDER.glob("ray*.yaml") for tree in objects(path)}
    assert {image, sky} == of_objects
    assert '"ray==$RAY_VERSION"' in DOCKERFILE.read_text()


def sent_to_the_builder(path):
    """Whether .dockerignore lets a file of the project through: the last pattern that fits counts."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        fits = pattern == "*" or path.is_relative_to(pattern) or (pattern.startswith("**/") and path.match(pattern[3:]))
        kept = line.startswith("!") if fits else kept
    return kept


def test_the_builder_gets_what_it_copies_and_nothing_else():
    sources = [word for line in re.findall(r"^COPY (.*)", DOCKERFILE.read_text(), re.M) for word in line.split()[:-1]]
    assert "pyproject.toml" in sources
    for name in [*sources, "diffmm_dist/cli.py", "configs/demo.yaml", "cluster/docker/save-and-stop.sh", "launch.py"]:
        assert (ROOT / name).exists()
        assert sent_to_the_builder(Path(name)) or name == "."
    for name in (".git/config", "datasets/demo/manifest.json", ".venv/bin/python", "runs/a/lock", "tests/conftest.py",
                 ".env", "diffmm_dist/__pycache__/cli.pyc", "docs/architecture.md"):  # fmt: skip
        assert not sent_to_the_builder(Path(name)), name


@pytest.mark.parametrize("script", [SLURM, SAVE_AND_STOP, "setup", "run"], ids=str)
def test_scripts_are_as_the_linter_wants_them(script):
    text = script.read_text() if isinstance(script, Path) else f"#!/bin/bash\n{SKY[script]}"
    assert complaints(linter("shellcheck"), "--exclude=SC1090", "-", text=text) == ""
    assert "SC" in complaints(linter("shellcheck"), "-", text=f"{text}\nrm $HOME\n")


# What Slurm and Ray would be: each says what it was called with, and some do a little more.
PLAYED = {
    "scontrol": '[ "$1" = show ] && echo node1 || true',
    "getent": "echo '127.0.1.1 STREAM'; echo '10.0.0.7 STREAM'",
    "ray": 'if [ "$1" = start ]; then echo "$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >> log; exec sleep 60; fi; '
           "until grep -q ^token log; do sleep 0.01; done",
    "srun": 'shift 2; exec env SLURM_PROCID=0 "$@"',
    "squeue": 'echo "$STATE"',
    "diffmm-dist": 'trap "exit 130" TERM; touch started; for _ in {1..600}; do [ -e wait ] || exit "$STATUS"; '
                   "sleep 0.05; done",
}  # fmt: skip


@pytest.fixture
def slurm(tmp_path):
    """Run the script with what it calls played; a signal comes once the run has begun."""
    for name, action in PLAYED.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> log\n{action}\n')
        program.chmod(0o755)

    def run(status, *, state="RUNNING", restarts=0, number=None):
        (tmp_path / "log").write_text("")
        environment = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "STATUS": str(status), "STATE": state,
            "SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": str(restarts), "SLURM_JOB_NODELIST": "node[1-2]",
        }  # fmt: skip
        if number is not None:
            (tmp_path / "wait").touch()
        process = subprocess.Popen(
            ["bash", str(SLURM), "--config", "c.yaml", "run.path=/r"], cwd=tmp_path, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if number is not None:
            while not (tmp_path / "started").exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(number)
        out, _ = process.communicate(timeout=60)
        return process.returncode, (tmp_path / "log").read_text().splitlines(), out

    return run


def test_on_slurm_the_run_has_a_cluster_of_its_own_with_a_token(slurm):
    status, log, out = slurm(0)
    assert status == 0, out
    assert "diffmm-dist train --config c.yaml run.path=/r" in log
    (start,) = [line for line in log if line.startswith("ray start")]
    assert start.startswith("ray start --head --node-ip-address=10.0.0.7 --port=24711 --dashboard-host=127.0.0.1")
    assert "token 64" in log
    assert not any("requeue" in line for line in log)


@pytest.mark.parametrize("status", [0, 1, 2, 3, 75, 130, 137])
def test_on_slurm_only_what_may_help_goes_back_to_the_queue(slurm, status):
    ended, log, _ = slurm(status)
    assert ended == status
    assert ("scontrol requeue 4711" in log) == again_may_help(status)


@pytest.mark.parametrize("circumstances", [{"state": "COMPLETING"}, {"restarts": 10}])
def test_on_slurm_a_cancelled_job_and_one_that_never_ends_well_stay_ended(slurm, circumstances):
    ended, log, _ = slurm(75, **circumstances)
    assert ended == 75
    assert not any("requeue" in line for line in log)


def test_on_slurm_a_signal_reaches_the_run_which_saves_and_goes_back_to_the_queue(slurm):
    ended, log, _ = slurm(0, number=15)
    assert ended == 130
    assert "scontrol requeue 4711" in log


def test_on_skypilot_the_same_statuses_are_final():
    final = "0 | 1 | 2 | 3) "
    assert final in SKY["run"]
    assert final in SLURM.read_text()
    assert [status for status in range(256) if not again_may_help(status)] == [0, 1, 2, 3]


def test_a_head_that_goes_waits_for_the_run_to_save(tmp_path):
    """In a namespace of processes of its own, since the script looks at all that it sees."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or complaints(*alone, "true"):
        pytest.skip("there are no namespaces of processes here")
    if shutil.which("pkill") is None:
        pytest.skip("pkill is not installed")
    program, out = tmp_path / "bin" / "diffmm-dist", tmp_path / "out"
    program.parent.mkdir()
    program.write_text(SAVES)
    # The others' command lines name the program too, as that of the shell in which Ray starts it does.
    script = f"""
        {sys.executable} {program} train --config c.yaml & run=$!
        bash -c 'sleep 30; : python {program} train' & other=$!
        until [ -e {out} ]; do sleep 0.01; done
        sh {SAVE_AND_STOP}
        echo waited >> {out}
        kill -0 $other && ! kill -0 $run 2> /dev/null && echo "the other runs" >> {out}
    """
    subprocess.run([*alone, "bash", "-c", script], timeout=60, check=True)
    assert out.read_text().splitlines() == ["saved", "waited", "the other runs"]


SAVES = """
import signal, sys, time
from pathlib import Path
out = Path(__file__).parent.parent / "out"

def save(*_):
    time.sleep(0.2)
    out.write_text("saved\\n")
    sys.exit(130)

signal.signal(signal.SIGTERM, save)
out.touch()
while True:
    time.sleep(0.05)
"""
