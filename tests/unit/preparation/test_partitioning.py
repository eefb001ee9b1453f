import numpy as np
import pytest
import torch

from diffmm_dist.bundles.bundle import read_bundle
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import shard_interactions, shard_of
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.parallel.ranges import Range
from diffmm_dist.parallel.world import World
from diffmm_dist.preparation.partitioning import partition_dataset
from diffmm_dist.training.trained import load_trained
from diffmm_dist.training.worker import run_worker
from tests.support.builders import metrics_of, small_config, synthetic_dataset
from tests.support.optional import metis_or_skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", users=150, items=60, interactions=2400)


@pytest.fixture(scope="module", params=["metis", "random"])
def parted(request, source, tmp_path_factory):
    if request.param == "metis":
        metis_or_skip()
    out = str(tmp_path_factory.mktemp("parts") / "d")
    partition_dataset(source, out, num_parts=4, method=request.param, seed=5)
    return out


def test_only_the_order_changes(source, parted):
    old, new = Dataset.open(source), Dataset.open(parted)
    new.verify()
    users, items = new.source_rows("users"), new.source_rows("items")
    for kind, order in (("users", users), ("items", items)):
        assert torch.equal(order.sort().values, torch.arange(order.numel()))
        assert new.original_ids(kind).to_pylist() == old.original_ids(kind).take(order.numpy()).to_pylist()
    for split in ("train", "valid", "test"):
        expected = old.interactions(split).dense()[users][:, items]
        assert torch.equal(new.interactions(split).dense(), expected)
    for name, entry in new.manifest.modalities.items():
        assert torch.equal(new.features(name), old.features(name)[items])
        assert entry.dtype == old.manifest.modalities[name].dtype


def test_parts_are_contiguous_and_read_alone(parted, monkeypatch):
    dataset = Dataset.open(parted)
    partition = dataset.manifest.partition
    assert partition.num_parts == 4
    assert set(partition.report) >= {partition.method, "random"}
    opened = []
    from diffmm_dist.data import dataset as module

    read = module.read_batches
    monkeypatch.setattr(
        module,
        "read_batches",
        lambda folder, files, **options: opened.extend(file.path for file in files) or read(folder, files, **options),
    )
    second = Range(*partition.user_bounds[1:3])
    rows = dataset.interactions("train", second)
    assert torch.equal(rows.dense(), dataset.interactions("train").dense()[slice(*second)])
    assert [uri.rsplit("/", 1)[1] for uri in opened[:1]] == ["part-00001.arrow"]
    assert len(opened) == 1 + 4


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_shards_cover_everything_once(source, parted, size):
    whole = Dataset.open(source).interactions("train").dense()
    seen = torch.zeros_like(whole)
    items = []
    for rank in range(size):
        shard = shard_of(Dataset.open(parted), World(rank, size, torch.device("cpu")))
        seen[shard.user_ids] += shard_interactions(Dataset.open(parted), "train", shard).dense()
        items += shard.own_item_ids.tolist()
    assert torch.equal(seen, whole)
    assert sorted(items) == list(range(60))


def test_a_partition_of_a_partition_keeps_the_first_ids(source, parted, tmp_path):
    partition_dataset(parted, str(tmp_path / "again"), num_parts=3, method="random", seed=1)
    again = Dataset.open(str(tmp_path / "again"))
    users = again.source_rows("users")
    assert again.original_ids("users").to_pylist() == [f"user_{number}" for number in users.tolist()]


@pytest.mark.parametrize("model", ["diffmm", "lightgcn", "popularity"])
def test_training_does_not_depend_on_the_order(source, parted, tmp_path, model):
    """The same losses, metrics and recommendations: every draw and every tie goes by id."""
    sections = {"model": {"name": model}, "train": {"epochs": 2, "batch_size": 64, "learning_rate": 1e-3}}
    bundles = []
    for name, dataset in (("source", source), ("parted", parted)):
        run_worker(small_config(dataset, tmp_path / name, **sections), stop_requested=lambda: False)
        export_bundle(load_trained(str(tmp_path / name)), str(tmp_path / f"{name}-bundle"))
        bundles.append(read_bundle(str(tmp_path / f"{name}-bundle")))
    for mine, expected in zip(metrics_of(tmp_path / "parted"), metrics_of(tmp_path / "source"), strict=True):
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-6)
    ours, plain = bundles[1], bundles[0]
    assert ours.user_ids.to_pylist() == plain.user_ids.to_pylist()
    assert np.array_equal(ours.seen.rows(), plain.seen.rows())
    assert np.array_equal(ours.seen.items, plain.seen.items)
    np.testing.assert_allclose(ours.user_rows.array(), plain.user_rows.array(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.item_rows.array(), plain.item_rows.array(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_parts", [0, 61])
def test_too_many_parts(run_cli, source, tmp_path, num_parts):
    status, _, err = run_cli("partition", source, "--num-parts", num_parts, "--out", tmp_path / "x")
    assert status == 1
    assert f"--num-parts {num_parts} must be between 1 and 60" in err
    assert not (tmp_path / "x").exists()


def test_the_command_and_inspect_show_the_report(run_cli, source, tmp_path):
    command = ["partition", source, "--num-parts", 3, "--method", "random", "--out", tmp_path / "x"]
    status, out, _ = run_cli(*command)
    assert status == 0
    assert "3 parts by random" in out
    assert "halo rows" in run_cli("inspect", tmp_path / "x")[1]
    assert run_cli(*command)[0] == 1  # not without --force
    assert "is none of metis, random" in run_cli(*command[:4], "--method", "best", "--out", tmp_path / "y")[2]


def test_a_damaged_order_is_named(source, tmp_path):
    partition_dataset(source, str(tmp_path / "d"), num_parts=2, method="random", seed=1)
    path = tmp_path / "d" / "order" / "users-00001.arrow"
    path.write_bytes(path.read_bytes()[:40])
    from diffmm_dist.errors import UserError

    with pytest.raises(UserError, match="order/users-00001"):
        shard_of(Dataset.open(str(tmp_path / "d")), World.single())
