"""Ray's package and its cluster's address, before anything of them is used; nothing here needs torch."""

import os
import socket
import sys
from typing import Any

from diffmm_dist.errors import TryAgainError, UserError, one_line


def is_local() -> bool:
    """Return whether Ray is started for the run, on this machine alone."""
    return not os.environ.get("RAY_ADDRESS")


def imported(*, local: bool) -> Any:
    """Import Ray.

    Args:
        local: it is to be started on this machine, for this run alone.

    Raises:
        UserError: it cannot be imported.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # what workers say is coloured otherwise, in logs too
    if local:
        # Without the cluster support that this variable is named for, every server of Ray's binds to loopback; Ray
        # reads it when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the workers' exchanges stay on this machine too
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"Ray cannot be imported ({one_line(error)}); install ray[default,train], or set cluster.num_workers=0 to "
            "train in this process"
        ) from error
    return ray


def ray_version() -> str:
    """Return the version of Ray that is here.

    Raises:
        UserError: it cannot be imported.
    """
    return str(imported(local=is_local()).__version__)


def check_answers(address: str, *, timeout_s: float, where: str | None = None) -> bool:
    """Find out whether something listens at the address of a cluster.

    Args:
        address: of its head.
        timeout_s: how long it may take to answer.
        where: what the address is, for the error.

    Returns:
        False where the address is no host with a port, which only Ray can make something of.

    Raises:
        TryAgainError: nothing answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except (OSError, OverflowError) as error:
        raise TryAgainError(
            f"{where or address} does not answer ({one_line(error)}); give the address of its head, such as HEAD:6379, "
            "or unset RAY_ADDRESS to train on this machine"
        ) from error
    return True
