"""What requests and answers hold: the one form that checks, the page about them and the OpenAPI document share.

What a field must be is said once, as its description: in the sentence about a wrong request as in the documents.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from diffmm_dist.errors import UserError, closest, one_line
from diffmm_dist.json_text import parse
from diffmm_dist.safe_text import visible
from diffmm_dist.words import shown

MOST_USERS = 1000
MOST_ITEMS = 1000
MOST_RULED = 10_000
LARGEST_BYTES = 1 << 20
_IDS = "a list of ids, which are text or whole numbers"


class RequestError(UserError):
    """What a client has to put right, as one sentence.

    Args:
        status: of HTTP.
        text: the sentence.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


Id = StrictStr | StrictInt
Users = Annotated[list[Id], Field(description=_IDS, min_length=1, max_length=MOST_USERS)]
Items = Annotated[list[Id], Field(description=_IDS, min_length=1, max_length=MOST_ITEMS)]
Histories = Annotated[
    list[Annotated[list[Id], Field(min_length=1, max_length=MOST_ITEMS)]],
    Field(
        description=f"a list of histories, each {_IDS}, from 1 to {MOST_ITEMS:,} of them",
        min_length=1,
        max_length=MOST_USERS,
    ),
]
Allowed = Annotated[
    list[Id] | None, Field(description=f"{_IDS}, the only items to list", min_length=1, max_length=MOST_RULED)
]
Excluded = Annotated[list[Id] | None, Field(description=f"{_IDS}, items not to list", max_length=MOST_RULED)]
Length = Annotated[int, Field(description=f"a whole number from 1 to {MOST_ITEMS:,}", ge=1, le=MOST_ITEMS)]
Flag = Annotated[bool, Field(description="true or false")]


class Request(BaseModel):
    """What a body holds, and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendRequest(Request):
    """Known users, and what may be recommended to them; what they have seen is left out unless include_seen is true."""

    users: Users
    k: Length = 20
    include_seen: Flag = False
    allowed: Allowed = None
    excluded: Excluded = None


class SimilarRequest(Request):
    """Either items or users, to each of which the most similar are listed."""

    items: Items | None = None
    users: Users | None = None
    k: Length = 20


class FoldInRequest(Request):
    """Somebody who is only a list of items, or several such histories."""

    items: Items | None = None
    histories: Histories | None = None
    k: Length = 20
    include_seen: Flag = False
    allowed: Allowed = None
    excluded: Excluded = None


class OfUser(BaseModel):
    """The best items of a user, the best first; fewer than k where there are no more."""

    user: str | int
    items: list[str | int]
    scores: list[float]


class OfHistory(BaseModel):
    """The best items of a history."""

    items: list[str | int]
    scores: list[float]


class LikeItem(BaseModel):
    """The items most similar to an item."""

    item: str | int
    items: list[str | int]
    scores: list[float]


class LikeUser(BaseModel):
    """The users most similar to a user."""

    user: str | int
    users: list[str | int]
    scores: list[float]


class RecommendAnswer(BaseModel):
    """An entry for each user, in the order asked for, one that is named twice once."""

    recommendations: list[OfUser]


class SimilarAnswer(BaseModel):
    """An entry for each item or user, in the order asked for, one that is named twice once."""

    similar: list[LikeItem | LikeUser]


class FoldInAnswer(BaseModel):
    """An entry for each history, in the order asked for."""

    recommendations: list[OfHistory]


class Health(BaseModel):
    """That requests are answered, and from which bundle."""

    status: str = "ok"
    model: Annotated[str, Field(description="its model")]
    users: int
    items: int
    sha256: Annotated[str, Field(description="of its bundle.json")]
    since: Annotated[str, Field(description="when this replica began to serve it, in UTC")]


class Mistake(BaseModel):
    """What is wrong, and what to do."""

    error: Annotated[str, Field(description="one sentence")]


Form = TypeVar("Form", bound=Request)


def read(body: bytes, kind: type[Form], example: str) -> Form:
    """Return what a body asks.

    Args:
        body: JSON.
        kind: the form that it must have.
        example: a body of this form, for errors.

    Raises:
        RequestError: it is too long, no JSON, or of another form.
    """
    if len(body) > LARGEST_BYTES:
        raise RequestError(413, f"the body has more than {LARGEST_BYTES >> 20} MiB; ask for less at a time")
    try:
        asked = parse(body)
    except ValueError as error:
        reason = visible(one_line(error))
        raise RequestError(400, f"the body is not JSON that can be read ({reason}); send {example}") from error
    if not isinstance(asked, dict):
        raise RequestError(400, f"the body is no JSON object; send {example}")
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        raise RequestError(422, _mistake(error, asked, kind, example)) from error


def one_of(asked: Request, first: str, second: str, example: str) -> str:
    """Return which of two fields a request sets.

    Raises:
        RequestError: it sets none of them, or both.
    """
    given = [name for name in (first, second) if getattr(asked, name) is not None]
    if len(given) != 1:
        raise RequestError(422, f"give {first} or {second}, one of the two; send {example}")
    return given[0]


def _mistake(error: ValidationError, asked: dict[str, Any], kind: type[Request], example: str) -> str:
    """Return the first thing that is wrong, as a sentence."""
    fields = kind.model_fields
    for key in asked:
        if key not in fields:
            return f"there is no {shown(key)}, only {', '.join(fields)}{closest(key, list(fields))}"
    name = str(error.errors(include_url=False, include_input=False, include_context=False)[0]["loc"][0])
    given, schema = asked.get(name), kind.model_json_schema()["properties"][name]
    most = next((part["maxItems"] for part in (schema, *schema.get("anyOf", ())) if "maxItems" in part), None)
    if isinstance(given, list) and most is not None and len(given) > most:
        return f"{name} names {len(given):,} {name}; ask for at most {most:,} at a time"
    described = schema.get("description") or next(
        part["description"] for part in schema.get("anyOf", ()) if "description" in part
    )
    return f"{name} must be {described}; send {example}"
