import sys

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("untimed", deadline=None)  # how fast something is, benchmarks say
hypothesis.settings.load_profile("untimed")


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
