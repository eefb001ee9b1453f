"""Ray itself: starting or joining a cluster, what it holds and can become, and waiting for room on it."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from diffmm_dist.errors import StoppedEarlyError, TryAgainError, UserError, one_line
from diffmm_dist.launch.cluster_room import (
    Growth,
    Limits,
    Node,
    Request,
    Shape,
    Unknown,
    can_never,
    free,
    gave_up,
    held,
    refusal,
    request_for,
    waiting,
)
from diffmm_dist.launch.private_places import private_places
from diffmm_dist.launch.ray_package import check_answers, imported, is_local
from diffmm_dist.launch.signals import at_once
from diffmm_dist.monitoring.log import logger
from diffmm_dist.runs.config import ClusterConfig

_POLL_SECONDS = 0.5
_SAY_AGAIN_S = 60.0
_ANSWER_S = 60.0  # for the head to start a process and say what its autoscaler is told
_CONNECT_S = 10.0


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine that nothing outside it can reach.

    Yields:
        The module ray, connected.

    Raises:
        UserError: Ray is not installed, has no folder to write to, or the cluster cannot be joined.
        TryAgainError: it did not start here.
    """
    address = None if is_local() else os.environ["RAY_ADDRESS"]
    with private_places(local=not address) as temp:
        ray = imported(local=not address)
        try:
            if not ray.is_initialized():
                _join(ray, address) if address else _start(ray, temp)
            yield ray
        finally:
            ray.shutdown()


def _start(ray: Any, temp: str | None) -> None:
    with suppress(AttributeError):  # it may have read the token of an earlier run in this process
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    # "local" makes a cluster of our own even where `ray start` has made another. The dashboard answers Ray Train's own
    # questions; without it the log fills with complaints.
    try:
        ray.init(
            "local", logging_level="WARNING", include_dashboard=True, dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1", _temp_dir=temp,
        )  # fmt: skip
    except Exception as error:  # Ray raises just that where its processes take too long
        raise TryAgainError(
            f"Ray did not start on this machine ({_first_sentence(error)}); it may be too busy, or short of memory or "
            "disk: run the same command again"
        ) from error


def _join(ray: Any, address: str) -> None:
    where = f"the cluster at RAY_ADDRESS={address}"
    check_answers(address, timeout_s=_CONNECT_S, where=where)  # Ray itself would try for two minutes
    try:
        ray.init(logging_level="WARNING")
    except (ray.exceptions.RayError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{where} cannot be joined ({_first_sentence(error)}); check the address, that RAY_AUTH_TOKEN_PATH or "
            "RAY_AUTH_TOKEN has its token, and that it has this version of Ray"
        ) from error


def _first_sentence(error: BaseException) -> str:
    return one_line(error).split(". ")[0].rstrip(".")


def room_for(ray: Any, cluster: ClusterConfig) -> Request:
    """Return what the run asks of the cluster, once there is room for it.

    Raises:
        UserError: the cluster can never hold it, or has not grown to hold it within ``cluster.wait_for_nodes_s``.
        StoppedEarlyError: Ctrl-C or SIGTERM while waiting.
    """
    with at_once(StoppedEarlyError("stopped while waiting for room on the cluster; nothing was trained or saved")):
        nodes, growth = _nodes(ray), cast(Growth, Limits())
        request = _request(cluster, nodes, growth)
        if free(request, nodes) >= request.fewest:
            return request
        if os.environ.get("RAY_ADDRESS"):
            growth = _growth(ray)
            request = _request(cluster, nodes, growth)
        if can_never(request, nodes, growth) or (_lacks(request, nodes) and cluster.wait_for_nodes_s == 0):
            raise UserError(refusal(request, nodes, growth))
        if isinstance(growth, Unknown):
            logger.info("whether the cluster can grow is not known: %s", growth.reason)
        _wait(ray, request, cluster.wait_for_nodes_s)
        return request


def rooms(ray: Any, request: Request) -> tuple[int, int]:
    """Return how many workers the nodes that are there hold, all of them and the one that holds most."""
    nodes = _nodes(ray)
    return held(request, nodes), max((request.on(node.total) for node in nodes), default=0)


def _request(cluster: ClusterConfig, nodes: Sequence[Node], growth: Growth) -> Request:
    cpus = max(1, cluster.threads_per_worker)
    return request_for(cluster.num_workers, cpus=cpus, device=cluster.device, nodes=nodes, growth=growth)


def _lacks(request: Request, nodes: Sequence[Node]) -> bool:
    return held(request, nodes) < request.fewest


def _wait(ray: Any, request: Request, patience_s: float) -> None:
    """Ask for room and wait for it: as long as it takes for what others use, ``patience_s`` for nodes still to come."""
    from ray.util.placement_group import placement_group, remove_placement_group

    # What Ray Train is going to ask for. Autoscalers see it, and it goes with this process however that ends;
    # request_resources would outlive it and take the place of other jobs' requests.
    group = placement_group([request.resources] * request.fewest)
    started, said, said_at = time.monotonic(), "", -math.inf
    try:
        while not group.wait(_POLL_SECONDS):
            nodes, coming, now = _nodes(ray), _coming(ray), time.monotonic()
            left = started + patience_s - now
            if _lacks(request, nodes) and left <= 0:
                raise TryAgainError(gave_up(request, nodes, coming, patience_s))
            text = waiting(request, nodes, coming)
            if text != said or now >= said_at + _SAY_AGAIN_S:
                limit = f"; {left:.0f} s left (cluster.wait_for_nodes_s)" if _lacks(request, nodes) else ""
                logger.info("%s%s", text, limit)
                said, said_at = text, now
    finally:
        remove_placement_group(group)
    logger.info("there is room for %s", request)


