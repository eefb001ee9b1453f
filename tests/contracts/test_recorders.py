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


def drawn(path, monkeypatch, second, pid, value, **options):
    """What TensorBoard reads after a process of a number has recorded epoch 2 in a second."""
    monkeypatch.setattr("time.time", lambda: second)
    monkeypatch.setattr("os.getpid", lambda: pid)
    recorder = TensorBoardCase.make(path, **options)
    recorder.scalars({"recommend/bpr": value}, epoch=2)
    recorder.close()
    return TensorBoardCase.read(path)[("recommend/bpr", 2)]


def test_the_events_of_the_last_process_win_whatever_its_clock_and_number(tmp_path, monkeypatch):
    now = 1_700_000_000.5
    for value, (second, pid) in enumerate([(now, 900), (now, 17), (now, 1000), (now - 100, 5), (now + 1, 3)]):
        assert drawn(tmp_path, monkeypatch, second, pid, float(value), start_epoch=2) == value
    foreign = tmp_path / "tensorboard" / "events.out.tfevents.1800000000.another-host.1.0"
    foreign.write_bytes(b"")
    assert drawn(tmp_path, monkeypatch, now, 1, 7.0, start_epoch=2) == 7.0
    assert len(list((tmp_path / "tensorboard").iterdir())) == 7


def test_the_events_of_a_process_elsewhere_come_first(tmp_path, monkeypatch):
    """On S3 what an earlier process has recorded is not in the folder that this one writes to."""
    now = 1_700_000_000.5
    drawn(tmp_path / "first", monkeypatch, now, 900, 1.0)
    (there,) = (tmp_path / "first" / "tensorboard").iterdir()
    drawn(tmp_path / "second", monkeypatch, now, 17, 2.0, start_epoch=2, earlier=[there.name])
    there.rename(tmp_path / "second" / "tensorboard" / there.name)
    assert TensorBoardCase.read(tmp_path / "second") == {("recommend/bpr", 2): 2.0}
