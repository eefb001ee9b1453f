"""What a request asks of a bundle, and the answer: plain data in and out, without a server.

A further question is one more method of ``Answers`` and one more entry of ``ROUTES``.
"""

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from diffmm_dist.bundles.files import Ints
from diffmm_dist.bundles.ids import Ids
from diffmm_dist.bundles.ranking import Lists
from diffmm_dist.bundles.recommender import Filter, Kind, Recommender
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.serve import pages
from diffmm_dist.serve.forms import (
    FoldInRequest,
    Form,
    RecommendRequest,
    RequestError,
    SimilarRequest,
    one_of,
    read,
)
from diffmm_dist.serve.routes import JSON, ROUTES, find

_ENTRIES = 100_000  # of lists that are held as objects at a time: some 20 MB


class Reply(NamedTuple):
    """What a client gets.

    Attributes:
        status: of HTTP.
        body: the answer.
        media: its type.
    """

    status: int
    body: bytes
    media: str = JSON


class _Asked(NamedTuple):
    place: int
    asked: RecommendRequest
    users: Ints


class Answers:
    """Answers from a bundle.

    Args:
        recommender: of the bundle.
        served: what else ``/healthz`` says of it: model, sha256, since.
    """

    def __init__(self, recommender: Recommender, served: Mapping[str, str]) -> None:
        self._recommender = recommender
        self._served = served
        self._examples = _examples(recommender)

    def reply(self, method: str, path: str, body: bytes = b"", address: str = "") -> Reply:
        """Answer a request; what is wrong with it is one sentence under ``error``.

        Args:
            method: of HTTP.
            path: without a query.
            body: no more than is needed to tell that it is longer than ``LARGEST_BYTES``.
            address: where the server was asked, for the page.
        """
        try:
            route = find(method, path)
            if route.name == "page":
                return Reply(200, self.page(address).encode(), route.media)
            if route.asks is None:
                return Reply(200, _json(getattr(self, route.name)()))
            reply: Reply = getattr(self, route.name)(body)
            return reply
        except RequestError as error:
            return _refused(error)

    def page(self, address: str) -> str:
        """Return the page about the routes."""
        return pages.page(address, f"Recommendations: {self._served['model']}", self._examples)

    def health(self) -> dict[str, Any]:
        """Return that requests are answered, and from which bundle."""
        sizes = {"users": len(self._recommender.users), "items": len(self._recommender.items)}
        return {"status": "ok", "model": self._served["model"], **sizes,
                "sha256": self._served["sha256"], "since": self._served["since"]}  # fmt: skip

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        return pages.openapi(self._examples)

    def recommend(self, body: bytes) -> Reply:
        """Answer a request for the best items of known users."""
        return self.recommend_all([body])[0]

    def recommend_all(self, bodies: Sequence[bytes]) -> list[Reply]:
        """Answer requests for the best items of known users; those that differ in users alone are ranked together.

        Whatever is wrong with one of them is its own answer.
        """
        replies: list[Reply | None] = [None] * len(bodies)
        groups: dict[Hashable, list[_Asked]] = {}
        for place, body in enumerate(bodies):
            try:
                asked = self._read("recommend", body, RecommendRequest)
                rows = _rows(self._recommender.users, asked.users)
            except RequestError as error:
                replies[place] = _refused(error)
                continue
            groups.setdefault(_question(asked), []).append(_Asked(place, asked, rows))
        for group in groups.values():
            for part in _parts(group):
                found = self._recommended(part[0].asked, [one.users for one in part])
                for one, reply in zip(part, found, strict=True):
                    replies[one.place] = reply
        return [reply for reply in replies if reply is not None]

    def similar(self, body: bytes) -> Reply:
        """Answer a request for what is the most similar to items or to users."""
        asked = self._read("similar", body, SimilarRequest)
        kind: Kind = "items" if one_of(asked, "items", "users", self._example("similar")) == "items" else "users"
        ids = self._recommender.ids(kind)
        rows = _rows(ids, asked.items or asked.users or [])
        lists = _listed(ids, self._recommender.similar(kind, rows, asked.k))
        found = [
            {ids.kind: name, kind: of_one, "scores": scores}
            for name, (of_one, scores) in zip(ids.of(rows).to_pylist(), lists, strict=True)
        ]
        return Reply(200, _json({"similar": found}))

    def fold_in(self, body: bytes) -> Reply:
        """Answer a request for the best items of histories."""
        asked = self._read("fold_in", body, FoldInRequest)
        one_of(asked, "histories", "items", self._example("fold_in"))
        histories = [[str(item) for item in one] for one in asked.histories or [asked.items or []]]
        options: dict[str, Any] = {"exclude_seen": not asked.include_seen, "filter": _filter(asked)}
        with _refusing():
            found = self._recommender.fold_in(histories, asked.k, **options)
        lengths = np.isfinite(found.scores).sum(axis=1).tolist()
        lists = [
            {"items": items[:length], "scores": scores[:length]}
            for items, scores, length in zip(found.ids.tolist(), found.scores.tolist(), lengths, strict=True)
        ]
        return Reply(200, _json({"recommendations": lists}))

    def _recommended(self, asked: RecommendRequest, users: Sequence[Ints]) -> list[Reply]:
        """Answer requests that differ in their users alone, given as rows."""
        try:
            with _refusing():
                rule = self._recommender.rule(_filter(asked))
        except RequestError as error:
            return [_refused(error)] * len(users)
        rows = np.concatenate(users)
        lists = self._recommender.lists(rows, asked.k, exclude_seen=not asked.include_seen, rule=rule)
        names = self._recommender.users.of(rows).to_pylist()
        found = [
            {"user": name, "items": items, "scores": scores}
            for name, (items, scores) in zip(names, _listed(self._recommender.items, lists), strict=True)
        ]
        ends = np.cumsum([0, *map(len, users)]).tolist()
        return [Reply(200, _json({"recommendations": found[start:stop]})) for start, stop in pairwise(ends)]

    def _read(self, name: str, body: bytes, kind: type[Form]) -> Form:
        return read(body, kind, self._example(name))

    def _example(self, name: str) -> str:
        return json.dumps(self._examples[name], ensure_ascii=False)


