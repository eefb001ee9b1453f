"""A run, where its configuration says: in this process, or by workers of Ray's."""

from collections.abc import Sequence

from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.run_records import Result


def run_job(config: Config, *, recorders: Sequence[Recorder] = (), show_progress: bool | None = None) -> Result:
    """Train, or go on training; the errors are those of ``run_here`` and ``run_on_ray``.

    Args:
        config: the run.
        recorders: besides the run folder's own; they are told the scalars, in this process.
        show_progress: show where the run is; None does on a terminal.
    """
    if config.cluster.num_workers == 0:
        from diffmm_dist.launch.local_job import run_here

        return run_here(config, recorders=recorders, show_progress=show_progress)
    from diffmm_dist.launch.ray_job import run_on_ray

    return run_on_ray(config, recorders=recorders)
