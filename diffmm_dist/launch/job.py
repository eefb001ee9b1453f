"""A run, where its configuration says: in this process, or by workers of Ray's."""

from diffmm_dist.runs.config import Config
from diffmm_dist.runs.run_records import Result


def run_job(config: Config) -> Result:
    """Train, or go on training; the errors are those of ``run_here`` and ``run_on_ray``."""
    if config.cluster.num_workers == 0:
        from diffmm_dist.launch.local_job import run_here as run
    else:
        from diffmm_dist.launch.ray_job import run_on_ray as run
    return run(config)
