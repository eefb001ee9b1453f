"""The program as a user runs it: processes of its own, and every command after the other."""

import json
import resource
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffmm_dist.data.dataset import Dataset
from tests.support.builders import ROOT, launch, write_config
from tests.support.forked import launched
from tests.support.hidden import without
from tests.support.processes import assert_same_result, checkpoints, wait_until


@pytest.fixture(scope="module")
def config(tmp_path_factory, dataset):
    return write_config(
        tmp_path_factory.mktemp("config") / "c.yaml", data={"path": dataset}, run={"path": "to be set"},
        train={"epochs": 4, "batch_size": 64}, checkpoint={"every_steps": 37},
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, config):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launched("train", "--config", config, f"run.path={run}")
    return run


def start(config, run, *overrides):
    command = [sys.executable, str(ROOT / "launch.py"), "train", "--config", config, f"run.path={run}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_five_million_interactions_in_bounded_memory(tmp_path):
    code = (
        "import sys; from diffmm_dist.preparation.synthetic import SyntheticSpec, generate;"
        "from diffmm_dist.monitoring.timing import peak_rss_gib, status_kib;"
        "before = status_kib('VmRSS') / 2**20;"
        "generate(SyntheticSpec(200_000, 50_000, 5_000_000, {'visual': 16}, 7), sys.argv[1]);"
        "print(peak_rss_gib() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "d")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # Some 210 MiB for any number of them; five million pairs, held and sorted at once, would take 300 MiB besides.
    assert float(done.stdout) < 260 / 1024
    manifest = Dataset.open(str(tmp_path / "d")).manifest
    assert sum(manifest.num_interactions(split) for split in ("train", "valid", "test")) == 5_000_000


@pytest.mark.parametrize("missing", ["ray", "dgl"])
def test_training_without_ray_or_dgl(missing, config, undisturbed, tmp_path):
    env = without(tmp_path, missing)
    run = tmp_path / "run"
    kernel = ["graph.kernel=auto"] if missing == "dgl" else []
    done = launch("train", "--config", config, f"run.path={run}", *kernel, env=env)
    if missing == "dgl":
        assert "propagation kernel: csr (DGL cannot be imported" in done.stderr
    assert_same_result(run, undisturbed)


def test_every_command_after_the_other(config, tmp_path):
    run, bundle, recs = tmp_path / "run", tmp_path / "bundle", tmp_path / "recs.parquet"
    trained = launch("train", "--config", config, f"run.path={run}", "train.epochs=2")
    assert "test @20" in trained.stdout
    result = json.loads((run / "result.json").read_text())
    evaluated = launch("evaluate", run, "--split", "test", "--k", "20")
    assert f"{result['test']['recall@20']:.4f}" in evaluated.stdout
    launch("export", run, "--out", bundle)
    launch("recommend", bundle, "--all", "--k", 10, "--out", recs)
    assert pq.read_table(recs).num_rows == 4000
    with pa.memory_map(str(bundle / "users.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().num_rows == 400


def test_tensorboard_shows_every_tag(undisturbed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(undisturbed / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    expected = {
        "denoise/elbo_visual", "denoise/msi_textual", "rebuild/observed_share_visual", "rebuild/new_share_textual",
        "recommend/bpr", "recommend/l2", "recommend/contrast", "recommend/loss", "recommend/weight_visual",
        "valid/recall@20", "valid/ndcg@5", "valid/coverage@20", "time/epoch_s", "time/denoise_s", "time/rebuild_s",
        "time/recommend_s", "time/evaluate_s", "time/checkpoint_s", "mem/peak_gib",
        "throughput/denoise_users_per_s", "throughput/recommend_interactions_per_s",
    }  # fmt: skip
    assert expected <= tags
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert set().union(*lines) - {"run", "epoch", "writer", "sha256"} == tags
    for tag in ("recommend/bpr", "valid/recall@20"):
        assert [event.step for event in events.Scalars(tag)] == [line["epoch"] for line in lines]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx([line[tag] for line in lines])


def test_a_full_disk_is_one_sentence_and_the_run_can_go_on(config, undisturbed, tmp_path):
    run = tmp_path / "run"
    process = start(config, run)
    try:
        wait_until(lambda: checkpoints(run)[-1:] >= ["epoch-00002"], process)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # no file may grow
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "File too large" in err
    assert "Traceback" not in err
    launched("train", "--config", config, f"run.path={run}")
    assert_same_result(run, undisturbed)
