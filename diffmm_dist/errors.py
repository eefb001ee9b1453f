"""Errors: what a user can put right, and a run that was asked to stop."""

# What the clients of stores raise where a server is not there or breaks off, each by its own classes.
_NO_ANSWER = {
    "ConnectionError", "TimeoutError", "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError",
    "ConnectionClosedError", "ResponseStreamingError", "ClientConnectionError", "ClientPayloadError",
    "IncompleteReadError", "ServiceRequestError", "ServiceResponseError", "TransportError",
}  # fmt: skip
_NOT_TRUSTED = {"SSLError", "ClientSSLError"}  # which are kinds of the former
_TOO_MANY_REQUESTS, _NOT_IMPLEMENTED = 429, 501
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")


class UserError(ValueError):
    """Something that the user wrote, pointed at or ran into; its text is one sentence: what, where, what to do.

    The command line prints the text and exits with a non-zero status; any other exception is a bug of ours and
    keeps its traceback.
    """


class TryAgainError(UserError):
    """What the program needs has failed or is not there yet; the same command may do better later, as it stands."""


class DamagedError(UserError):
    """A file is not what was written; its text names it and says what to do."""


class StoppedError(Exception):
    """The run was asked to stop and has saved a checkpoint; its text says where."""


class StoppedEarlyError(BaseException):
    """The program was asked to stop at once and has saved nothing more; its text is a sentence.

    It ends whatever the main thread waits for, so like ``KeyboardInterrupt`` it is no ``Exception``.
    """


class TakenOverError(Exception):
    """Another process has taken the run over, so this one has stopped without writing; its text is a sentence."""


class LostWorkerError(RuntimeError):
    """Another worker has died or hangs; its text says where this one waited for it."""


def may_pass(error: BaseException | None) -> bool:
    """Tell whether the same command may do better later as it stands, by the error or what is behind it.

    So it may where a server did not answer, or refused for a reason of its own (HTTP 429 and from 500 on).
    """
    while error is not None:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & _NOT_TRUSTED:
            return False
        status = _http_status(error)
        if status == _TOO_MANY_REQUESTS or (status >= 500 and status != _NOT_IMPLEMENTED):
            return True
        if isinstance(error, TryAgainError) or kinds & _NO_ANSWER:
            return True
        error = error.__cause__
    return False


def _http_status(error: BaseException) -> int:
    """Return the status of the answer that an error of a client's stands for, 0 where there is none."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # of botocore's
        return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    # One after the other: some clients have two of them, and warn of one.
    told = (getattr(place, name, None) for name in ("status", "status_code", "code") for place in (error, answer))
    return next((status for status in told if isinstance(status, int)), 0)


def closest(name: str, choices: list[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the choice nearest to ``name``, or an empty string."""
    from difflib import get_close_matches

    nearest = get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def lacks_memory(error: BaseException) -> bool:
    """Tell whether there was not enough memory, of which torch says so only in the text of a ``RuntimeError``."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )


def is_of_system(error: BaseException) -> bool:
    """Tell what the operating system or the machine refuses from mistakes of this program."""
    return isinstance(error, OSError) or lacks_memory(error)


def system_sentence(error: BaseException) -> str:
    """Return what the operating system refused and what to do about it; a full disk can show anywhere."""
    if lacks_memory(error):
        return "this takes more memory than there is; use smaller data or settings, or a larger machine"
    name = getattr(error, "filename", None)
    where = f"{name}: " if name else ""
    return f"{where}{one_line(error)}; make room or give access, then run the same command again"


def one_line(error: BaseException) -> str:
    """Return an exception's text on one line: the system's reason if it has one, its class name if it has no text."""
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(reason.split()) or type(error).__name__
