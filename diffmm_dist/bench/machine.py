"""What the figures of a benchmark depend on."""

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from diffmm_dist.cores import usable_cores


def command() -> str:
    """Return the command of this process, ready to be run again."""
    return shlex.join(["python", *sys.argv])


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cores = usable_cores()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": cores.of_machine,
        "usable_because": cores.reason,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dgl": _version("dgl"),
    }


def _version(package: str) -> str | None:
    """Return a package's version, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
