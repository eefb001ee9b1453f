"""The application of Ray Serve: ``diffmm_dist.serve.application:app`` with the arguments ``bundle`` and ``reload_s``.

    serve run diffmm_dist.serve.application:app bundle=/srv/bundles/tiktok

listens on 127.0.0.1; who may reach it otherwise is said to Ray Serve (cluster/kuberay/rayservice.yaml).
"""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from ray import serve
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.log import logger, set_up_logging
from diffmm_dist.serve.answers import Reply
from diffmm_dist.serve.forms import LARGEST_BYTES
from diffmm_dist.serve.pages import PAGE_HEADERS
from diffmm_dist.serve.routes import HTML
from diffmm_dist.serve.watch import Watched

RELOAD_S = 10.0
AT_A_TIME = 64  # requests that a replica has in hand; others wait before it
_BATCH = 32
_WAIT_S = 0.002  # how long a request waits for others to be ranked with
_CLOSED = 499


class Recommendations:
    """A replica with a bundle, which is mapped where it lies on a local disk and in memory otherwise.

    Args:
        bundle: a path or an address.
        reload_s: how often to look whether it was exported anew.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, bundle: str, reload_s: float = RELOAD_S) -> None:
        set_up_logging()
        self._watched = Watched(bundle)
        self._ended = threading.Event()
        threading.Thread(target=self._watch, args=(reload_s,), daemon=True).start()

    async def __call__(self, request: Request) -> Response:
        """Answer a request of HTTP."""
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=_CLOSED)
        if (request.method, path) == ("POST", "/recommend"):
            reply = await self._recommend(body)
        else:
            address = str(request.base_url).rstrip("/")
            reply = await asyncio.to_thread(self._watched.answers.reply, request.method, path, body, address)
        headers = PAGE_HEADERS if reply.media == HTML else {}
        content = b"" if request.method == "HEAD" else reply.body
        return Response(content, reply.status, headers, reply.media)

    @serve.batch(max_batch_size=_BATCH, batch_wait_timeout_s=_WAIT_S)  # type: ignore[untyped-decorator]
    async def _recommend(self, bodies: list[bytes]) -> list[Reply]:
        return await asyncio.to_thread(self._watched.answers.recommend_all, bodies)

    def check_health(self) -> None:
        """Tell Ray Serve that requests are answered; it asks every few seconds."""
        self._watched.answers.health()

    def __del__(self) -> None:
        if hasattr(self, "_ended"):
            self._ended.set()

    def _watch(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            try:
                self._watched.look()
            except Exception:  # whatever it is, requests are answered and the next look may do better
                logger.exception("looking for a new bundle has failed")


async def _body(request: Request) -> bytes:
    """Return the body, or its beginning where it is too long; the rest is not read."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > LARGEST_BYTES:
            break
    return b"".join(parts)


def app(args: Mapping[str, Any]) -> Any:
    """Return the application, as Ray Serve's ``import_path`` wants it.

    Args:
        args: ``bundle``, where it is, and if need be ``reload_s``.

    Raises:
        UserError: other arguments are given, or other values.
    """
    if not {"bundle"} <= set(args) <= {"bundle", "reload_s"} or not isinstance(args["bundle"], str):
        given = ", ".join(map(str, args)) or "nothing"
        raise UserError(f"the application takes bundle=PLACE and reload_s=SECONDS, not {given}")
    return deployed().bind(args["bundle"], _seconds(args.get("reload_s", RELOAD_S)))


def deployed() -> Any:
    """Return the deployment, of which options such as the number of replicas can be set."""
    return serve.deployment(Recommendations, max_ongoing_requests=AT_A_TIME)


def _seconds(value: Any) -> float:
    """Return seconds, which are a text where they stand on the command line of Ray Serve."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0.1 <= seconds <= 1e6:
        raise UserError(f"reload_s={value} must be a number of seconds from 0.1 on")
    return seconds
