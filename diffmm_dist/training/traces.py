"""Traces of a run's first steps, operator by operator, for a timeline in a browser."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Traces:
    """Writes a trace of the first steps of each phase, in the first epoch that this process trains.

    Args:
        folder: where they go; None for a worker that writes none.
        num_steps: of each phase; 0 for none.
    """

    def __init__(self, folder: Path | None, num_steps: int) -> None:
        self._folder = folder if num_steps else None
        self._num_steps = num_steps
        self._epoch: int | None = None

    @contextmanager
    def phase(self, name: str, *, epoch: int) -> Iterator[Callable[[], None]]:
        """Trace a phase, as it goes through its steps.

        Yields:
            What is called after each step.
        """
        self._epoch = epoch if self._epoch is None else self._epoch
        if self._folder is None or epoch != self._epoch:
            yield lambda: None
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would print that it begins and ends
        from torch.profiler import ProfilerAction, profile

        def action(step: int) -> ProfilerAction:
            if step >= self._num_steps:
                return ProfilerAction.NONE
            return ProfilerAction.RECORD_AND_SAVE if step == self._num_steps - 1 else ProfilerAction.RECORD

        self._folder.mkdir(parents=True, exist_ok=True)
        # The ending is that by which TensorBoard's profile plugin knows them; Perfetto reads any.
        file = self._folder / f"epoch-{epoch:05d}-{name}.pt.trace.json.gz"
        with profile(schedule=action, on_trace_ready=lambda traced: traced.export_chrome_trace(str(file))) as profiler:
            yield profiler.step
