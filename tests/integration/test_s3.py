"""Datasets and bundles on a real S3 server, started here on loopback."""

import json
import os
import re
import signal
import subprocess

import pytest
import torch

from diffmm_dist import storage
from diffmm_dist.bundles.bundle import read_bundle
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.stores.s3 import file_system
from tests.contracts.storage_contract import ReplacedContract, StorageContract
from tests.support import damage
from tests.support.builders import (
    progress_at,
    published_folder,
    run_checkpoints,
    synthetic_dataset,
    write_config,
)
from tests.support.forked import launched as launch
from tests.support.processes import assert_same_result, started, wait_until

TENSORS = {"model/table": torch.arange(4000.0).view(1000, 4), "model/count": torch.tensor(7)}


class TestS3Storage(StorageContract, ReplacedContract):
    """The server here does not honour If-Match, so that a file was replaced is found out from the answers."""

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
    assert read_bundle(bundle).user_rows.array().shape == (100, 8)
    recs = f"{place}/recs.parquet"
    launch("recommend", bundle, "--all", "--k", 5, "--out", recs, env=environment)
    assert storage.exists(recs)
    assert environment["AWS_SECRET_ACCESS_KEY"] not in (run / "config.yaml").read_text()


def test_slashes_too_many_change_nothing(s3, place, environment, tmp_path):
    slashes = "///"
    doubled = place.replace("s3://bucket/", f"S3://bucket{slashes}")
    out, run = f"{doubled}/data{slashes}", f"{place}{slashes}run{slashes}"
    size = ("--users", 40, "--items", 20, "--interactions", 300)
    launch("prepare", "synthetic", "--out", out, *size, env=environment)
    launch("prepare", "synthetic", "--out", out, *size, "--force", env=environment)
    assert "all match" in launch("inspect", f"{place}/data", "--verify", env=environment).stdout
    config = write_config(tmp_path / "c.yaml", data={"path": out}, run={"path": run}, train={"epochs": 1})
    launch("train", config, "model.name=popularity", env=environment)
    launch("export", run, "--out", f"{place}/bundle{slashes}", env=environment)
    assert {path.name for path in s3.on_disk(place).iterdir()} == {"data", "run", "bundle"}


def test_a_whole_bucket_is_read(s3, place, environment, tmp_path):
    """One that is a dataset as a whole: nothing can be made there, so its files are put there one by one."""
    file_system().mkdir("s3://whole")
    file_system().put(synthetic_dataset(tmp_path / "d") + "/", "s3://whole/", recursive=True)
    bucket = s3.folder / "whole"
    assert "all match" in launch("inspect", "s3://whole/", "--verify", env=environment).stdout
    before = sorted(bucket.rglob("*"))
    done = launch("prepare", "synthetic", "--out", "s3://whole", "--force", env=environment, check=False)
    assert (done.returncode, "is a whole bucket" in done.stderr) == (1, True)
    assert sorted(bucket.rglob("*")) == before


