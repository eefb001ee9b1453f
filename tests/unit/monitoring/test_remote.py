"""Recorders whose server may be away, and what a configuration may say of them."""

import importlib.util
import threading

import pytest

from diffmm_dist.errors import TryAgainError, UserError
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.monitoring.remote import RemoteRecorder
from diffmm_dist.runs.config import MonitoringConfig, load_config
from diffmm_dist.training.recording import check_packages
from tests.support.builders import small_config, synthetic_dataset, train_alone, warnings_in, write_config


class Server(Recorder):
    """Answers from the n-th call on."""

    def __init__(self, *, away_for=0):
        self.away_for = away_for
        self.told = []

    def opened(self):
        self._ask()
        return self

    def _ask(self):
        self.away_for -= 1
        if self.away_for >= 0:
            raise ConnectionError("nobody\nanswers")

    def begin(self, settings):
        self._ask()
        self.told.append(dict(settings))

    def scalars(self, values, *, epoch):
        self._ask()
        self.told.append(epoch)

    def end(self, metrics, *, epoch):
        self._ask()
        self.told.append(dict(metrics))

    def close(self):
        self.told.append("closed")


def tell(recorder, epochs=3):
    recorder.begin({"a": 1})
    for epoch in range(epochs):
        recorder.scalars({"x/y": 1.0}, epoch=epoch)
    recorder.end({"test/recall@20": 0.5}, epoch=1)
    recorder.close()


@pytest.mark.parametrize("away_for", [0, 1, 4])
def test_all_is_delivered_in_order_once_the_server_is_back_with_one_warning(away_for, caplog):
    server = Server(away_for=away_for)
    tell(RemoteRecorder("monitoring.mlflow", server.opened, at_once=False))
    assert server.told == [{"a": 1}, 0, 1, 2, {"test/recall@20": 0.5}, "closed"]
    expected = (
        "monitoring.mlflow does not take what it is told (nobody answers); training goes on, it is tried again, and "
        "the run folder has all of it"
    )
    assert warnings_in(caplog) == [expected] * (away_for > 0)


def test_a_server_that_stays_away_loses_nothing_else(caplog):
    caplog.set_level("INFO", "diffmm_dist")
    tell(RemoteRecorder("monitoring.mlflow", Server(away_for=99).opened, at_once=False))
    assert len(warnings_in(caplog)) == 1
    assert caplog.messages[-1].startswith("monitoring.mlflow has missed the last 6 records")


def test_a_server_that_never_ends_an_answer_is_not_waited_for(caplog):
    caplog.set_level("INFO", "diffmm_dist")
    answers = threading.Event()

    class Hanging(Server):
        def scalars(self, values, *, epoch):
            answers.wait(60)

    tell(RemoteRecorder("monitoring.mlflow", Hanging().opened, at_once=True, patience_s=0.01))
    assert caplog.messages[-1].startswith("monitoring.mlflow has missed the last")
    answers.set()


def test_what_waiting_does_not_mend_is_a_mistake():
    with pytest.raises(UserError) as error:
        RemoteRecorder("monitoring.mlflow", Server(away_for=1).opened, at_once=True, is_server=False)
    assert not isinstance(error.value, TryAgainError)


def test_a_server_that_is_away_at_first_is_said_at_once():
    with pytest.raises(TryAgainError, match=r"^monitoring.mlflow cannot be used: nobody answers; see docs/monitor"):
        RemoteRecorder("monitoring.mlflow", Server(away_for=1).opened, at_once=True)


WRONG = {
    "monitoring.mlflow=http://me:secret@host:5000": "this holds credentials",
    "monitoring.mlflow=http://host:5000/?token=abc": "give them as MLFLOW_TRACKING_USERNAME",
    "monitoring.mlflow=sqlite:///": "'sqlite:///', and must be http://HOST:PORT of a server of MLflow's, or sqli",
    "monitoring.mlflow=mlruns": "must be http://HOST:PORT of a server of MLflow's",
    "monitoring.mlflow=postgresql://host/db": "must be http://HOST:PORT of a server of MLflow's",
    "monitoring.mlflow=http://host:99999": "must be http://HOST:PORT of a server of MLflow's",
    "monitoring.wandb=a/b/c": "'a/b/c', and must be PROJECT or ENTITY/PROJECT",
    "monitoring.wandb=''": "must be PROJECT",
}


@pytest.mark.parametrize("setting", WRONG)
def test_what_is_no_server_or_holds_a_login_is_refused(setting, tmp_path):
    config = write_config(tmp_path / "c.yaml", data={"path": "d"}, run={"path": "r"})
    with pytest.raises(UserError) as error:
        load_config(config, [setting])
    assert WRONG[setting] in str(error.value)
    assert "me:secret" not in str(error.value)


def test_a_database_is_the_same_one_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MonitoringConfig(mlflow="sqlite:///runs.db").mlflow == f"sqlite:///{tmp_path}/runs.db"
    assert MonitoringConfig(mlflow="http://host:5000/").mlflow == "http://host:5000"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_missing_is_said_before_there_is_a_run_folder(name, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    monitoring = {name: {"mlflow": "http://127.0.0.1:9", "wandb": "project"}[name]}
    config = small_config(synthetic_dataset(tmp_path / "d"), tmp_path / "run", monitoring=monitoring)
    with pytest.raises(
        UserError, match=rf"^monitoring.{name} needs {name}: install it with pip install 'diffmm-dist\["
    ):
        train_alone(config)
    assert not (tmp_path / "run").exists()
    check_packages(MonitoringConfig())


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_a_run_does_not_begin_without_its_server_and_goes_on_without_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    data = synthetic_dataset(tmp_path / "d")
    away = {"mlflow": "http://127.0.0.1:9"}
    with pytest.raises(TryAgainError, match=r"^monitoring.mlflow cannot be used: .+; see docs/monitoring.md$"):
        train_alone(small_config(data, tmp_path / "new", train={"epochs": 1}, monitoring=away))
    train_alone(small_config(data, tmp_path / "run", train={"epochs": 1}))
    result = train_alone(small_config(data, tmp_path / "run", train={"epochs": 2}, monitoring=away))
    assert result["epochs"] == 2
    assert len([text for text in warnings_in(caplog) if "monitoring.mlflow" in text]) == 1
