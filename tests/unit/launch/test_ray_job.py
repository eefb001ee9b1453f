import os
from types import SimpleNamespace

import pytest

from diffmm_dist import cores
from diffmm_dist.errors import LostWorkerError, StoppedError, TryAgainError, UserError
from diffmm_dist.launch import ray_job
from diffmm_dist.launch.cluster_room import Request
from diffmm_dist.launch.ray_job import _unpack
from diffmm_dist.monitoring.log import set_up_logging
from diffmm_dist.runs.config import places
from diffmm_dist.runs.run_folder import RunFolder
from tests.support.builders import small_config


@pytest.fixture(autouse=True)
def three_here(monkeypatch):
    """What Ray Train tells its workers."""
    train = pytest.importorskip("ray.train", reason="Ray is not installed")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(train, "get_context", lambda: SimpleNamespace(get_local_world_size=lambda: 3))


@pytest.mark.parametrize(
    ("said", "of_node", "expected"),
    [("3", "2", "3"), (None, "2", "2"), (None, None, None), ("2,1", None, "2,1")],
    ids=["to the command", "on the node", "nowhere", "as a list"],
)
def test_rays_own_number_of_threads_is_not_taken_for_the_users(said, of_node, expected, monkeypatch):
    """Ray sets OMP_NUM_THREADS to 1 inside its workers where nobody has set it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(cores, "_word", "1")
    monkeypatch.setattr(cores, "started_with", {"OMP_NUM_THREADS": of_node}.get)
    monkeypatch.setattr(ray_job, "set_up_logging", lambda **_: None)
    heard = []
    monkeypatch.setattr(ray_job, "run_worker", lambda config, **_: heard.append(cores.heard()))
    ray_job._train_function(
        {"config": small_config("data", "run").model_dump(mode="json"), "threads": said, "quiet": False}
    )
    assert heard == [expected]
    assert os.environ["LOCAL_WORLD_SIZE"] == "3"  # by it workers share cores and memory


def test_the_command_hands_over_what_the_user_said_and_not_what_a_job_of_rays_was_given(monkeypatch):
    monkeypatch.setattr(cores, "_word", "3")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert ray_job._word_of_user() == "3"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert ray_job._word_of_user() is None


def test_workers_elsewhere_find_what_a_relative_path_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = small_config("d", "r", model={"name": "promptmm", "teacher": "t"})
    assert places(ray_job.with_absolute_paths(config)) == {
        key: str(tmp_path / name) for key, name in (("data.path", "d"), ("run.path", "r"), ("model.teacher", "t"))
    }
    config = small_config(
        "s3://b/d", "s3://b/r", data={"cache": "c"}, model={"name": "promptmm", "teacher": "s3://b/t"}
    )
    assert places(ray_job.with_absolute_paths(config)) == {
        "data.path": "s3://b/d", "run.path": "s3://b/r", "data.cache": str(tmp_path / "c"), "model.teacher": "s3://b/t",
    }  # fmt: skip


def test_what_a_worker_returns_becomes_what_the_command_does():
    assert _unpack({"result": {"epochs": 3}}) == {"epochs": 3}
    with pytest.raises(UserError, match="no such dataset"):
        _unpack({"error": "no such dataset"})
    with pytest.raises(TryAgainError, match="no answer"):
        _unpack({"try again": "no answer"})
    with pytest.raises(StoppedError, match="epoch 3"):
        _unpack({"stopped": "epoch 3"})
    with pytest.raises(KeyError):
        _unpack(KeyError("a bug of ours keeps its kind"))


def test_workers_that_keep_failing_are_one_sentence():
    error = RuntimeError("of Ray's")
    error.worker_failures = {1: RuntimeError("Traceback ...\n  line\nLostWorkerError: worker 1 of 2 lost another\n")}
    with pytest.raises(TryAgainError, match="worker 1 failed .* LostWorkerError: worker 1 of 2 lost another; the last"):
        _unpack(error)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (MemoryError(), "this takes more memory than there is"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "more memory than",
        ),
        (OSError(28, "No space left on device", "/run"), "/run: No space left on device; make room"),
        (UserError("no such dataset"), "no such dataset"),
    ],
)
def test_what_a_worker_cannot_have_is_a_sentence_and_not_tried_again(raised, said, monkeypatch):
    def run_worker(*_, **__):
        raise raised

    monkeypatch.setattr(ray_job, "set_up_logging", lambda **_: None)
    monkeypatch.setattr(ray_job, "run_worker", run_worker)
    job = {"config": small_config("data", "run").model_dump(mode="json"), "threads": None, "quiet": False}
    assert said in ray_job._train_function(job)["error"]


@pytest.mark.parametrize("raised", [LostWorkerError("lost"), RuntimeError("a bug of ours"), KeyError("k")])
def test_what_ray_may_try_again_is_raised(raised, monkeypatch):
    def run_worker(*_, **__):
        raise raised

    monkeypatch.setattr(ray_job, "set_up_logging", lambda **_: None)
    monkeypatch.setattr(ray_job, "run_worker", run_worker)
    with pytest.raises(type(raised)):
        ray_job._train_function(
            {"config": small_config("data", "run").model_dump(mode="json"), "threads": None, "quiet": False}
        )


@pytest.mark.parametrize(("use_gpu", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
@pytest.mark.parametrize("local", [True, False])
def test_each_worker_has_a_gpu_to_itself_and_counts_go_over_gloo(use_gpu, backend, local, monkeypatch):
    trainer = {}
    monkeypatch.setattr(ray_job, "is_local", lambda: local)
    monkeypatch.setattr("ray.train.torch.TorchTrainer", lambda function, **options: trainer.update(options))
    config = small_config("data", "run", cluster={"num_workers": 4, "timeout_s": 70.2})
    ray_job._trainer(config, RunFolder("run"), Request(4, 2, use_gpu), "meeting")
    assert (trainer["torch_config"].backend, trainer["torch_config"].timeout_s) == (backend, 71)
    each = {"CPU": 2, "GPU": 1} if use_gpu else {"CPU": 2}
    scaling = trainer["scaling_config"]
    assert (scaling.num_workers, scaling._resources_per_worker_not_none) == (4, each)


def test_workers_that_meet_in_a_file_take_the_backend_of_the_run(monkeypatch):
    from diffmm_dist.launch import ray_group

    joined = []
    monkeypatch.setattr(ray_group.ray, "get", lambda futures: None)

    class Group:
        def __len__(self):
            return 2

        def execute_single_async(self, number, function, *arguments):
            joined.append((number, function, arguments))

    config = ray_group.FileConfig(backend="cpu:gloo,cuda:nccl", timeout_s=60, folder="meeting")
    config.backend_cls().on_start(Group(), config)
    assert [(number, arguments[0], arguments[2:4]) for number, _, arguments in joined] == [
        (0, "cpu:gloo,cuda:nccl", (0, 2)), (1, "cpu:gloo,cuda:nccl", (1, 2)),
    ]  # fmt: skip
    begun = {}
    monkeypatch.setattr(
        ray_group.dist, "init_process_group", lambda backend, **options: begun.update(options, b=backend)
    )
    _, function, arguments = joined[1]
    function(*arguments)
    assert (begun["b"], begun["rank"], begun["world_size"]) == ("cpu:gloo,cuda:nccl", 1, 2)


@pytest.mark.parametrize("quiet", [False, True])
def test_workers_are_as_quiet_as_the_command(quiet, monkeypatch):
    set_up_logging(quiet=quiet)
    trainer = {}
    monkeypatch.setattr("ray.train.torch.TorchTrainer", lambda function, **options: trainer.update(options))
    config = small_config("data", "run", cluster={"num_workers": 1})
    ray_job._trainer(config, RunFolder("run"), Request(1, 1, False), "meeting")
    assert trainer["train_loop_config"]["quiet"] is quiet