@pytest.mark.parametrize("out", ["s3://no-such-bucket/d", "s3://bucket/forbidden"])
def test_what_s3_refuses_is_said_before_any_work(place, environment, tmp_path, out):
    """The source does not exist, so any work would say so first."""
    if "forbidden" in out:
        environment = environment | {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    command = ("prepare", "tables", tmp_path / "no.csv", "--user", "u", "--item", "i", "--out", out)
    done = launch(*command, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot ")
    assert out in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_published_folder_is_imported_from_s3(place, environment, tmp_path):
    folder = published_folder(tmp_path / "raw")
    file_system().put(str(folder), f"{place}/raw", recursive=True)
    for source, data in ((folder, tmp_path / "d"), (f"{place}/raw", f"{place}/data")):
        shown = launch("prepare", "diffmm", source, "--out", data, env=environment).stdout
        assert "text_feat.npy" in shown
    fingerprints = {Dataset.open(str(data)).manifest.fingerprint for data in (tmp_path / "d", f"{place}/data")}
    assert len(fingerprints) == 1


@pytest.mark.parametrize("kind", ["interactions/split=train", "items/modality=visual"])
def test_damage_on_s3_is_refused(place, tmp_path, kind):
    data = synthetic_dataset(tmp_path / "d", users=400, items=60, interactions=1500)
    damage.rotate_rows(f"{data}/{kind}/part-00000.arrow")
    file_system().put(data, f"{place}/data", recursive=True)
    dataset = Dataset.open(f"{place}/data")
    with pytest.raises(UserError, match=f"{place}/data/{kind}/part-00000.arrow is damaged: its checksum"):
        dataset.interactions("train")
        dataset.features("visual")


@pytest.fixture
def checkpoints(place):
    made = run_checkpoints(f"{place}/checkpoints", keep=2)
    for epoch in (1, 2):
        made.save(TENSORS, progress_at(epoch))
    return made


@pytest.mark.parametrize("file", ["__0_0.distcp", "index.json", "state.json"])
def test_a_damaged_checkpoint_on_s3_is_passed_over(s3, place, checkpoints, file):
    good, damaged = checkpoints.names()
    damage.flip(s3.on_disk(place) / "checkpoints" / damaged / file, 0.4)
    check_passed_over(checkpoints, good, damaged)


@pytest.mark.parametrize("file", ["__0_0.distcp", "index.json"])
def test_a_checkpoint_on_s3_that_lacks_a_file_is_passed_over(place, checkpoints, file):
    good, damaged = checkpoints.names()
    file_system().rm(f"{place}/checkpoints/{damaged}/{file}")
    check_passed_over(checkpoints, good, damaged)


def check_passed_over(checkpoints, good, damaged):
    name, loaded = checkpoints.newest(lambda checkpoint: checkpoint.tensors())
    assert (name, checkpoints.damaged) == (good, [damaged])
    assert all(torch.equal(loaded[key], value) for key, value in TENSORS.items())


def test_a_wrong_key_is_one_sentence(place, environment):
    wrong = environment | {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    done = launch("inspect", f"{place}/data", env=wrong, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "not-the-secret" not in done.stderr


def test_a_missing_bucket_is_one_sentence(place):
    with pytest.raises(UserError, match="s3://no-such-bucket/d"):
        Dataset.open("s3://no-such-bucket/d")


MODELS = {
    "diffmm": [],
    "adagcl": ["model.name=adagcl", "model.embedding_dim=8"],
    "diffkg": ["model.name=diffkg", "model.embedding_dim=8", "model.diffusion.denoiser_hidden_dims=[16]"],
    "promptmm": ["model.name=promptmm", "model.embedding_dim=8"],
}
# What the names of checkpoints hold in the stage in which a run is killed: of PromptMM that of the student.
KILLED_IN = {"promptmm": "stage-1"}


@pytest.fixture(scope="module")
def local_run(request, tmp_path_factory):
    """A run of a model on the disk, undisturbed, and how it was started."""
    folder = tmp_path_factory.mktemp("local")
    dataset = synthetic_dataset(folder / "d", users=400, items=200, interactions=8000, knowledge=True)
    config = write_config(
        folder / "c.yaml", data={"path": dataset}, run={"path": "to be set"}, train={"epochs": 4, "batch_size": 256}
    )
    settings = ["--config", config, *MODELS[request.param]]
    launch("train", *settings, f"run.path={folder / 'run'}")
    return settings, folder / "run", dataset


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("local_run", "num_workers"),
    [("diffmm", 0), ("adagcl", 0), ("diffkg", 2), ("promptmm", 0)],
    indirect=["local_run"],
)
def test_a_killed_run_on_s3_ends_as_one_on_a_disk(s3, place, environment, local_run, tmp_path, num_workers):
    """Data, metrics, events and checkpoints on S3; killed in an epoch, resumed, evaluated, exported.

    Two workers train on a partition that was written straight to S3, through a cache; one of them is killed, and Ray
    starts both again. All of them, and their driver, are killed in test_cluster.py.
    """
    if num_workers:
        pytest.importorskip("ray", reason="Ray is not installed")
    model, undisturbed, dataset = local_run
    data, run = f"{place}/data", f"{place}/run"
    file_system().put(dataset, data, recursive=True)
    cache = tmp_path / "cache"
    if num_workers:
        launch("partition", data, "--num-parts", 2, "--out", f"{place}/parts", env=environment)
        data = f"{place}/parts"
    settings = [*model, f"data.path={data}", f"run.path={run}", f"cluster.num_workers={num_workers}",
                "cluster.threads_per_worker=1", "cluster.lease_s=5"]  # fmt: skip
    if num_workers:
        settings.append(f"data.cache={cache}")
    with started(
        "train", *settings, "checkpoint.every_steps=7", env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        complete = s3.on_disk(run) / "checkpoints"
        stage = next((part for name, part in KILLED_IN.items() if f"model.name={name}" in model), "")
        inside = f"*{stage}-*phase*/state.json"
        wait_until(lambda: any(complete.glob(inside)), process, 400)
        if num_workers:
            os.kill(worker_of(process), signal.SIGKILL)
            _, log = process.communicate(timeout=500)
            assert process.returncode == 0, log
    if not num_workers:
        again = launch("train", *settings, env=environment, cwd=tmp_path, timeout=500)
        log = again.stderr + again.stdout
    assert "resuming" in log
    if num_workers:
        result, expected = (json.loads((path / "result.json").read_text()) for path in (s3.on_disk(run), undisturbed))
        assert result["test"] == pytest.approx(expected["test"])
    else:
        assert_same_result(s3.on_disk(run), undisturbed)
    assert json.loads((s3.on_disk(run) / "lock").read_text())["released"]
    assert any((s3.on_disk(run) / "tensorboard").iterdir())
    assert f"test of {run}" in launch("evaluate", run, env=environment).stdout
    launch("export", run, "--out", f"{place}/bundle", env=environment)
    assert read_bundle(f"{place}/bundle").user_rows.array().shape == (400, 8)
    written = {"data", "run", "bundle", *(["parts"] if num_workers else [])}
    assert {path.name for path in s3.on_disk(place).iterdir()} == written
    assert [path.name for path in tmp_path.iterdir()] == (["cache"] if num_workers else [])
    secret = environment["AWS_SECRET_ACCESS_KEY"]
    texts = [path.read_bytes() for path in s3.on_disk(run).rglob("*") if path.is_file()]
    assert not any(secret.encode() in text for text in texts)
    assert secret not in log


def worker_of(process):
    """The process number of the second worker, from the log of the run."""
    line = next(line for line in process.stderr if "2 workers, by rank" in line)
    return int(re.search(r"processes \d+, (\d+)", line).group(1))
