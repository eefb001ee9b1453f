import pytest

from diffmm_dist.errors import StoppedError, UserError
from diffmm_dist.train.ray_job import Request, _unpack
from tests.support.builders import small_config


def request(available, **cluster):
    return Request.of(small_config("data", "run", cluster=cluster), available)


def test_what_fits_is_let_through():
    request({"CPU": 2.0}, num_workers=2, threads_per_worker=1).check_fits({"CPU": 2.0})
    request({"CPU": 8.0}, num_workers=2, threads_per_worker=4).check_fits({"CPU": 8.0})


def test_gpus_are_asked_for_where_there_are_some():
    assert request({"CPU": 2.0, "GPU": 1.0}, num_workers=1).use_gpu
    assert not request({"CPU": 2.0, "GPU": 1.0}, num_workers=1, device="cpu").use_gpu
    assert request({"CPU": 2.0}, num_workers=1, device="cuda").use_gpu


@pytest.mark.parametrize(
    ("cluster", "available", "message"),
    [
        ({"num_workers": 3, "threads_per_worker": 1}, {"CPU": 2.0}, "=3 needs 3 CPUs where the cluster has 2;"),
        ({"num_workers": 2, "threads_per_worker": 2}, {"CPU": 3.0}, "=2 needs 4 CPUs where the cluster has 3;"),
        ({"num_workers": 2}, {"CPU": 9.0, "GPU": 1.0}, "needs 2 GPUs where the cluster has 1;"),
        ({"num_workers": 2, "device": "cuda"}, {}, "2 CPUs where the cluster has 0 and 2 GPUs where the cluster has 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_both_numbers(cluster, available, message):
    with pytest.raises(UserError, match=message):
        request(available, **cluster).check_fits(available)


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
