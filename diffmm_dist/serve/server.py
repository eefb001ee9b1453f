"""A server on this machine: Ray of its own, and the application in it."""

import errno
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from diffmm_dist.bundles.bundle import read_bundle
from diffmm_dist.cores import VARIABLE, usable_cores
from diffmm_dist.errors import StoppedEarlyError, UserError, one_line
from diffmm_dist.launch.ray_cluster import ray_cluster
from diffmm_dist.launch.signals import at_once
from diffmm_dist.places import check_shared, is_remote

_LOOK_S = 5.0
_NAME = "recommendations"
_NEEDED = ("fastapi", "starlette", "uvicorn")
_REMEDY = "install it by: pip install 'diffmm-dist[serve]'"


def serve_until_stopped(bundle: str, *, host: str, port: int, replicas: int, reload_s: float, ready: Any) -> None:
    """Answer requests until SIGINT or SIGTERM; when this returns Ray has stopped.

    Args:
        bundle: a path or an address; replicas see it at this place, whatever folder or link it is by then.
        host: to listen on.
        port: likewise.
        replicas: processes that answer.
        reload_s: how often each looks whether the bundle was exported anew.
        ready: called with the address when requests are answered.

    Raises:
        UserError: the bundle cannot be read, the port is taken, or Ray Serve is not there or ends.
    """
    try:
        with serving(bundle, host=host, port=port, replicas=replicas, reload_s=reload_s) as (address, serve):
            with at_once(_Stopped("stopped")):  # Ray has set a handler of its own
                ready(address)
                _wait(serve)
    except _Stopped:
        return


class _Stopped(StoppedEarlyError):
    """Somebody has asked the server to end, which is how it ends."""


@contextmanager
def serving(bundle: str, *, host: str, port: int, replicas: int, reload_s: float) -> Iterator[tuple[str, Any]]:
    """While open, requests are answered; the arguments and errors are those of ``serve_until_stopped``.

    Yields:
        The address, and the module ray.serve.
    """
    check_shared({"BUNDLE": bundle})
    bundle = bundle if is_remote(bundle) else os.path.abspath(bundle)
    read_bundle(bundle)  # what is wrong with it is a sentence here, and a replica's traceback later
    _check_installed()
    _check_place(host, port)
    with ray_cluster():
        serve, deployment = _serve()
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        threads = str(usable_cores().share(replicas)[0])
        # Replicas reserve nothing: how many there are is said by whoever knows the machine.
        options = {"num_cpus": 0, "runtime_env": {"env_vars": {VARIABLE: threads}}}
        application = deployment.options(
            num_replicas=replicas, ray_actor_options=options, max_constructor_retry_count=1, logging_config=quiet
        ).bind(bundle, reload_s)
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=quiet)
        try:
            _run(serve, application)
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}", serve
        finally:
            serve.delete(_NAME)  # when requests in hand are answered; the rest of it ends with Ray


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_place(host: str, port: int) -> None:
    if os.environ.get("RAY_ADDRESS"):
        raise UserError(
            "RAY_ADDRESS is set, and `serve` answers from this machine alone; unset it, or serve from a cluster as "
            "cluster/README.md says"
        )
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is taken; choose another one by --port") from error
        raise UserError(
            f"{host}:{port} cannot be listened on ({one_line(error)}); choose others by --host and --port"
        ) from error


def _check_installed() -> None:
    """Find out before Ray starts what Ray Serve needs beside it; Ray itself may not be imported yet."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"Ray Serve needs {', '.join(missing)}; {_REMEDY}")


def _serve() -> tuple[Any, Any]:
    """Return the module ray.serve and the deployment."""
    try:
        from ray import serve

        from diffmm_dist.serve.application import deployed
    except ImportError as error:
        raise UserError(f"Ray Serve cannot be imported ({one_line(error)}); {_REMEDY}") from error
    return serve, deployed()


def _run(serve: Any, application: Any) -> None:
    try:
        serve.run(application, name=_NAME)
    except RuntimeError as error:  # its text is a traceback of a replica's
        raise UserError(f"the replicas did not start ({_last_line(error)})") from error


def _wait(serve: Any) -> None:
    """Wait for ever, or until Ray does not answer any more."""
    while True:
        time.sleep(_LOOK_S)
        try:
            serve.status()
        except Exception as error:
            raise UserError(f"Ray has ended ({_last_line(error)}); start the command again") from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
