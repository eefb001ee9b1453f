"""A run in this process."""

from collections.abc import Sequence

from diffmm_dist.errors import StoppedEarlyError
from diffmm_dist.launch.signals import StopSignals
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.runs.run_records import Result
from diffmm_dist.training.worker import run_worker


def run_here(config: Config, *, recorders: Sequence[Recorder] = (), show_progress: bool | None = None) -> Result:
    """Train in this process; Ctrl-C saves a checkpoint and stops.

    Args:
        config: the run.
        recorders: besides the run folder's own.
        show_progress: show where the run is; None does on a terminal.

    Raises:
        UserError: something that the user can put right.
        StoppedError: the run was stopped and has saved a checkpoint.
        StoppedEarlyError: the run was stopped before it trained, or a second time while it saved.
        TakenOverError: another process has taken the run over.
    """
    try:
        with StopSignals() as signals:
            return run_worker(
                config, stop_requested=signals.requested, recorders=recorders, show_progress=show_progress
            )
    except KeyboardInterrupt as interrupt:
        last = RunFolder(config.run.path).last_complete()
        raise StoppedEarlyError(f"stopped at once, without saving; {last}") from interrupt
