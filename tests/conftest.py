import sys

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("untimed", deadline=None)  # how fast something is, benchmarks say
hypothesis.settings.load_profile("untimed")


# Files of the slow tests that take longest, by what their tests took together. They begin first, so that at the end no
# process is left alone with a long one.
LONGEST = (
    "test_ray_workers.py", "test_s3.py", "test_cluster.py", "test_ray.py", "test_training.py", "test_memory.py",
    "test_s3_faults.py", "test_benchmarks.py", "test_end_to_end.py", "test_one_writer.py", "test_every_moment.py",
    "test_autoscaling.py", "test_large_import.py", "test_sharded_diffkg.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Put the tests of the files that take longest before all others."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


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
