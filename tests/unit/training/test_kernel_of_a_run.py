"""A run goes on with the kernel that it chose, and with all else that its configuration says of the graph."""

from diffmm_dist import api
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.training import worker
from tests.support.builders import synthetic_dataset, write_config


def test_a_run_that_goes_on_keeps_its_graph_settings(tmp_path, monkeypatch):
    data = synthetic_dataset(tmp_path / "d", users=20, items=12, interactions=90)
    graph = {"kernel": "auto", "layout": "columns", "messages": "bfloat16"}
    built = []

    def build_recipe(config, *arguments, **options):
        built.append(config.graph)
        return original(config, *arguments, **options)

    original = worker.build_recipe
    monkeypatch.setattr(worker, "build_recipe", build_recipe)
    for epochs in (1, 2):
        api.train(write_config(tmp_path / "c", graph=graph, train={"epochs": epochs}), data=data, run=tmp_path / "r")
    first, second = (section.model_dump() for section in built)
    assert first == graph
    assert second == graph | {"kernel": RunFolder(str(tmp_path / "r")).identity()["kernel"]}
    assert second["kernel"] in ("csr", "dgl")
