"""What every recorder does."""

import importlib.util
import json
import struct
import time
import uuid

import numpy as np
import pytest

from diffmm_dist.monitoring.jsonl import JsonlRecorder, read_jsonl
from diffmm_dist.monitoring.tensorboard import TensorBoardRecorder
from tests.support.builders import RUN_ID
from tests.support.pictures import png


class JsonlCase:
    keeps_what_was_too_much = False

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
    keeps_what_was_too_much = False

    @staticmethod
    def make(path, **options):
        return TensorBoardRecorder(path / "tensorboard", **options)

    @staticmethod
    def read(path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(path / "tensorboard"))
        events.Reload()
        return {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}


class MlflowCase:
    """A run of its own in a database that all tests share, since making one takes a second."""

    keeps_what_was_too_much = True

    def __init__(self, folder):
        self.uri, self.run = f"sqlite:///{folder / 'runs.db'}", uuid.uuid4().hex

    def make(self, path, **_):
        from diffmm_dist.monitoring.mlflow import MlflowRecorder

        return MlflowRecorder(self.uri, run=self.run, name=path.name)

    def found(self):
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name("diffmm-dist").experiment_id
        (run,) = client.search_runs([experiment], f"tags.`diffmm_dist.run` = '{self.run}'")
        return client, run

    def read(self, _):
        client, run = self.found()
        return {
            (tag.replace("_at_", "@"), metric.step): metric.value
            for tag in run.data.metrics
            if not tag.startswith("final/")
            for metric in client.get_metric_history(run.info.run_id, tag)
        }


class WandbCase:
    keeps_what_was_too_much = True

    def __init__(self, folder, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "offline")

    @staticmethod
    def make(path, **_):
        from diffmm_dist.monitoring.wandb import WandbRecorder

        while list(path.glob(time.strftime("wandb/offline-run-%Y%m%d_%H%M%S-*"))):
            time.sleep(0.05)  # its files bear the second of their making
        return WandbRecorder("project", run=RUN_ID, name=path.name, folder=path)

    @staticmethod
    def records(path):
        """What the files hold that `wandb sync` sends, once wandb's own process has written to the end of each."""
        from wandb.proto.wandb_internal_pb2 import Record

        for file in sorted(path.glob(f"wandb/offline-run-*-{RUN_ID}")):
            found, end = [], time.monotonic() + 60
            while not any(record.HasField("exit") for record in found):
                assert time.monotonic() < end
                time.sleep(0.02)
                written = b"".join(part.read_bytes() for part in file.glob("*.wandb"))
                found = list(map(Record.FromString, leveldb_records(written)))
            yield from found

    @classmethod
    def read(cls, path):
        found = {}
        for record in cls.records(path):
            items = [item for item in record.history.item if len(item.nested_key) < 2]  # of a picture there are more
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            found |= {(tag, values["epoch"]): value for tag, value in values.items() if "/" in tag}
        return found


def leveldb_records(data, block=32768):
    """The records of a log in LevelDB's form: pieces with checksum, length and kind, which no block's end cuts."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return  # it is being written
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def make_case(kind, folder, monkeypatch):
    if kind in ("mlflow", "wandb"):
        if importlib.util.find_spec(kind) is None:
            pytest.skip(f"{kind} is not installed")
        return MlflowCase(folder) if kind == "mlflow" else WandbCase(folder, monkeypatch)
    return {"jsonl": JsonlCase, "tensorboard": TensorBoardCase}[kind]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(params=["jsonl", "tensorboard", "mlflow", "wandb"])
def case(request, shared, monkeypatch):
    return make_case(request.param, shared, monkeypatch)


def test_what_is_recorded_can_be_read(case, tmp_path):
    recorder = case.make(tmp_path)
    recorder.begin({"train.epochs": 2, "model.name": "any", "train.patience": None, "eval.k": [5, 20]})
    recorder.scalars({"recommend/bpr": 0.5, "valid/recall@20": 0.25}, epoch=0)
    recorder.scalars({"recommend/bpr": 0.125}, epoch=1)
    recorder.figure("graph/users", png(), epoch=1)
    recorder.embeddings("items", np.eye(4, dtype=np.float32), {"item": list("abcd"), "count": list("1234")})
    recorder.end({"test/recall@20": 0.5}, epoch=1)
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
    read = case.read(tmp_path)
    # Elsewhere the points of later epochs stay until they are recorded again, with the same values.
    last = {("recommend/bpr", 3): 1.0} if case.keeps_what_was_too_much else {}
    assert read == {("recommend/bpr", 0): 1.0, ("recommend/bpr", 1): 1.0, ("recommend/bpr", 2): 2.0} | last


def test_a_running_job_can_be_watched(case, tmp_path):
    recorder = case.make(tmp_path)
    recorder.scalars({"recommend/bpr": 0.5}, epoch=0)
    if not isinstance(case, WandbCase):  # a process of wandb's own writes, when it has enough to write
        assert case.read(tmp_path) == {("recommend/bpr", 0): 0.5}
    recorder.close()
    assert case.read(tmp_path) == {("recommend/bpr", 0): 0.5}


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


def test_a_run_that_goes_on_goes_on_in_the_same_run_of_mlflow(shared, tmp_path):
    pytest.importorskip("mlflow")
    case = MlflowCase(shared)
    recorder = case.make(tmp_path)
    recorder.begin({"train.epochs": 2, "data.path": "d"})
    recorder.close()
    assert case.found()[1].info.status == "KILLED"
    recorder = case.make(tmp_path, start_epoch=1)
    recorder.begin({"train.epochs": 5, "data.path": "d"})
    assert case.found()[1].info.status == "RUNNING"
    recorder.figure("graph/users", png(), epoch=1)
    recorder.end({"test/recall@20": 0.5}, epoch=1)
    recorder.close()
    client, run = case.found()
    assert run.data.params == {"train.epochs": "2", "data.path": "d"}
    assert run.data.metrics == {"final/test/recall_at_20": 0.5}
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "graph")] == ["graph/users-00001.png"]
    assert (shared / "mlartifacts").is_dir()


def test_wandb_is_told_the_settings_and_the_final_figures_of_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    case = WandbCase(tmp_path, monkeypatch)
    for start in range(2):
        recorder = case.make(tmp_path)
        recorder.begin({"train.epochs": 2, "eval.k": [5, 20]})
        recorder.scalars({"valid/recall@20": 0.25}, epoch=start)
        recorder.end({"test/recall@20": 0.5}, epoch=start)
        recorder.close()
    records = list(case.records(tmp_path))
    assert {record.run.run_id for record in records if record.HasField("run")} == {RUN_ID}
    updates = [
        item
        for record in records
        for update in (record.config.update, record.run.config.update, record.summary.update)
        for item in update
    ]
    told = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in updates}
    assert told.items() >= {"train.epochs": 2, "final/test/recall@20": 0.5, "best_epoch": 1}.items()
    assert not list(tmp_path.rglob("*.patch"))
    assert not list(tmp_path.rglob("output.log"))
