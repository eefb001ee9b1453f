"""What every recorder does."""

import pytest

from diffmm_dist.monitoring.jsonl import JsonlRecorder, read_jsonl
from diffmm_dist.monitoring.tensorboard import TensorBoardRecorder
from tests.support.builders import RUN_ID


class JsonlCase:
    @staticmethod
    def make(path, **options):
        return JsonlRecorder(path / "metrics.jsonl", run=RUN_ID, **options)

    @staticmethod
    def read(path):
        return {
            (tag, record["epoch"]): value
            for record in read_jsonl(path / "metrics.jsonl", run=RUN_ID)
            for tag, value in record.items()
            if tag not in ("epoch", "writer")
        }


class TensorBoardCase:
    @staticmethod
    def make(path, **options):
        return TensorBoardRecorder(path / "tensorboard", **options)

    @staticmethod
    def read(path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(path / "tensorboard"))
        events.Reload()
        return {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}


@pytest.fixture(params=[JsonlCase, TensorBoardCase])
def case(request):
    return request.param


def test_what_is_recorded_can_be_read(case, tmp_path):
    recorder = case.make(tmp_path)
    recorder.scalars({"recommend/bpr": 0.5, "valid/recall@20": 0.25}, epoch=0)
    recorder.scalars({"recommend/bpr": 0.125}, epoch=1)
    recorder.close()
    assert case.read(tmp_path) == {("recommend/bpr", 0): 0.5, ("valid/recall@20", 0): 0.25, ("recommend/bpr", 1): 0.125}


def test_what_a_killed_process_recorded_too_much_is_replaced(case, tmp_path):
    recorder = case.make(tmp_path)
    for epoch in range(4):
        recorder.scalars({"recommend/bpr": 1.0}, epoch=epoch)
    recorder.close()
    recorder = case.make(tmp_path, start_epoch=2)
    recorder.scalars({"recommend/bpr": 2.0}, epoch=2)
    recorder.close()
    assert case.read(tmp_path) == {("recommend/bpr", 0): 1.0, ("recommend/bpr", 1): 1.0, ("recommend/bpr", 2): 2.0}


def test_a_running_job_can_be_watched(case, tmp_path):
    recorder = case.make(tmp_path)
    recorder.scalars({"recommend/bpr": 0.5}, epoch=0)
    assert case.read(tmp_path) == {("recommend/bpr", 0): 0.5}
    recorder.close()
