"""What a run leaves beside its checkpoints and its result."""

import gzip
import json

import pyarrow as pa
import pytest

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.exports.bundle import export_run
from diffmm_dist.preparation.partitioning import partition_dataset
from diffmm_dist.training import recording
from tests.support.builders import small_config, synthetic_dataset, train_alone
from tests.support.projector import items_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("recording") / "d")


@pytest.mark.parametrize("parts", [1, 2])
def test_the_projector_has_the_embeddings_of_the_best_epoch_by_item(data, tmp_path, parts):
    if parts > 1:
        partition_dataset(data, str(tmp_path / "parts"), num_parts=parts, method="random", seed=3)
        data = str(tmp_path / "parts")
    train_alone(small_config(data, tmp_path / "run", train={"epochs": 2}))
    export_run(str(tmp_path / "run"), str(tmp_path / "bundle"))
    found = items_of(tmp_path / "run")
    items = pa.ipc.open_file(tmp_path / "bundle" / "items.arrow").read_all()
    for name, embedding in zip(items["id"].to_pylist(), items["embedding"].to_pylist(), strict=True):
        assert found.pop(name)[0] == pytest.approx(embedding, rel=1e-4, abs=1e-6)
    assert not found


def test_of_many_items_those_with_most_interactions_are_kept(data, tmp_path, monkeypatch):
    train_alone(small_config(data, tmp_path / "all", train={"epochs": 1}))
    monkeypatch.setattr(recording, "MOST_EMBEDDINGS", 7)
    train_alone(small_config(data, tmp_path / "few", train={"epochs": 1}))
    whole, kept = items_of(tmp_path / "all"), items_of(tmp_path / "few")
    assert len(kept) == 7
    assert sorted(count for _, count in kept.values()) == sorted(count for _, count in whole.values())[-7:]


def test_generated_graphs_are_drawn_as_of_the_best_epoch(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name, model in {"generates": {"name": "diffmm"}, "does not": {"name": "lightgcn"}}.items():
        train_alone(small_config(data, tmp_path / name, model=model, train={"epochs": 2}))
        events = EventAccumulator(str(tmp_path / name / "tensorboard"), size_guidance={"images": 0}).Reload()
        assert events.Tags()["images"] == (["graphs/generated"] if name == "generates" else [])
    (image,) = EventAccumulator(str(tmp_path / "generates" / "tensorboard")).Reload().Images("graphs/generated")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    best = json.loads((tmp_path / "generates" / "result.json").read_text())["best_epoch"]
    assert image.step == best


def test_what_cannot_be_drawn_costs_no_run(data, tmp_path, monkeypatch, caplog):
    def undrawn(model, data):
        raise UserError("pictures as PNG need Pillow")

    monkeypatch.setattr(recording, "figure_of", undrawn)
    train_alone(small_config(data, tmp_path / "run", train={"epochs": 1}))
    assert "no picture of the generated graphs is recorded: pictures as PNG need Pillow" in caplog.text
    assert (tmp_path / "run" / "result.json").exists()


def test_one_number_an_item_is_nothing_to_draw(data, tmp_path):
    train_alone(small_config(data, tmp_path / "run", model={"name": "popularity"}))
    assert not (tmp_path / "run" / "tensorboard" / "items").exists()


def test_nothing_of_tensorboard_where_it_is_not_wanted(data, tmp_path):
    train_alone(small_config(data, tmp_path / "run", train={"epochs": 1}, monitoring={"tensorboard": False}))
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_the_first_steps_of_each_phase_are_traced_after_every_start(data, tmp_path):
    for epochs in (2, 3):
        train_alone(small_config(data, tmp_path / "run", train={"epochs": epochs}, monitoring={"profile_steps": 2}))
    files = sorted((tmp_path / "run" / "profile").iterdir())
    assert [file.name for file in files] == [
        f"epoch-{epoch:05d}-{phase}.pt.trace.json.gz"
        for epoch in (0, 2)
        for phase in ("denoise", "rebuild", "recommend")
    ]
    events = json.loads(gzip.decompress(files[2].read_bytes()))["traceEvents"]
    steps = {event["name"] for event in events if event["name"].startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#0", "ProfilerStep#1"}
    assert any(event["name"].startswith("aten::") for event in events)


def test_traces_change_no_number(data, tmp_path):
    for name, steps in (("with", 2), ("without", 0)):
        train_alone(small_config(data, tmp_path / name, train={"epochs": 1}, monitoring={"profile_steps": steps}))
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("with", "without")]
    assert results[0]["test"] == results[1]["test"]
    assert not (tmp_path / "without" / "profile").exists()


def test_all_of_it_lies_on_a_store_too(data, tmp_path):
    place = f"memory://recording/{tmp_path.name}"
    train_alone(small_config(data, place, train={"epochs": 1}, monitoring={"profile_steps": 1}))
    files = {name for name in storage.list_names(f"{place}/tensorboard") if not name.startswith("events.")}
    assert files == {"final", "items", "projector_config.pbtxt"}
    assert storage.list_names(f"{place}/tensorboard/items") == ["labels.tsv", "vectors.tsv"]
    assert storage.list_names(f"{place}/tensorboard/final") == ["events.out.tfevents.final"]
    assert len(storage.list_names(f"{place}/profile")) == 3
