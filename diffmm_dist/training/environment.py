"""What times, memory and the last bits of a run depend on: the machine, Python and the packages."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from diffmm_dist.cores import usable_cores
from diffmm_dist.parallel.world import World

_PACKAGES = ("torch", "numpy", "pyarrow", "dgl")
_LONGEST = 100  # characters that a record keeps


def machine() -> dict[str, Any]:
    """Return what the figures of a benchmark depend on."""
    cores = usable_cores()
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "usable_cores": cores.of_machine,
        "usable_because": cores.reason,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dgl": package_version("dgl"),
    }


def environment(world: World) -> dict[str, str]:
    """Return what a run is trained with, as the first worker sees it, in words for a record; no name of a machine."""
    versions = {name: package_version(name) or "not installed" for name in _PACKAGES}
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    found = {
        "Python": platform.python_version(),
        **versions,
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "usable cores": str(usable_cores().of_machine),
        "device": device,
        "workers": str(world.size),
        "threads of a worker": str(torch.get_num_threads()),
    }
    return {name: str(value)[:_LONGEST] for name, value in found.items()}


def package_version(package: str) -> str | None:
    """Return a package's version, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of this machine's processor, or its kind where the system does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
