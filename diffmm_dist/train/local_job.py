"""A run in this process."""

import threading

from diffmm_dist.config.schema import Config
from diffmm_dist.train.run_folder import Result
from diffmm_dist.train.signals import StopSignals
from diffmm_dist.train.worker import run_worker


def run_here(config: Config) -> Result:
    """Train in this process; Ctrl-C saves a checkpoint and stops.

    Raises:
        UserError: something that the user can put right.
        StoppedError: the run was stopped and has saved a checkpoint.
    """
    stop = threading.Event()
    with StopSignals(stop.set):
        return run_worker(config, stop_requested=stop.is_set)
