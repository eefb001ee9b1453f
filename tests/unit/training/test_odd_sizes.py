"""Sizes at the edge of what there can be: a run, or one sentence."""

import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist.data.writer import dataset_writer
from tests.support.builders import synthetic_dataset, write_config
from tests.support.optional import dgl_or_skip

SETTINGS = {
    "embeddings one wide, kernels timed": ["model.embedding_dim=1", "graph.kernel=auto"],
    "embeddings one wide, through DGL": ["model.embedding_dim=1", "graph.kernel=dgl"],
    "embeddings one wide, affine": ["model.embedding_dim=1", "model.modality_projection=affine"],
    "embeddings three wide": ["model.embedding_dim=3", "graph.kernel=auto"],
    "LightGCN one wide": ["model.name=lightgcn", "model.embedding_dim=1", "graph.kernel=auto"],
    "no layers": ["model.num_layers=0"],
    "LightGCN without layers": ["model.name=lightgcn", "model.num_layers=0"],
    "one user ranked at a time": ["eval.batch_size=1"],
    "batches larger than the data": ["train.batch_size=100000", "eval.batch_size=100000"],
    "lists longer than the catalogue": ["eval.k=[1000]", "eval.metric=recall@1000"],
    "lists of one": ["eval.k=[1]", "eval.metric=mrr@1"],
    "one diffusion step": ["model.diffusion.num_timesteps=1"],
    "hidden layers one wide": ["model.diffusion.denoiser_hidden_dims=[1,1]", "model.diffusion.time_embedding_dim=3"],
    "more generated edges than items": ["model.diffusion.rebuild_topk=1000"],
    "no generated edges kept": ["model.diffusion.edge_keep_prob=0"],
    "contrast of one node": ["model.contrast.max_nodes=1"],
}
REFUSED = {
    "layers without end": (["model.num_layers=1000000000"], "model.num_layers"),
    "diffusion without end": (["model.diffusion.num_timesteps=1000000000"], "diffusion.num_timesteps"),
    "a time embedding without end": (["model.diffusion.time_embedding_dim=1000000000"], "diffusion.time_embedding_dim"),
    "embeddings beyond memory": (["model.embedding_dim=1000000000"], "do not fit"),
    "hidden layers beyond memory": (["model.diffusion.denoiser_hidden_dims=[1000000000]"], "do not fit"),
}
SIZES = {
    "one user": ([0], [0], 1, 3),
    "one item": ([0], [0], 2, 1),
    "one of each": ([0], [0], 1, 1),
    "one interaction": ([1], [1], 3, 3),
}


def config_of(tmp_path, data):
    run = {"path": str(tmp_path / "run")}
    return write_config(tmp_path / "c.yaml", data={"path": str(data)}, run=run, train={"epochs": 1})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("d") / "d", users=20, items=15, interactions=120)


@pytest.mark.parametrize("kind", SETTINGS)
def test_odd_settings_train(run_cli, tmp_path, dataset, kind):
    if "graph.kernel=dgl" in SETTINGS[kind]:
        dgl_or_skip()
    status, out, err = run_cli("train", "--config", config_of(tmp_path, dataset), *SETTINGS[kind])
    assert (status, "peak memory" in out) == (0, True), err


@pytest.mark.parametrize("kind", REFUSED)
def test_settings_that_would_never_end_are_refused(run_cli, tmp_path, dataset, kind):
    overrides, part = REFUSED[kind]
    status, _, err = run_cli("train", "--config", config_of(tmp_path, dataset), *overrides)
    assert status == 1
    assert err.count("error: ") == 1
    assert part in err


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(
    ("model", "features"), [("diffmm", np.ones), ("diffmm", np.zeros), ("lightgcn", None), ("popularity", None)]
)
def test_the_smallest_data_train_or_are_refused_in_a_sentence(run_cli, tmp_path, kind, model, features):
    users, items, num_users, num_items = SIZES[kind]
    with dataset_writer(str(tmp_path / "d"), num_users=num_users, num_items=num_items) as writer:
        for split in ("train", "valid", "test"):
            writer.add_interactions(split, np.array(users), np.array(items))
        if features is not None:
            writer.add_features("visual", features((num_items, 1), np.float32))
        writer.add_ids("users", pa.array(range(num_users)))
        writer.add_ids("items", pa.array(range(num_items)))
    settings = [f"model.name={model}", "train.batch_size=1", "graph.kernel=auto"]
    status, _, err = run_cli("train", "--config", config_of(tmp_path, tmp_path / "d"), *settings)
    if status != 0:
        assert status == 1
        assert err.count("error: ") == 1
        assert "no negative item" in err
