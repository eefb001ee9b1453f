"""What people see in TensorBoard of two runs, in a browser."""

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest

from tests.support.browser import Watched, browser, needs_browser
from tests.support.builders import small_config, synthetic_dataset, train_alone
from tests.support.processes import free_port, wait_until

pytestmark = needs_browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of two runs that differ in their learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    data = synthetic_dataset(folder / "d")
    for name, rate in (("slow", 0.001), ("fast", 0.01)):
        train = {"epochs": 2, "learning_rate": rate}
        train_alone(small_config(data, folder / "runs" / name, train=train))
    return folder / "runs"


def runs_known(address):
    """The runs that TensorBoard has read."""
    try:
        with urllib.request.urlopen(f"{address}/data/runs", timeout=5) as answer:
            return json.load(answer)
    except OSError:  # it has not begun to listen
        return []


@contextmanager
def tensorboard(runs, log):
    """Start TensorBoard on loopback and give its address; stop it at the end."""
    port = free_port()
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", "--logdir", runs, "--host", "127.0.0.1", "--port", str(port)],
            stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: len(runs_known(address)) == 4, server, seconds=120)
        yield address
    finally:
        server.terminate()
        server.wait()


PAGES = {
    "scalars": ["denoise/elbo_visual", "recommend", "valid", "slow/tensorboard"],
    "custom_scalars": ["valid", "recall", "ndcg", "denoise", "elbo_visual", "recommend", "fast/tensorboard"],
    "hparams": ["train.learning_rate", "model.name", "test/recall@20", "0.010000"],
    "text": ["config", "train.learning_rate", "model.embedding_dim"],
    "projector": ["Points: 40", "Dimension: 8", "training interactions"],
}


@pytest.mark.timeout(600)
def test_every_page_shows_what_it_is_for(runs, tmp_path):
    with tensorboard(runs, tmp_path / "log") as address, browser() as running:
        for name, words in PAGES.items():
            watched = Watched(running, f"{address}/#{name}", width=1600)
            where = watched.page
            if name == "projector":  # it is a page in a page in this one
                where = where.frame_locator("iframe").frame_locator("iframe")
            for word in words:  # some stand in lists that are closed
                where.get_by_text(word).first.wait_for(state="attached", timeout=60_000)
            watched.picture(tmp_path / f"{name}.png", whole=False)
            assert not watched.outside
            watched.page.close()
