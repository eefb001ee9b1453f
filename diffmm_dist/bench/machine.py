"""What the figures of a benchmark depend on."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from typing import Any

import torch


def command() -> str:
    """Return the command of this process, ready to be run again."""
    return shlex.join(["python", *sys.argv])


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dgl": version("dgl"),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
