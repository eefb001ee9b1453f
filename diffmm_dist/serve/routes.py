"""What can be asked: one table for the server, the page and the OpenAPI document."""

from typing import Any, NamedTuple

from pydantic import BaseModel

from diffmm_dist.serve.forms import (
    FoldInAnswer,
    FoldInRequest,
    Health,
    RecommendAnswer,
    RecommendRequest,
    Request,
    RequestError,
    SimilarAnswer,
    SimilarRequest,
)
from diffmm_dist.words import shown

JSON, HTML = "application/json", "text/html; charset=utf-8"


class Route(NamedTuple):
    """A place that answers.

    Attributes:
        method: of HTTP; what answers GET answers HEAD too.
        path: without a query.
        name: the method of ``Answers`` that answers.
        summary: what it answers, as a sentence.
        asks: the form of the body, None where there is none.
        answers: the form of the answer, None where it is none of ours.
        example: a body, in which USER and ITEM stand for ids.
        media: of the answer.
    """

    method: str
    path: str
    name: str
    summary: str
    asks: type[Request] | None = None
    answers: type[BaseModel] | None = None
    example: dict[str, Any] | None = None
    media: str = JSON


ROUTES = (
    Route("GET", "/", "page", "This page.", media=HTML),
    Route("GET", "/healthz", "health", "Which bundle is served.", answers=Health),
    Route("GET", "/openapi.json", "openapi", "The same as an OpenAPI document, for programs."),
    Route("POST", "/recommend", "recommend", "The best items for known users.",
          RecommendRequest, RecommendAnswer, {"users": ["USER"], "k": 3}),
    Route("POST", "/similar", "similar", "The items most similar to items, or the users most similar to users.",
          SimilarRequest, SimilarAnswer, {"items": ["ITEM"], "k": 3}),
    Route("POST", "/fold-in", "fold_in", "The best items for somebody who is only a list of items.",
          FoldInRequest, FoldInAnswer, {"items": ["ITEM", "ITEM"], "k": 3}),
)  # fmt: skip


def find(method: str, path: str) -> Route:
    """Return the route that a request takes.

    Raises:
        RequestError: there is none.
    """
    here = [route for route in ROUTES if route.path == path]
    if not here:
        places = ", ".join(f"{route.method} {route.path}" for route in ROUTES)
        raise RequestError(404, f"there is nothing at {shown(path)}; ask for {places}")
    for route in here:
        if method == route.method or (method, route.method) == ("HEAD", "GET"):
            return route
    raise RequestError(405, f"{path} takes {' and '.join(route.method for route in here)}, not {shown(method)}")
