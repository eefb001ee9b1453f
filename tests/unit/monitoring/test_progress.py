"""Where a run is, on terminals of all kinds."""

import sys

import pytest

from diffmm_dist.monitoring.progress import ProgressLine, Score
from tests.support.terminal import Screen, run_in_terminal

SECONDS = {"denoise": 10.0, "recommend": 20.0, "evaluate": 2.0}
SCORE = Score("valid recall@20", 0.25, 0.5, 1)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def line(clock):
    """In the third epoch of five, in its first phase, whose steps take a second."""
    progress = ProgressLine(enabled=False)
    progress.begin("epoch 1 of 0..4", "denoise", total=10)
    progress.end_epoch(SECONDS, epochs_left=3, score=SCORE)
    progress.begin("epoch 2 of 0..4", "denoise", total=10)
    for _ in range(4):
        clock[0] += 1
        progress.advance()
    return progress


FULL = (
    "epoch 2 of 0..4 denoise 4/10, 1 steps/s, epoch 0:28 left, run at most 1:32, "
    "valid recall@20 0.2500 (best 0.5000, 1)"
)  # six seconds of this phase and 22 of the later ones; then two more epochs of 32


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (len(FULL) + 21, f"{'━' * 8}{'┄' * 12} {FULL}"),
        (300, f"{'━' * 16}{'┄' * 24} {FULL}"),
        (len(FULL), FULL),
        (len(FULL) - 1, "epoch 2 of 0..4 denoise 4/10, 1/s, epoch 0:28, run <1:32, 0.2500 (best 0.5000)"),
        (79, "epoch 2 of 0..4 denoise 4/10, 1/s, epoch 0:28, run <1:32, 0.2500 (best 0.5000)"),
        (74, "epoch 2 of 0..4 denoise 4/10, epoch 0:28, run <1:32, 0.2500 (best 0.5000)"),
        (60, "epoch 2 of 0..4 denoise 4/10, epoch 0:28, run <1:32"),
        (30, "epoch 2 of 0..4 denoise 4/10"),
        (10, "epoch 2 of"),
    ],
)
def test_as_much_is_said_as_fits(line, width, shown):
    assert line.line(width) == shown
    assert len(shown) <= width


def test_a_terminal_of_few_letters(line):
    assert line.line(300, ascii_only=True).startswith("#" * 16 + "-" * 24 + " epoch")


def test_of_the_first_epoch_the_phase_alone_is_known(clock):
    progress = ProgressLine(enabled=False)
    assert progress.line(80) == ""
    progress.begin("epoch 0 of 0..4", "denoise", total=100, done=40)
    assert progress.line(60) == f"{'━' * 11}{'┄' * 18} epoch 0 of 0..4 denoise 40/100"
    clock[0] += 2
    progress.advance()
    assert progress.line(64) == "epoch 0 of 0..4 denoise 41/100, 0.5 steps/s, denoise 1:58 left"


def test_a_phase_whose_steps_are_not_counted(line):
    line.begin("epoch 2 of 0..4", "evaluate")
    assert line.line(60) == "epoch 2 of 0..4 evaluate, epoch 0:22, run <1:26"


def test_hours(line, clock):
    line.end_epoch({"denoise": 3600.0}, epochs_left=3, whole="stage")
    line.begin("stage 'teacher', epoch 3 of 0..4", "evaluate")
    assert "epoch 1:00:00 left, stage at most 3:00:00, valid recall@20 0.2500" in line.line(200)


SCRIPT = """
import sys, time
from diffmm_dist.monitoring.log import logger, print_table, set_up_logging
from diffmm_dist.monitoring.progress import ProgressLine, Score

set_up_logging(quiet="quiet" in sys.argv)
logger.info("it begins")
with ProgressLine() as progress:
    for epoch in range(3):
        where = f"epoch {epoch} of 0..2"
        for phase in ("denoise", "recommend"):
            progress.begin(where, phase, total=3)
            for _ in range(3):
                progress.advance()
                time.sleep(0.01)
                if progress._live:
                    progress._live.refresh()
        logger.info("%s: %s", where, ", ".join(["denoise 1.0 s"] * 8))
        score = Score("valid x", 0.1, 0.2, 0)
        progress.end_epoch({"denoise": 1.0, "recommend": 2.0}, epochs_left=2 - epoch, score=score)
logger.warning("a warning")
print("the result")
"""


def shown(columns, *words, **env):
    written = run_in_terminal([sys.executable, "-c", SCRIPT, *words], columns=columns, env=env)
    return Screen(written, columns=columns), written


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_on_a_terminal_the_line_is_drawn_and_goes_and_the_log_stays(columns):
    screen, written = shown(columns)
    assert "epoch 2 of 0..2 recommend 3/3" in written
    text = " ".join(screen.lines)
    assert screen.lines[0] == "it begins"
    assert screen.lines[-2:] == ["the result", ""]
    assert "recommend" not in text
    assert text.count("epoch") == 3
    assert text.count("denoise 1.0 s") == text.count("denoise") == 24
    assert screen.wrapped == 0


def test_without_colour():
    screen, written = shown(80, NO_COLOR="1")
    assert "recommend 3/3" in written
    assert not [code for code in screen.codes if code.endswith("m") and code.strip("01;m")]


@pytest.mark.parametrize(("words", "env"), [((), {"TERM": "dumb"}), (("quiet",), {})])
def test_where_nothing_is_drawn(words, env):
    screen, written = shown(80, *words, **env)
    assert "recommend" not in written
    assert "\r\r" not in written
    assert screen.codes <= {"0m", "1m"}
    lines = [line for line in screen.lines if line]
    assert lines == ["a warning", "the result"] if words else lines[0] == "it begins"
