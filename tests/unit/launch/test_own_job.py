"""How a job of Ray's ends whose command would only fail again; tests/integration/test_cluster.py does it with Ray."""

import json
import signal
import sys
from types import SimpleNamespace

import pytest

from diffmm_dist.launch import own_job
from diffmm_dist.launch.own_job import stopped_where_final
from diffmm_dist.statuses import INTERRUPTED, MISTAKE, TAKEN_OVER, TRY_AGAIN, USAGE


@pytest.fixture
def stopped(monkeypatch):
    """The jobs that were stopped, in a process that is one."""
    names = []

    class Client:
        def stop_job(self, name):
            names.append(name)

    monkeypatch.setitem(sys.modules, "ray.job_submission", SimpleNamespace(JobSubmissionClient=Client))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "mine"}}))
    monkeypatch.setenv("DIFFMM_STOP_JOB", "1")
    monkeypatch.setattr(own_job, "_WITHIN_S", 0)
    handler = signal.getsignal(signal.SIGTERM)
    yield names
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize(("status", "expected"), [
    (MISTAKE, ["mine"]), (USAGE, ["mine"]), (TAKEN_OVER, ["mine"]), ("a sentence", ["mine"]),
    (0, []), (None, []), (TRY_AGAIN, []), (INTERRUPTED, []), (128 + signal.SIGKILL, []), (1234, []),
])  # fmt: skip
def test_only_what_the_same_command_cannot_mend_stops_the_job(stopped, status, expected):
    with pytest.raises(SystemExit) as ended, stopped_where_final():
        sys.exit(status)
    assert ended.value.code == status
    assert stopped == expected


def test_a_bug_stops_it_too_and_shows_its_traceback_first(stopped, capsys):
    with pytest.raises(KeyError), stopped_where_final():
        raise KeyError("of ours")
    assert stopped == ["mine"]
    assert "of ours" in capsys.readouterr().err


@pytest.mark.parametrize("variables", [
    {"DIFFMM_STOP_JOB": ""}, {"DIFFMM_STOP_JOB": "0"}, {"RAY_JOB_CONFIG_JSON_ENV_VAR": ""},
    {"RAY_JOB_CONFIG_JSON_ENV_VAR": "[]"}, {"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {}}'},
])  # fmt: skip
def test_elsewhere_nothing_is_stopped(stopped, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit), stopped_where_final():
        sys.exit(MISTAKE)
    assert stopped == []


def test_a_cluster_that_does_not_answer_leaves_the_status(stopped, monkeypatch, capsys):
    def fail():
        raise RuntimeError("gone")

    monkeypatch.setattr(sys.modules["ray.job_submission"], "JobSubmissionClient", fail)
    with pytest.raises(SystemExit) as ended, stopped_where_final():
        sys.exit(MISTAKE)
    assert ended.value.code == MISTAKE
    assert "could not be stopped: gone" in capsys.readouterr().err
