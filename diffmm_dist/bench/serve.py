"""A server on loopback and clients beside it: requests per second, and how long each waits for its answer."""

import json
import multiprocessing
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from diffmm_dist import storage
from diffmm_dist.bench.load import Load, load
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.processes import descendants
from diffmm_dist.bundles.bundle import Bundle, read_bundle
from diffmm_dist.serve.server import serving

K = 20
_HOST = "127.0.0.1"
_DRAWN = 4096  # requests, which are repeated where the time is longer
_WARM_S = 3.0
_REPLICA = "ray::ServeReplica"


def bench_serve(
    bundle: str, *, replicas: Sequence[int], clients: int, seconds: float, seed: int, out: str
) -> dict[str, Any]:
    """Ask for the recommendations of known users, drawn at random, one in a request; write a JSON file and return it.

    Args:
        bundle: a path or an address.
        replicas: numbers of replicas, one server after the other.
        clients: connections, each of which has one request under way.
        seconds: for which requests count, after some to warm up.
        seed: of the users that are drawn.
        out: the JSON file.

    Raises:
        UserError: the bundle cannot be read, or the server does not start.
    """
    source = read_bundle(bundle)
    bodies = _bodies(source, seed)
    measured = {}
    for count in replicas:
        port = _free_port()
        with (
            serving(bundle, host=_HOST, port=port, replicas=count, reload_s=10.0),
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        ):
            options: dict[str, Any] = {"clients": clients, "warm_s": _WARM_S, "for_s": seconds}
            found = pool.submit(load, _HOST, port, "/recommend", bodies, **options).result()
            measured[str(count)] = {**_described(found), "memory": _memory()}
    sizes = {"users": len(source.user_ids), "items": len(source.item_ids), "width": source.item_rows.width}
    document = {
        "command": command(),
        "machine": machine(),
        "bundle": {"model": source.marker["model"], **sizes},
        "clients": clients,
        "seconds": seconds,
        "k": K,
        "seed": seed,
        "serving": measured,
    }
    storage.write_json(out, document)
    return document


def _bodies(bundle: Bundle, seed: int) -> list[bytes]:
    rows = np.random.default_rng(seed).integers(len(bundle.user_ids), size=_DRAWN)
    return [json.dumps({"users": [user], "k": K}).encode() for user in bundle.user_ids.take(rows).to_pylist()]


def _described(found: Load) -> dict[str, float]:
    latencies = np.percentile(found.seconds or [np.nan], (50, 90, 99)) * 1e3
    figures = {f"p{share}_ms": float(value) for share, value in zip((50, 90, 99), latencies, strict=True)}
    count = len(found.seconds)
    return {"requests": count, "errors": found.errors, "requests_per_s": count / found.elapsed, **figures}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _memory() -> list[dict[str, float]]:
    """Return what each replica has in memory, MiB: all of it, and its share where pages are shared; Linux says so."""
    found = []
    for pid in sorted(descendants(os.getpid())):
        try:
            if not Path(f"/proc/{pid}/cmdline").read_text().startswith(_REPLICA):
                continue
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Rss:", "Pss:"))}
        found.append({"resident_mib": kib["Rss"] / 1024, "share_mib": kib["Pss"] / 1024})
    return found
