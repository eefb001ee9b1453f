import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffmm_dist.bench.calibration import ProductTimer
from diffmm_dist.bench.cases import bench_propagate
from diffmm_dist.bench.gpus import Assumptions, Work, bench_gpus, epoch_work
from diffmm_dist.bench.report import markdown
from diffmm_dist.bench.runner import bench_seeds, in_products, summarize
from diffmm_dist.bench.stream import bench_stream
from diffmm_dist.config.section import changed
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.models.common.work import read_edges
from diffmm_dist.parallel import group
from diffmm_dist.parallel.world import World
from diffmm_dist.training.build import load_training_data
from tests.support.builders import small_config, synthetic_dataset
from tests.support.forked import START
from tests.support.optional import dgl_or_skip


def run(recall, seconds, **more):
    return {
        "protocol": "validation", "best_epoch": 3, "valid": {"recall@20": recall},
        "test": {"recall@20": recall / 2, "ndcg@20": 0.1},
        "seconds_per_epoch": seconds, "seconds_per_phase": {"denoise": seconds / 2}, "peak_rss_gib": seconds, **more,
    }  # fmt: skip


def test_summary():
    runs = [run(0.1, 2.0), run(0.2, 4.0), run(0.3, 9.0)]
    runs = [r | in_products(r, [0.5, 1.0, 30.0]) for r in runs]
    summary = summarize(runs)
    assert summary["valid/recall@20"] == {
        "mean": pytest.approx(0.2),
        "spread": pytest.approx(0.1),
        "values": [0.1, 0.2, 0.3],
    }
    assert summary["products_per_epoch"] == 4
    assert summary["products_per_phase"] == {"denoise": 2}
    assert summary["peak_rss_gib"] == 9


def test_a_single_run_without_products():
    summary = summarize([run(0.1, 2.0) | in_products(run(0.1, 2.0), [])])
    assert summary["test/recall@20"]["spread"] == 0
    assert "products_per_epoch" not in summary


def test_the_product_is_timed_after_every_epoch():
    timer = ProductTimer()
    timer.scalars({}, epoch=0)
    timer.close()
    assert len(timer.seconds) == 3
    assert min(timer.seconds) > 0


def test_losses_are_shown_as_far_as_all_seeds_went(tmp_path):
    """Patience ends seeds, and models, after different numbers of epochs."""
    for name, lengths in (("a", (2, 3)), ("b", (6, 7))):
        runs = [
            run(0.1, 2.0, seed=length, curve=[0.1] * length, losses={"recommend/bpr": [1.0 * length] * length})
            for length in lengths
        ]
        document = {
            "command": "c", "machine": {}, "calibration": "p", "runs": runs, "summary": summarize(runs),
            "config": {"model": {"name": name}, "train": {}, "eval": {"metric": "recall@20"}},
        }  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    page = markdown([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "| loss | model | protocol | epoch 0 | epoch 1 | epoch 4 |\n" in page
    assert "| recommend/bpr | a | validation | 2.5 | 2.5 | - |" in page
    assert "| recommend/bpr | b | validation | 6.5 | 6.5 | 6.5 |" in page


@pytest.fixture
def _new_processes_have_imported_everything(monkeypatch):
    context = multiprocessing.get_context(START)
    for module in (multiprocessing, group):
        monkeypatch.setattr(module, "get_context", lambda _: context)


@pytest.mark.usefixtures("_new_processes_have_imported_everything")
def test_seeds_are_trained_and_reported(tmp_path):
    config = small_config(synthetic_dataset(tmp_path / "d"), tmp_path / "run", train={"epochs": 1}, eval={"k": [20]})
    out = tmp_path / "bench.json"
    bench_seeds(config, [3, 4], str(out))
    document = json.loads(out.read_text())
    assert [r["seed"] for r in document["runs"]] == [3, 4]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"seed-3", "seed-4"}
    assert document["machine"]["cores"] >= 1
    assert [r["curve"] for r in document["runs"]] == [[r["valid"]["recall@20"]] for r in document["runs"]]
    values = document["summary"]["test/recall@20"]["values"]
    assert values == [r["test"]["recall@20"] for r in document["runs"]]
    page = markdown([str(out)])
    assert f"{values[0]:.4f} (0), {values[1]:.4f} (0)" in page
    assert f"`bench.json`: `{document['command']}`" in page
    elbo = [r["losses"]["denoise/elbo_visual"] for r in document["runs"]]
    assert f"| denoise/elbo_visual | diffmm | validation | {(elbo[0][0] + elbo[1][0]) / 2:.4g} |" in page
    document["config"]["model"]["denoiser"]["noise"] = "hidden"
    (tmp_path / "hidden.json").write_text(json.dumps(document))
    both = markdown([str(out), str(tmp_path / "hidden.json")])
    assert "| diffmm, model.denoiser.noise=exact | validation |" in both
    assert "| diffmm, model.denoiser.noise=hidden | validation |" in both
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"other\.json is damaged .* give a file written by a `bench` command"):
        markdown([str(tmp_path / "other.json")])


