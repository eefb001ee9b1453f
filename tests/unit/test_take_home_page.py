"""Every command of docs/take-home.md prints what the page shows, but for the numbers."""

import shlex
import subprocess
import sys

import pytest

pytest.importorskip("faiss", reason="faiss is not installed")

from tests.support.builders import ROOT
from tests.support.pages import commands_of, shape_of

COMMANDS = commands_of(ROOT / "docs" / "take-home.md")


@pytest.fixture
def demo(run_cli, tmp_path, monkeypatch):
    """What `make demo` leaves, of a model that is trained for one short epoch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    quick = ["train.epochs=1", "train.batch_size=8192", "model.embedding_dim=8", "graph.kernel=csr",
             "model.diffusion.denoiser_hidden_dims=[8]", "monitoring.tensorboard=false"]  # fmt: skip
    assert run_cli("prepare", "synthetic", "--out", "datasets/demo")[0] == 0
    assert run_cli("train", "--config", "configs/demo.yaml", *quick)[0] == 0


def test_the_page_shows_what_is_printed(demo, run_cli):
    assert len(COMMANDS) > 10
    for command, shown in COMMANDS:
        words = shlex.split(command)
        if words[:2] == ["python", "launch.py"]:
            status, out, err = run_cli(*words[2:])
            assert (status, err) == (0, ""), command
            assert shape_of(out.splitlines()) == shape_of(shown), command
        else:
            subprocess.run(["bash", "-c", command.replace("python ", f"{sys.executable} ", 1)], check=True, timeout=60)
