import os
import sys

import hypothesis
import pytest
import torch

from diffmm_dist.monitoring.log import logger

hypothesis.settings.register_profile("untimed", deadline=None)  # how fast something is, benchmarks say
hypothesis.settings.load_profile("untimed")

# For every Ray that a test starts. Workers are as important as other processes: by Ray's default the tests beside them
# come first, and on a busy machine they get nothing. Ray Train looks at its workers more often, and has no process that
# waits for nodes that are about to be reclaimed.
os.environ.update({
    "RAY_worker_niceness": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
})  # fmt: skip

# Files of the slow tests that take longest, by what their tests took together. They begin first, so that at the end no
# process is left alone with a long one.
LONGEST = (
    "test_cluster.py", "test_s3.py", "test_ray_workers.py", "test_benchmarks.py", "test_memory.py",
    "test_one_writer.py", "test_end_to_end.py", "test_kill_loop.py", "test_ray.py", "test_s3_faults.py",
    "test_training.py", "test_autoscaling.py", "test_without_packages.py", "test_large_import.py",
    "test_every_moment.py", "test_ended_commands.py", "test_sharded_diffkg.py", "test_tune.py", "test_tutorial.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Put the tests of the files that take longest before all others."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """Undo what a command that ran in this process has done to the log: it writes to a stream that is closed now."""
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture
def run_cli(capsys, monkeypatch):
    """Run the command line in this process; returns (exit status, standard output, standard error)."""
    from diffmm_dist import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["launch.py", *map(str, arguments)])
        monkeypatch.setattr(cli, "tell_libraries", lambda: None)  # they are loaded, and this environment is not its own
        status = 0
        try:
            cli.main()
        except SystemExit as error:
            status = error.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
