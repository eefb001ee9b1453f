"""What the figures of a benchmark depend on: its command and its machine."""

import shlex
import sys

from diffmm_dist.training.environment import machine as machine


def command() -> str:
    """Return the command of this process, ready to be run again."""
    return shlex.join(["python", *sys.argv])
