"""What the operations are compared with from before: the plain twin of the tests, where this runs from a checkout."""

from importlib import import_module
from typing import Any

import torch

_AFFORDABLE_VALUES = 1 << 27  # of a dense array, 512 MiB; the twin holds several


def plain_twin(device: torch.device, *, num_values: float) -> Any:
    """Return the module ``tests.support.plain``, or None.

    Args:
        device: the twin is compared on the CPU only.
        num_values: of the largest array that it would hold; None is returned where that is too many.
    """
    if device.type != "cpu" or num_values > _AFFORDABLE_VALUES:
        return None
    try:
        return import_module("tests.support.plain")
    except ModuleNotFoundError:  # installed as a package, without the tests
        return None
