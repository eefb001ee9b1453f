"""Where a run is, as a line on a terminal; elsewhere nothing, since every epoch logs its own line."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from diffmm_dist.monitoring.log import error_console, is_quiet

_REFRESH_PER_S = 4
_BAR = range(20, 41)  # columns


@dataclass(frozen=True)
class Score:
    """What an evaluation has found.

    Attributes:
        name: the split and the metric.
        value: the last one.
        best: the best one so far.
        best_epoch: of which epoch.
    """

    name: str
    value: float
    best: float
    best_epoch: int

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4f} (best {self.best:.4f}, {self.best_epoch})"


class ProgressLine:
    """One line that is drawn again and again, through every phase of every epoch.

    It says epoch, phase and step, how fast that goes, how long the epoch and the run still take, at most, and what the
    last evaluation has found, as much of it as the terminal is wide. How long phases take that are still to come is
    known from the epoch before.

    Args:
        enabled: draw it; None draws it on a terminal where the log is shown too.
    """

    def __init__(self, *, enabled: bool | None = None) -> None:
        console = error_console()
        if enabled is None:
            enabled = sys.stderr.isatty() and not is_quiet() and not console.is_dumb_terminal
        self._live = (
            Live(
                self, console=console, transient=True, refresh_per_second=_REFRESH_PER_S,
                redirect_stdout=sys.stdout.isatty(),
            )
            if enabled
            else None
        )  # fmt: skip
        self._where = self._phase = ""
        self._unit = "steps"
        self._total: int | None = None
        self._done = self._done_before = 0
        self._began_at = self._advanced_at = time.monotonic()
        self._begun: set[str] = set()
        self._seconds: Mapping[str, float] = {}
        self._further_epochs = 0
        self._whole = "run"
        self._score: Score | None = None

    def __enter__(self) -> "ProgressLine":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, where: str, phase: str, *, total: int | None = None, done: int = 0, unit: str = "steps") -> None:
        """Begin a phase.

        Args:
            where: the epoch, and the stage if there are several.
            phase: its name.
            total: its steps, None where they are not counted.
            done: steps of it that an earlier process has done.
            unit: what the steps are.
        """
        self._unit = unit
        self._where, self._phase, self._total = where, phase, total
        self._done = self._done_before = done
        self._began_at = self._advanced_at = time.monotonic()
        self._begun.add(phase)

    def advance(self, steps: int = 1) -> None:
        """Count one step, or several."""
        self._done += steps
        self._advanced_at = time.monotonic()

    def end_epoch(
        self, seconds: Mapping[str, float], *, epochs_left: int, whole: str = "run", score: Score | None = None
    ) -> None:
        """Take down what an epoch says of the next ones.

        Args:
            seconds: by phase.
            epochs_left: how many are still to come, at most.
            whole: of what, the run or the present stage.
            score: what its evaluation has found, None if it had none.
        """
        self._seconds, self._begun = dict(seconds), set()
        self._further_epochs, self._whole = max(0, epochs_left - 1), whole
        self._score = score or self._score

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - 1  # some terminals begin a new line behind the last column
        yield Text(self.line(width, ascii_only=options.ascii_only), no_wrap=True, overflow="crop")

    def line(self, width: int, *, ascii_only: bool = False) -> str:
        """Return what is drawn in so many columns."""
        if not self._where:
            return ""
        counted = "" if self._total is None else f" {self._done}/{self._total}"
        head = f"{self._where} {self._phase}{counted}"
        rate, score, brief = self._rate(), self._score, self._times(brief=True)
        full = [head, f"{rate:.3g} {self._unit}/s" if rate else "", *self._times(), "" if score is None else str(score)]
        text = _joined(full)
        if len(text) <= width:
            return self._bar(width - len(text) - 1, ascii_only) + text
        found = "" if score is None else f"{score.value:.4f} (best {score.best:.4f})"
        briefly = [head, f"{rate:.3g}/s" if rate else "", *brief, found]
        texts = map(_joined, (briefly, [head, *brief, found], [head, *brief], [head, *brief[:1]], [head]))
        return next((text for text in texts if len(text) <= width), head[:width])

    def _bar(self, room: int, ascii_only: bool) -> str:
        if not self._total or room < _BAR.start:
            return ""
        size = min(room, _BAR.stop - 1)
        filled = size * min(self._done, self._total) // self._total
        return ("#" if ascii_only else "━") * filled + ("-" if ascii_only else "┄") * (size - filled) + " "

    def _rate(self) -> float:
        elapsed = self._advanced_at - self._began_at
        return (self._done - self._done_before) / elapsed if elapsed > 0 else 0.0

    def _times(self, *, brief: bool = False) -> list[str]:
        """Return how long the phase takes, or as soon as that is known the epoch and the run."""
        left, rate = "" if brief else " left", self._rate()
        if self._total is None:
            phase = self._seconds.get(self._phase, 0.0)
        elif rate or self._done == self._total:
            phase = (self._total - self._done) / (rate or 1.0)
        else:
            return []
        if not self._seconds:
            return [] if self._total is None else [f"{self._phase} {_clock(phase)}{left}"]
        epoch = phase + sum(value for name, value in self._seconds.items() if name not in self._begun)
        whole = epoch + self._further_epochs * sum(self._seconds.values())
        most = f"{self._whole} <{_clock(whole)}" if brief else f"{self._whole} at most {_clock(whole)}"
        return [f"epoch {_clock(epoch)}{left}", most]


def _joined(parts: Sequence[str]) -> str:
    return ", ".join(filter(None, parts))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
