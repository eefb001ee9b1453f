"""A progress bar on a terminal; elsewhere nothing, since every epoch logs its own line."""

import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffmm_dist.monitoring.log import error_console


class ProgressBar:
    """One bar that is reused for every phase of every epoch.

    Args:
        enabled: draw it; None draws it on a terminal only.
    """

    def __init__(self, *, enabled: bool | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=error_console(),
            transient=True,
            disable=not (sys.stderr.isatty() if enabled is None else enabled),
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def begin(self, description: str, *, total: int, done: int = 0) -> None:
        """Start counting a phase."""
        self._progress.reset(self._task, description=description, total=total, completed=done)

    def advance(self, steps: int = 1) -> None:
        """Count one step, or several."""
        self._progress.advance(self._task, steps)
