"""What others wrote, made fit to be shown: control characters escaped, secrets left out, addresses checked."""

import re
import unicodedata
from urllib.parse import unquote

from diffmm_dist.errors import UserError

_BLANKS = " \t\r\n"
_SIGN = rf"[^{_BLANKS}]"
# A word, or two where a line break has cut a login in two.
_WORD = re.compile(rf"{_SIGN}*//[^{_BLANKS}:@/]+:[{_BLANKS}]+{_SIGN}*@{_SIGN}*|{_SIGN}+")
_KEPT = re.compile(r"[\"'(\[{,]*(?:(?:s3[an]?|https?)://)?", re.IGNORECASE)  # before what is left out
_KEPT_BEHIND = "\"')]},;:."
_BEGINS_ADDRESS = re.compile(r"\s*(?:s3[an]?:|[a-z][\w+.-]*:/)", re.IGNORECASE)
# Where an address may begin, whatever stands before it; a single letter before the colon is a disk of Windows.
_ADDRESS = re.compile(
    r"(?:(?<!\w)s3[an]?(?::/*|//+)|(?<=[\w.+-]{2}):/+)(?:\[[\da-f:.]+\])?(?P<authority>[^/]*)", re.IGNORECASE
)
_END_OF_PLACE = re.compile(r"[?'\"<>|]")
_LOGIN = re.compile(
    r"(?:^|[\\'\"<>|(){}\[\],;=&?#]|[:/]/|(?<!\w)s3[an]?[:/])"
    r"(?P<login>[^\s/\\:@'\"<>|(){}\[\],;=&?#]+:[^/\\].*)",
    re.IGNORECASE | re.DOTALL,
)
_NO_LOGIN = re.compile(  # a time, or a person's address
    r"(?:\d{4}-\d\d-\d\d[T_])?\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?|(?:acct|mailto|sips?|xmpp):[^:]+", re.IGNORECASE
)
_ASSIGNED = re.compile(r"(^|[^\w./-])([\w.-]+)=(?=[^=\s])(?!\*\*\*)")
_SECRET_NAME = re.compile(
    r"secret|passwo?r?d|passphrase|credential|(?:access|account|api|private)[_.-]?key|(?:token|signature)$|"
    r"(?:^|[_.-])(?:pwd|sig)$",
    re.IGNORECASE,
)
_IN_QUERY = re.compile(r"key|sign", re.IGNORECASE)
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
    """Return a text in which words that hold credentials are left out, whatever else is wrong with them.

    A word is what stands between blanks. It holds credentials if one of these is in it once percent encoding is undone
    and letters of other widths are the plain ones:

    * an address with a login before its host, or with a password that is no port;
    * ``USER:PASSWORD@HOST`` without an address, unless it is a time, a disk of Windows, or deeper in a path;
    * a name such as ``password`` or ``sig`` with ``=`` and a value, unless it is a folder of a path.
    """
    return _WORD.sub(_harmless, text)


def _harmless(match: re.Match[str]) -> str:
    word = match[0]
    if not _holds_secret(word):
        return word
    kept = _KEPT.match(word)
    return f"{kept[0] if kept else ''}{_HIDDEN}{word[len(word.rstrip(_KEPT_BEHIND)) :]}"


def _holds_secret(word: str) -> bool:
    text = _plain(word)
    return _has_address_with_login(text) or _has_login(text) or _has_named_secret(text)


def _plain(text: str) -> str:
    """Return a text without percent encoding, however often it was encoded, and in letters of the usual width."""
    for _ in range(8):
        further = unquote(text)
        if not further.isascii():  # one by one, since a row of accents is put in order in the square of its length
            further = "".join(unicodedata.normalize("NFKC", character) for character in further)
        if further == text:
            break
        text = further
    return text


def _has_address_with_login(text: str) -> bool:
    for place in _END_OF_PLACE.split(text):
        last_at = place.rfind("@")
        for match in _ADDRESS.finditer(place):
            authority, start = match["authority"], match.start("authority")
            _, colon, password = authority.partition(":")
            if "@" in authority:
                return True
            is_port = re.match(r"\d{1,5}(?!\w)", password) is not None
            behind = last_at > start or (password and not is_port)  # a password may hold slashes
            if colon and behind and not authority.startswith("arn:"):
                return True
    return False


def _has_login(text: str) -> bool:
    """Tell whether ``USER:PASSWORD`` stands before an ``@``."""
    first, *others = text.split("@")
    logins = map(_LOGIN.search, [first, *(f"@{other}" for other in others)][:-1])
    return any(match is not None and not _NO_LOGIN.fullmatch(match["login"]) for match in logins)


def _has_named_secret(text: str) -> bool:
    for before, name in _ASSIGNED.findall(text):
        if _SECRET_NAME.search(name) or (before in ("?", "&", ";", "#") and _IN_QUERY.search(name)):
            return True
    return False


def refuse_secrets(text: str, *, where: str = "") -> None:
    """Check that a text holds no credentials.

    Args:
        text: anything.
        where: what the text is, for the error, which does not repeat it.

    Raises:
        UserError: it does.
    """
    # An address may have blanks in it, so a text that begins with one is looked at as a whole too.
    if without_secrets(text) != text or (_BEGINS_ADDRESS.match(text) and _holds_secret(text)):
        raise UserError(f"{where}{': ' if where else ''}{_without_them(text)}")


def _without_them(text: str) -> str:
    """Return what to do about a text with credentials, by the kind of address that it is."""
    scheme = text.partition("://")[0].lower()
    if scheme in ("az", "abfs", "abfss"):
        return (
            "what stands before an @ is taken for credentials, which would end up in files and logs; write "
            "az://CONTAINER/PATH and set AZURE_STORAGE_ACCOUNT_NAME"
        )
    place = "in a netrc file"
    if "mlflow" in scheme:  # behind the name of the setting
        place = "as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or as MLFLOW_TRACKING_TOKEN"
    elif scheme not in ("http", "https"):
        place = "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or as an AWS profile"
    return f"this holds credentials, which would end up in files and logs; take them out, and give them {place}"


def check_word(text: str) -> None:
    """Check a word of the command line, or a path or an address from elsewhere, before anything is done with it.

    Raises:
        UserError: it holds credentials, which the error does not repeat, or what no name may hold.
    """
    refuse_secrets(text)
    if "\0" in text or any("\ud800" <= sign < "\udc80" or "\udcff" < sign <= "\udfff" for sign in text):
        raise UserError(f"'{message(text)}' holds a character that no name may hold; write it anew")