def _nodes(ray: Any) -> list[Node]:
    """Return the nodes that are there, as Ray's head sees them now."""
    unused: Mapping[str, Mapping[str, float]] = {}
    with suppress(Exception):  # not a public function; without it nobody is known to use anything
        unused = ray._private.state.available_resources_per_node()
    names = _type_names(ray)
    nodes = []
    for entry in ray.nodes():
        if entry["Alive"]:
            total = Shape.of(entry["Resources"])
            name = names.get(entry["NodeID"]) or names.get(entry["NodeManagerAddress"]) or ""
            nodes.append(Node(total, Shape.of(unused[entry["NodeID"]]) if entry["NodeID"] in unused else total, name))
    return nodes


def _status(ray: Any) -> Any:
    """Return what the head knows of nodes and, from an autoscaler of version 2, of those to come."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    return get_cluster_status(ray.get_runtime_context().gcs_address)


def _report(ray: Any) -> Mapping[str, Any]:
    """Return what an autoscaler of version 1 reports, nothing from another."""
    from ray.experimental.internal_kv import _internal_kv_get

    return json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}


def _type_names(ray: Any) -> dict[str, str]:
    """Return the autoscaler's names of the nodes' types, by the nodes' ids or addresses."""
    names: dict[str, str] = {}
    with suppress(Exception):  # neither is public: without them nodes count as not made by the autoscaler
        names |= _report(ray).get("node_type_mapping") or {}
        status = _status(ray)
        names |= {node.node_id: node.ray_node_type_name for node in [*status.active_nodes, *status.idle_nodes]}
    return names


def _coming(ray: Any) -> Counter[str]:
    """Return how many nodes of each type an autoscaler is starting, as far as it says so."""
    coming: Counter[str] = Counter()
    with suppress(Exception):
        report, status = _report(ray), _status(ray)
        coming.update(report.get("pending_launches") or {})
        coming.update(entry[1] for entry in report.get("pending_nodes") or [])
        for launch in status.pending_launches:
            coming[launch.ray_node_type_name] += launch.count
        coming.update(node.ray_node_type_name for node in status.pending_nodes)
    return coming


def _growth(ray: Any) -> Growth:
    """Ask the head what its autoscaler may start; Ray itself has no way to ask."""
    ask = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001}, max_retries=0)(autoscaler_on_this_machine)
    try:
        tree = ray.get(ask.remote(ray.get_runtime_context().gcs_address), timeout=_ANSWER_S)
        return Limits.of(tree)
    except Exception as error:
        return Unknown(f"its head does not say what the autoscaler may start ({_cause(error)})")


def _cause(error: BaseException) -> str:
    """Return the last line of what went wrong; Ray puts a traceback before it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def autoscaler_on_this_machine(gcs_address: str, processes: Path = Path("/proc")) -> dict[str, Any]:
    """Return what the autoscaler of the cluster whose head this machine is may start; it runs on the head.

    Args:
        gcs_address: of the cluster; there may be several heads on a machine.
        processes: where the system lists them.

    Returns:
        The part of the autoscaler's configuration that says so, without types where there is none.

    Raises:
        LookupError: there is no autoscaler that can be asked.
    """
    port = gcs_address.rsplit(":", 1)[-1]
    for path in processes.glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        monitor = any(Path(word).name == "monitor.py" for word in words)  # there is a log_monitor.py too
        if monitor and options.get("gcs-address", "").rsplit(":", 1)[-1] == port:
            config = options.get("autoscaling-config")
            return _what_may_start(_read_yaml(config)) if config else {"available_node_types": {}, "max_workers": 0}
    if "KUBERNETES_SERVICE_HOST" in os.environ and "RAY_CLUSTER_NAME" in os.environ:
        return _what_may_start(_kuberay(os.environ["RAY_CLUSTER_NAME"]))
    raise LookupError("no autoscaler runs beside it")


def _read_yaml(path: str) -> Any:
    import yaml

    return yaml.safe_load(Path(path).expanduser().read_text())


def _kuberay(cluster: str) -> Any:
    """Return the configuration that KubeRay's autoscaler makes of the cluster's object, read from Kubernetes."""
    from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

    account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return AutoscalingConfigProducer(cluster, account.read_text().strip())()


def _what_may_start(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part that is of use here; the rest holds the names of keys and machines."""
    types = {
        name: {"resources": entry.get("resources"), "max_workers": entry.get("max_workers")}
        for name, entry in tree["available_node_types"].items()
    }
    return {
        "available_node_types": types,
        "head_node_type": tree.get("head_node_type"),
        "max_workers": tree.get("max_workers"),
    }
