"""What TensorBoard's pages are given, read back as they read it."""

import json
import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin

from diffmm_dist.monitoring.tensorboard import TensorBoardRecorder
from tests.support.pictures import png

SETTINGS = {"model.name": "any", "train.epochs": 3, "train.patience": None, "eval.k": [5, 20], "data.verify": True}
EPOCH = {"recommend/bpr": 0.5, "valid/recall@5": 0.1, "valid/recall@20": 0.2, "valid/ndcg@5": 0.1, "time/epoch_s": 2.0}


def record(folder, *, settings=SETTINGS, epochs=range(2), final=0.5, **options):
    recorder = TensorBoardRecorder(folder, **options)
    recorder.begin(settings)
    for epoch in epochs:
        recorder.scalars(EPOCH, epoch=epoch)
    recorder.embeddings("items", np.eye(4, dtype=np.float32), {"item": ["a", "b\tc", "ä", "=1"], "count": list("1234")})
    recorder.end({"test/recall@20": final}, epoch=1)
    recorder.close()


def context(folder):
    """What TensorBoard's pages ask."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    return TBContext(logdir=str(folder), multiplexer=multiplexer, data_provider=provider, plugin_name_to_instance={})


def layout(folder):
    return json.loads(CustomScalarsPlugin(context(folder)).layout_impl(RequestContext(), ""))["category"]


def tensors(folder, plugin):
    found = context(folder).data_provider.read_tensors(
        RequestContext(), experiment_id="", plugin_name=plugin, downsample=100, run_tag_filter=RunTagFilter()
    )
    return {(run, tag): [(at.step, at.numpy.item()) for at in series] for run, tags in found.items()
            for tag, series in tags.items()}  # fmt: skip


def test_scalars_are_grouped_with_the_metrics_first(tmp_path):
    record(tmp_path / "run")
    groups = {group["title"]: [chart["title"] for chart in group["chart"]] for group in layout(tmp_path)}
    assert groups == {"valid": ["recall", "ndcg"], "recommend": ["bpr"], "time": ["time"]}
    assert next(iter(groups)) == "valid"
    patterns = [
        pattern for group in layout(tmp_path) for chart in group["chart"] for pattern in chart["multiline"]["tag"]
    ]
    assert [sum(bool(re.match(pattern, tag)) for pattern in patterns) for tag in EPOCH] == [1] * len(EPOCH)


def test_runs_with_the_same_values_share_their_charts(tmp_path):
    for name in ("a", "b"):
        record(tmp_path / name)
    assert [len(group["chart"]) for group in layout(tmp_path)] == [2, 1, 1]


@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_run_that_goes_on_doubles_nothing(tmp_path, start):
    record(tmp_path / "run")
    tags = EPOCH if start else {}
    record(tmp_path / "run", settings=SETTINGS | {"train.epochs": 9}, start_epoch=start, tags=tags,
           epochs=range(start, 3), final=0.75)  # fmt: skip
    ((_, texts),) = tensors(tmp_path, "text").items()
    assert len(texts) == 1
    scalars = context(tmp_path).data_provider.read_scalars(
        RequestContext(), experiment_id="", plugin_name="scalars", downsample=100, run_tag_filter=RunTagFilter(["run"])
    )
    assert [point.step for point in scalars["run"]["recommend/bpr"]] == [0, 1, 2]
    assert len(tensors(tmp_path, "custom_scalars")[("run", "custom_scalars__config__")]) == 1
    assert runs_of(tmp_path) == {"run/final": ({**FLAT, "train.epochs": 9.0}, {"test/recall@20": 0.75})}


def test_new_values_join_the_layout(tmp_path):
    record(tmp_path / "run")
    recorder = TensorBoardRecorder(tmp_path / "run", start_epoch=2, tags=EPOCH)
    recorder.scalars({**EPOCH, "distil/kl": 1.0}, epoch=2)
    recorder.close()
    assert [group["title"] for group in layout(tmp_path)] == ["valid", "recommend", "distil", "time"]


FLAT = {"model.name": "any", "train.epochs": 3.0, "train.patience": "null", "eval.k": "[5, 20]", "data.verify": True}


def runs_of(folder):
    """Settings and final figures of every run in the table of runs."""
    found = Context(context(folder))
    contents = found.hparams_metadata(RequestContext(), "")
    runs = {}
    for run, tags in contents.items():
        start = metadata.parse_session_start_info_plugin_data(tags[metadata.SESSION_START_INFO_TAG])
        settings = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}
        filter_ = RunTagFilter(runs=[run])
        scalars = found.read_last_scalars(RequestContext(), "", filter_)[run]
        runs[run] = settings, {tag: datum.value for tag, datum in scalars.items()}
    return runs


def test_runs_stand_side_by_side_with_all_their_settings_and_final_figures_alone(tmp_path):
    record(tmp_path / "a")
    record(tmp_path / "b", settings={**SETTINGS, "model.name": "other", "model.only": 1.5}, final=0.25)
    runs = runs_of(tmp_path)
    assert runs["a/final"] == (FLAT, {"test/recall@20": 0.5})
    assert runs["b/final"] == ({**FLAT, "model.name": "other", "model.only": 1.5}, {"test/recall@20": 0.25})
    found = Context(context(tmp_path))
    experiment = found.experiment_from_metadata(
        RequestContext(), "", True, found.hparams_metadata(RequestContext(), ""), []
    )
    assert {info.name for info in experiment.hparam_infos if info.differs} == {"model.name"}
    assert "model.only" in {info.name for info in experiment.hparam_infos}
    assert [info.name.tag for info in experiment.metric_infos] == ["test/recall@20"]


def test_settings_that_make_no_other_run_are_not_listed_among_runs(tmp_path):
    record(tmp_path / "run", settings={**SETTINGS, "cluster.device": "cpu"}, unlisted={"cluster"})
    assert runs_of(tmp_path)["run/final"][0] == FLAT
    assert "cluster.device" in str(tensors(tmp_path, "text"))


def test_the_settings_are_a_table(tmp_path):
    record(tmp_path / "run", settings={**SETTINGS, "run.path": "a|b`c\nd"})
    ((name, ((step, text),)),) = tensors(tmp_path, "text").items()
    assert name == ("run", "config")
    assert step == 0
    lines = text.decode().splitlines()
    assert lines[:3] == ["| setting | value |", "| --- | --- |", "| model.name | `any` |"]
    assert lines[-1] == "| run.path | `a\\|b'c d` |"


def test_the_projector_finds_embeddings_and_what_they_are(tmp_path):
    record(tmp_path / "run")
    plugin = ProjectorPlugin(context(tmp_path))
    plugin._update_configs()
    (embedding,) = plugin._configs["run"].embeddings
    assert (embedding.tensor_name, list(embedding.tensor_shape)) == ("items", [4, 4])
    labels = (tmp_path / "run" / embedding.metadata_path).read_text().splitlines()
    assert labels == ["item\tcount", "a\t1", "b\\tc\t2", "ä\t3", "=1\t4"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_figure_is_a_picture_of_its_size(tmp_path):
    recorder = TensorBoardRecorder(tmp_path / "run")
    recorder.figure("graph/users", png(width=9, height=5), epoch=3)
    with pytest.raises(ValueError, match="graph/users is no PNG"):
        recorder.figure("graph/users", b"GIF89a", epoch=4)
    recorder.close()
    provider = context(tmp_path).data_provider
    found = provider.read_blob_sequences(
        RequestContext(), experiment_id="", plugin_name="images", downsample=10, run_tag_filter=RunTagFilter()
    )["run"]["graph/users"]
    assert [point.step for point in found] == [3]
    width, height, picture = (
        provider.read_blob(RequestContext(), blob_key=reference.blob_key) for reference in found[0].values
    )
    assert (width, height, picture) == (b"9", b"5", png(width=9, height=5))
