"""What others wrote, made fit to be shown: control characters escaped, secrets left out, addresses checked."""

import re
from urllib.parse import unquote

from diffmm_dist.errors import UserError

_START = re.compile(r"(?P<scheme>s3[an]?(?=:)|[A-Za-z][\w+.-]*(?=:/)):/*", re.IGNORECASE)
_SIGN = r"[^\s'\"<>|]"
_FOLDED = rf"(?:[^\s'\"<>|:@/]+:\s+{_SIGN}*@)?"  # a login that a line break has cut in two
_ADDRESS = re.compile(rf"(?<![\w+.-])(?P<start>{_START.pattern})(?P<rest>{_FOLDED}{_SIGN}+)", re.IGNORECASE)
_SIGNED = re.compile(r"(key|sign|token|secret|credential|password)[\w-]*=", re.IGNORECASE)
_HIDDEN = "***"


def visible(text: str) -> str:
    r"""Return a text in which every character that would not be seen as itself stands as an escape, such as ``\x1b``.

    That is what a terminal obeys, what turns the direction of writing around, line breaks, and the bytes of a file name
    that are no text.
    """
    return text if text.isprintable() else "".join(_seen(character) for character in text)


def _seen(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


LONGEST_MESSAGE = 4_000


def message(text: str) -> str:
    """Return a text that is fit for a terminal or a log, whoever wrote the names and values in it: one line."""
    text = visible(without_secrets(text))
    if len(text) <= LONGEST_MESSAGE:
        return text
    kept = LONGEST_MESSAGE // 2
    return f"{text[:kept]} ... ({len(text) - 2 * kept:,} characters left out) ... {text[-kept:]}"


def without_secrets(text: str) -> str:
    """Return a text in which addresses that hold credentials are left out, whatever else is wrong with them."""
    return _ADDRESS.sub(_harmless, text) if ":" in text else text


def _harmless(match: re.Match[str]) -> str:
    return match["start"] + _HIDDEN if _holds_secret(match["rest"]) else match[0]


def _holds_secret(rest: str) -> bool:
    """Tell whether what follows the scheme holds credentials: ``USER:PASSWORD@``, also encoded, or a signed query."""
    place, _, query = _decoded(rest).partition("?")
    authority = place.split("/")[0]
    _, colon, password = authority.partition(":")
    is_port = re.match(r"\d{1,5}(?!\w)", password) is not None
    is_login = "@" in authority
    if colon and not authority.startswith("arn:"):
        is_login = "@" in place or (password != "" and not is_port)  # a password may hold slashes
    return is_login or _SIGNED.search(query) is not None


def _decoded(text: str) -> str:
    """Return a text without percent encoding, however often it was encoded."""
    for _ in range(8):
        further = unquote(text)
        if further == text:
            break
        text = further
    return text


def refuse_secrets(text: str, *, where: str = "") -> None:
    """Check that no address in a text holds credentials.

    Args:
        text: anything.
        where: what the text is, for the error, which does not repeat it.

    Raises:
        UserError: one does.
    """
    start = _START.match(text)
    if without_secrets(text) != text or (start is not None and _holds_secret(text[start.end() :])):
        raise UserError(
            f"{where}{': ' if where else ''}an address holds credentials, which would end up in files and logs; take "
            "them out, and give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or as an AWS profile"
        )


def check_word(text: str) -> None:
    """Check a word of the command line, or a path or an address from elsewhere, before anything is done with it.

    Raises:
        UserError: it holds credentials, which the error does not repeat, or what no name may hold.
    """
    refuse_secrets(text)
    if "\0" in text or any("\ud800" <= sign < "\udc80" or "\udcff" < sign <= "\udfff" for sign in text):
        raise UserError(f"'{message(text)}' holds a character that no name may hold; write it anew")
