"""With which exit status a command ends, and what that says to those who begin commands again."""

import pytest

from diffmm_dist import errors
from diffmm_dist.statuses import again_may_help


@pytest.mark.parametrize(("error", "status", "again"), [
    (errors.UserError("wrong"), 1, False), (errors.DamagedError("wrong"), 1, False),
    (errors.TakenOverError("by another"), 3, False), (OSError(28, "No space left on device"), 1, False),
    (errors.TryAgainError("no answer"), 75, True), (errors.StoppedError("epoch 3"), 130, True),
    (errors.StoppedEarlyError("at once"), 130, True),
])  # fmt: skip
def test_errors(error, status, again, run_cli, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr("diffmm_dist.cli.reference_markdown", fail)
    ended, out, err = run_cli("config", "reference")
    assert (ended, out) == (status, "")
    assert len(err.splitlines()) == 1
    assert again_may_help(status) is again


def test_command_lines_and_signals(run_cli):
    assert run_cli("trian")[0] == 2
    assert [again_may_help(status) for status in (0, 2, 128 + 9, 128 + 15)] == [False, False, True, True]