def test_propagation_kernels_are_timed(tmp_path):
    dgl_or_skip()
    bench_propagate(synthetic_dataset(tmp_path / "d"), 8, str(tmp_path / "p.json"))
    document = json.loads((tmp_path / "p.json").read_text())
    assert document["graph"]["users"] == 60
    for times in (*document["neighbor_sum_ms"].values(), document["propagate_ms"]):
        assert min(times.values()) > 0
    assert set(document["neighbor_sum_ms"]["users from items"]) == {
        "torch CSR product",
        "DGL u_mul_e_sum",
        "embedding_bag",
    }
    page = markdown([str(tmp_path / "p.json")])
    assert "60 users, 40 items" in page
    assert "| items from users |" in page


def test_gpu_prediction_counts_operations_and_bytes(tmp_path):
    dataset = Dataset.open(synthetic_dataset(tmp_path / "d", users=100, items=60, interactions=900))
    config = small_config(
        dataset.uri,
        "run",
        model={"diffusion": {"denoiser_hidden_dims": [30]}, "denoiser": {"products": "direct"}},
        train={"batch_size": 64},
    )
    sent = {"denoise": {"denoiser": 1000}, "recommend": {"propagation": 500, "contrast": 100}}
    one, four = (epoch_work(config, dataset, size, sent) for size in (1, 4))
    # Two steps, two modalities: 4 B I h into the hidden layer, 6 B I h and the signal's 4 B I d out of it.
    assert one["denoise"].flops == 2 * 2 * 64 * 60 * (10 * 30 + 4 * config.model.embedding_dim)
    assert one["rebuild"].flops == 2 * 100 * 60 * 2 * 30
    assert four["rebuild"].flops == one["rebuild"].flops / 4
    assert four["denoise"].sent_bytes == 2 * 1000
    steps = -(-dataset.manifest.num_interactions("train") // 64)
    assert four["recommend"].sent_bytes == steps * 600
    assert one["recommend"].exchanges == 0 < four["recommend"].exchanges
    hidden = small_config(
        dataset.uri,
        "run",
        model={
            "diffusion": {"denoiser_hidden_dims": [30]},
            "denoiser": {"products": "gram", "noise": "hidden"},
        },
    )
    work = epoch_work(hidden, dataset, 1, sent)["denoise"]
    steps = -(-100 // hidden.train.batch_size)
    assert work.flops == steps * 2 * (4 * 60 * 30**2 + 4 * 60 * 30 * (30 + hidden.model.embedding_dim))


def test_what_lightgcn_computes_moves_and_sends(tmp_path):
    dataset = Dataset.open(synthetic_dataset(tmp_path / "d", users=100, items=60, interactions=900))
    model = {"name": "lightgcn", "num_layers": 3, "embedding_dim": 8}
    config = small_config(dataset.uri, "run", model=model, train={"batch_size": 64})
    edges = dataset.manifest.num_interactions("train")
    steps = -(-edges // 64)
    read = read_edges(load_training_data(config, dataset, World.single()), 64, config.run.seed)
    one, four = (epoch_work(config, dataset, size, {"recommend": {"propagation": 500}}, read) for size in (1, 4))
    assert list(one) == ["recommend"]
    assert one["recommend"].flops == 0
    # Both ways of two layers and of the rows that a batch reads of the third, forward and backward, each edge with
    # its place and weight; 15 passes over the tables and six more for each layer.
    assert 0 < read < 2 * edges
    gathered, passes = 4 * 2 * edges + 2 * read, 8 * 4 * (15 + 3 * 6) * 160
    assert one["recommend"].memory_bytes == pytest.approx(steps * (gathered * (8 * 4 + 12) + passes))
    assert four["recommend"].memory_bytes == pytest.approx(one["recommend"].memory_bytes / 4)
    assert (one["recommend"].exchanges, four["recommend"].exchanges) == (
        0,
        steps * (3 * 4 + 2 + 2) + 2,
    )  # the last: one plan for all batches
    assert four["recommend"].sent_bytes == steps * 500
    by_columns = changed(config, {"graph.layout": "columns"})
    sent = {"recommend": {"layout": 500, "layout_tables": 70}}
    (work,) = epoch_work(by_columns, dataset, 4, sent, read).values()
    assert work.sent_bytes == steps * 500 + 70
    # All edges, of two columns; a plan, and what is read and its gradients instead of an exchange for each half of
    # every product. Tables and both moments go there and come back once.
    assert work.memory_bytes == pytest.approx(steps * (gathered * (2 * 4 + 12) + passes / 4))
    assert work.exchanges == steps * 2 + 4 + 2 * 3


def test_work_takes_what_its_parts_take_one_after_the_other():
    work = Work(flops=2e12, memory_bytes=3e9, sent_bytes=5e9, exchanges=1000)
    assumed = Assumptions(tflops=4, memory_gb_s=3, network_gb_s=10, latency_us=100)
    assert work.seconds(assumed) == pytest.approx(0.5 + 1 + 0.5 + 0.1)


def test_gpu_prediction_is_written_and_shown(tmp_path):
    config = small_config(synthetic_dataset(tmp_path / "d"), tmp_path / "run")
    out = tmp_path / "gpus.json"
    bench_gpus(config, [1, 8], Assumptions(40, 2000, 25, 30), out=str(out))
    lines = markdown([str(out)]).splitlines()
    assert lines[0].startswith("| GPUs | denoise, s | rebuild, s | recommend, s | epoch, s |")
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| 1", "| 8"]
    assert lines[2].split(" | ")[5:7] == ["0%", "0%"]
    assert float(lines[2].split(" | ")[7].rstrip(" |")) > 0


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_a_small_graph_stands_for_one_four_times_as_large(tmp_path, layout):
    """Every figure of the prediction is that of a real dataset of that size, but for chance."""
    predictions = []
    for times in (1, 4):
        folder = tmp_path / str(times)
        counts = {"users": 150 * times, "items": 60 * times, "interactions": 3000 * times}
        config = small_config(
            synthetic_dataset(folder / "d", **counts),
            folder / "run",
            graph={"layout": layout},
            train={"batch_size": 128 * times},
            model={"contrast": {"negatives": "batch", "max_nodes": 40 * times}, "denoiser": {"sharding": "items"}},
        )
        bench_gpus(config, [1, 3], Assumptions(40, 2000, 25, 30), out=str(folder / "g.json"), times=4 // times)
        predictions.append(json.loads((folder / "g.json").read_text()))
    enlarged, real = predictions
    for key in ("train", "model", "graph"):
        assert enlarged["config"][key] == real["config"][key]
    for size in ("1", "3"):
        for phase, work in enlarged["gpus"][size]["work"].items():
            assert work == pytest.approx(real["gpus"][size]["work"][phase], rel=0.1), phase
        memory = [sum(parts.values()) for parts in enlarged["gpus"][size]["memory_bytes"].values()]
        assert memory == pytest.approx([sum(p.values()) for p in real["gpus"][size]["memory_bytes"].values()], rel=0.1)


@pytest.mark.usefixtures("_new_processes_have_imported_everything")
def test_streams_are_timed_in_turns(tmp_path):
    uris = [synthetic_dataset(tmp_path / name, users=users) for name, users in (("a", 60), ("b", 90))]
    bench_stream(uris, str(tmp_path / "s.json"), repeats=2, batches_ahead=2)
    streams = json.loads((tmp_path / "s.json").read_text())["streams"]
    assert list(streams) == uris
    assert streams[uris[0]]["speed_of_first"]["median"] == 1
    assert all(entry["speed_of_unchecked"]["min"] > 0 for entry in streams.values())
    train = Dataset.open(uris[1]).manifest.num_interactions("train")
    assert streams[uris[1]]["mib"] * 2**20 == 16 * train + 40 * (6 + 4) * 4
    assert uris[1] in markdown([str(tmp_path / "s.json")])


def test_the_process_of_a_seed_ends_with_the_one_that_is_killed():
    program = (
        "import os, time\n"
        "from diffmm_dist.bench.runner import new_process\n"
        "if __name__ == '__main__':\n"
        "    with new_process() as process:\n"
        "        print(process.submit(os.getpid).result(), flush=True)\n"
        "        process.submit(time.sleep, 600).result()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not is_alive(child):
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} is still there")


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # The one that adopted it may not have looked at it yet.
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
