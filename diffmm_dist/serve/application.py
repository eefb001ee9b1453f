"""The application of Ray Serve: ``diffmm_dist.serve.application:app`` with the argument ``bundle``.

    serve run diffmm_dist.serve.application:app bundle=bundles/tiktok

listens on 127.0.0.1; who may reach it otherwise is said to Ray Serve (cluster/kuberay/rayservice.yaml).
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from diffmm_dist.errors import UserError
from diffmm_dist.export.bundle import read_bundle
from diffmm_dist.serve.answers import LARGEST_BYTES, Answers, RequestError


class Recommendations:
    """A replica with a bundle in its memory.

    Args:
        bundle: a path or an address.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, bundle: str) -> None:
        self._answers = Answers(read_bundle(bundle))

    async def __call__(self, request: Request) -> Response:
        """Answer a request of HTTP; what is wrong with it is one sentence under ``error``."""
        try:
            body = await _body(request)
            path = request.url.path.removeprefix(request.scope.get("root_path", ""))
            answer = await asyncio.to_thread(self._answers.answer, request.method, path, body)
            status = 200
        except RequestError as error:
            answer, status = {"error": str(error)}, error.status
        return Response(json.dumps(answer, ensure_ascii=False), status, media_type="application/json")

    def check_health(self) -> None:
        """Tell Ray Serve that requests are answered; it asks every few seconds."""
        self._answers.health()


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
        args: ``bundle``, where it is.

    Raises:
        UserError: other arguments are given.
    """
    if set(args) != {"bundle"} or not isinstance(args["bundle"], str):
        raise UserError(f"the application takes bundle=PLACE alone, not {', '.join(map(str, args)) or 'nothing'}")
    return serve.deployment(Recommendations).bind(args["bundle"])
