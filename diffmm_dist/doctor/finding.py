"""What a check has found, and how all findings are shown."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from diffmm_dist import __version__
from diffmm_dist.errors import UserError, may_pass, one_line
from diffmm_dist.safe_text import message
from diffmm_dist.statuses import DONE, MISTAKE, TRY_AGAIN

Mark = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        name: what was looked at.
        mark: ``FAIL`` for what has to be put right, ``note`` for what is good to know.
        text: a sentence.
        passing: it may be better later without any change, as of a server that does not answer.
    """

    name: str
    mark: Mark
    text: str
    passing: bool = False


Check = Callable[[], Iterable[Finding]]


def found_by(name: str, check: Check) -> Iterator[Finding]:
    """Yield what a check finds; whatever it raises is a finding too.

    Args:
        name: of that finding.
        check: may import what is broken, which can raise anything.
    """
    try:
        yield from check()
    except UserError as error:
        yield Finding(name, "FAIL", one_line(error), may_pass(error))
    except (Exception, SystemExit) as error:
        yield Finding(name, "FAIL", first_line(error))


def first_line(error: BaseException) -> str:
    """Return the kind of an error with the first line of its text; further ones are a traceback or advice to others."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def status_of(findings: Sequence[Finding]) -> int:
    """Return the exit status: something is to be put right, or may pass by itself, or all is well."""
    failed = [finding for finding in findings if finding.mark == "FAIL"]
    if not failed:
        return DONE
    return TRY_AGAIN if all(finding.passing for finding in failed) else MISTAKE


def as_lines(findings: Sequence[Finding]) -> str:
    """Return a line for each finding: mark, name and sentence."""
    width = max(len(finding.name) for finding in findings)
    return "\n".join(f"{finding.mark:<4}  {finding.name:<{width}}  {message(finding.text)}" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """Return the same for programs."""
    checks = [{"name": one.name, "mark": one.mark, "text": message(one.text)} for one in findings]
    return json.dumps({"version": __version__, "status": status_of(findings), "checks": checks}, indent=2)
