import pytest

from diffmm_dist.errors import StoppedError, UserError
from diffmm_dist.train.ray_job import _unpack


def test_what_a_worker_returns_becomes_what_the_command_does():
    assert _unpack({"result": {"epochs": 3}}) == {"epochs": 3}
    with pytest.raises(UserError, match="no such dataset"):
        _unpack({"error": "no such dataset"})
    with pytest.raises(StoppedError, match="epoch 3"):
        _unpack({"stopped": "epoch 3"})
    with pytest.raises(KeyError):
        _unpack(KeyError("a bug of ours keeps its kind"))


def test_workers_that_keep_failing_are_one_sentence():
    error = RuntimeError("of Ray's")
    error.worker_failures = {1: RuntimeError("Traceback ...\n  line\nLostWorkerError: worker 1 of 2 lost another\n")}
    with pytest.raises(UserError, match="worker 1 failed .* LostWorkerError: worker 1 of 2 lost another; the last"):
        _unpack(error)