def _question(asked: RecommendRequest) -> Hashable:
    """Return what two requests must have in common to be ranked together: everything but their users."""
    rules = (None if ids is None else tuple(ids) for ids in (asked.allowed, asked.excluded))
    return asked.k, asked.include_seen, *rules


def _parts(group: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    """Yield parts of a group whose lists are few enough to be held at a time; one request is never divided."""
    part: list[_Asked] = []
    entries = 0
    for one in group:
        more = len(one.users) * one.asked.k
        if part and entries + more > _ENTRIES:
            yield part
            part, entries = [], 0
        part.append(one)
        entries += more
    yield part


def _rows(ids: Ids, asked: Sequence[str | int]) -> Ints:
    """Return the row of each id, each once and in the order asked for."""
    with _refusing():
        return ids.rows_once(list(map(str, asked)))


def _filter(asked: RecommendRequest | FoldInRequest) -> Filter | None:
    if asked.allowed is None and asked.excluded is None:
        return None
    allowed, excluded = (None if ids is None else list(map(str, ids)) for ids in (asked.allowed, asked.excluded))
    return Filter(allowed=allowed, excluded=excluded)


def _listed(ids: Ids, lists: Lists) -> Iterator[tuple[list[Any], list[float]]]:
    """Yield the ids and the scores of each list."""
    is_there = lists.rows >= 0
    names, scores = ids.of(lists.rows[is_there]).to_pylist(), lists.scores[is_there].tolist()
    ends = np.cumsum([0, *is_there.sum(axis=1)]).tolist()
    for start, stop in pairwise(ends):
        yield names[start:stop], scores[start:stop]


def _examples(recommender: Recommender) -> dict[str, dict[str, Any]]:
    """Return a body for each route that takes one, with ids that the bundle has."""
    first = {
        word: [value.as_py() for value in ids.values[:2]]
        for word, ids in (("USER", recommender.users), ("ITEM", recommender.items))
    }

    def filled(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [name for word in dict.fromkeys(value) for name in first[word][: value.count(word)]]

    return {
        route.name: {key: filled(value) for key, value in route.example.items()}
        for route in ROUTES
        if route.example is not None
    }


@contextmanager
def _refusing() -> Iterator[None]:
    """Make of what the bundle cannot answer a mistake of the client's."""
    try:
        yield
    except UserError as error:
        raise RequestError(422, one_line(error)) from error


def _refused(error: RequestError) -> Reply:
    return Reply(error.status, _json({"error": str(error)}))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
