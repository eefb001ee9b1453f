"""What a request asks of a bundle, and the answer: plain data in and out, without a server.

A further question is one more method of ``Answers`` and one more entry of ``ROUTES``.
"""

from collections.abc import Mapping
from typing import Any

from diffmm_dist.errors import UserError, closest, one_line
from diffmm_dist.export.bundle import Bundle
from diffmm_dist.export.recommend import recommend, user_rows_of
from diffmm_dist.json_text import parse
from diffmm_dist.safe_text import visible
from diffmm_dist.words import shown

MOST_USERS = 1000
MOST_ITEMS = 1000
LARGEST_BYTES = 1 << 20
_FORM = '{"users": ["ID", ...], "k": 20}'
_KEYS = ("users", "k", "include_seen")


class RequestError(UserError):
    """What a client has to put right, as one sentence.

    Args:
        status: of HTTP.
        text: the sentence.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Answers:
    """Answers from a bundle in memory.

    Args:
        bundle: the bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        """Return what is asked for, as JSON holds it.

        Args:
            method: of HTTP.
            path: without a query.
            body: at most ``LARGEST_BYTES``.

        Raises:
            RequestError: it asks for nothing that is here, or cannot be read.
        """
        try:
            of_path = ROUTES[path]
        except KeyError as error:
            places = ", ".join(f"{verb} {place}" for place, verbs in ROUTES.items() for verb in verbs)
            raise RequestError(404, f"there is nothing at {shown(path)}; ask for {places}") from error
        if method not in of_path:
            raise RequestError(405, f"{path} takes {' and '.join(of_path)}, not {shown(method)}")
        answered: dict[str, Any] = getattr(self, of_path[method])(body)
        return answered

    def health(self, body: bytes = b"") -> dict[str, Any]:
        """Return that requests are answered, and of how many users and items."""
        return {"status": "ok", "users": len(self._bundle.user_ids), "items": len(self._bundle.item_ids)}

    def recommend(self, body: bytes) -> dict[str, Any]:
        """Return the best items of each user that the body names, in original ids, best first.

        Raises:
            RequestError: the body cannot be read, or the bundle does not have a user.
        """
        asked = _read(body)
        users, k, include_seen = _users(asked), _count(asked, "k", 20), _flag(asked, "include_seen")
        try:
            rows = user_rows_of(self._bundle, users)
        except UserError as error:
            raise RequestError(422, one_line(error)) from error
        ids = self._bundle.user_ids.take(rows.numpy()).to_pylist()
        found: dict[Any, dict[str, Any]] = {user: {"user": user, "items": [], "scores": []} for user in ids}
        for table in recommend(self._bundle, rows, k=k, include_seen=include_seen):
            for row in table.to_pylist():
                found[row["user"]]["items"].append(row["item"])
                found[row["user"]]["scores"].append(row["score"])
        return {"recommendations": list(found.values())}


ROUTES: Mapping[str, Mapping[str, str]] = {"/healthz": {"GET": "health"}, "/recommend": {"POST": "recommend"}}


def _read(body: bytes) -> dict[str, Any]:
    if len(body) > LARGEST_BYTES:
        raise RequestError(413, f"the body has more than {LARGEST_BYTES >> 20} MiB; ask for fewer users at a time")
    try:
        asked = parse(body)
    except ValueError as error:
        raise RequestError(
            400, f"the body is not JSON that can be read ({visible(one_line(error))}); send {_FORM}"
        ) from error
    if not isinstance(asked, dict):
        raise RequestError(400, f"the body is no JSON object; send {_FORM}")
    for key in asked:
        if key not in _KEYS:
            raise RequestError(422, f"there is no {shown(key)}, only {', '.join(_KEYS)}{closest(key, list(_KEYS))}")
    return asked


def _users(asked: Mapping[str, Any]) -> list[str]:
    users = asked.get("users")
    if not isinstance(users, list) or not users or not all(_is_id(user) for user in users):
        raise RequestError(422, f"users must be a list of ids, which are text or whole numbers; send {_FORM}")
    if len(users) > MOST_USERS:
        raise RequestError(422, f"users names {len(users):,} users; ask for at most {MOST_USERS:,} at a time")
    return [str(user) for user in users]


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)  # halves of characters are no text
    return isinstance(value, int) and not isinstance(value, bool)


def _count(asked: Mapping[str, Any], key: str, default: int) -> int:
    value = asked.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_ITEMS:
        raise RequestError(422, f"{key} must be a whole number from 1 to {MOST_ITEMS:,}")
    return value


def _flag(asked: Mapping[str, Any], key: str) -> bool:
    value = asked.get(key, False)
    if not isinstance(value, bool):
        raise RequestError(422, f"{key} must be true or false")
    return value
