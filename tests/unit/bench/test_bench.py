import json

import pytest

from diffmm_dist.bench.calibration import ProductTimer
from diffmm_dist.bench.cases import bench_propagate
from diffmm_dist.bench.report import markdown
from diffmm_dist.bench.runner import bench_seeds, in_products, summarize
from diffmm_dist.errors import UserError
from tests.support.builders import small_config, synthetic_dataset


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
    timer.scalars({}, epoch=1)
    timer.close()
    assert len(timer.seconds) == 6
    assert min(timer.seconds) > 0


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
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"other\.json is damaged .* give a file written by a `bench` command"):
        markdown([str(tmp_path / "other.json")])


def test_propagation_kernels_are_timed(tmp_path):
    pytest.importorskip("dgl", reason="DGL is not installed")
    bench_propagate(synthetic_dataset(tmp_path / "d"), 8, str(tmp_path / "p.json"))
    document = json.loads((tmp_path / "p.json").read_text())
    assert document["graph"]["users"] == 60
    for times in (*document["neighbor_sum_ms"].values(), document["propagate_ms"]):
        assert min(times.values()) > 0
    assert set(document["neighbor_sum_ms"]["users from items"]) == {
        "torch CSR product",
        "DGL copy_u_sum",
        "embedding_bag",
    }
    page = markdown([str(tmp_path / "p.json")])
    assert "60 users, 40 items" in page
    assert "| items from users |" in page
