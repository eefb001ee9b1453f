"""The log: plain lines on standard error, and tables on standard output."""

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from diffmm_dist.safe_text import message

logger = logging.getLogger("diffmm_dist")


def set_up_logging(*, quiet: bool = False) -> None:
    """Send the log to standard error: a bare line each, coloured on a terminal.

    Args:
        quiet: warnings alone.
    """
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_time=False, show_level=False, show_path=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_fit)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def is_quiet() -> bool:
    """Return whether the log has warnings alone."""
    return not logger.isEnabledFor(logging.INFO)


def _fit(record: logging.LogRecord) -> bool:
    """Make a record's text fit to be shown."""
    record.msg, record.args = message(record.getMessage()), None
    return True


def say(text: str, *, end: str = "\n") -> None:
    """Print lines on standard output, each fit to be shown."""
    print("\n".join(message(line) for line in text.split("\n")), end=end)


def say_json(value: Any, *, file: IO[str] | None = None) -> None:
    """Print a value as a line of JSON, in which what no number is stands as null.

    Args:
        value: maps with names for keys, lists, texts, numbers, null.
        file: in place of standard output.
    """
    print(json.dumps(finite(value), allow_nan=False), file=file, flush=True)


def finite(value: Any) -> Any:
    """Return a value in which null stands for numbers that JSON has not."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def error_console() -> Console:
    """Return the console of standard error; the log's own, so that what is drawn there and its lines do not cross."""
    for handler in logger.handlers:
        if isinstance(handler, RichHandler):
            return handler.console
    return Console(stderr=True, soft_wrap=not sys.stderr.isatty())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output, the first column to the left and the others to the right."""
    if title:
        say(title)
    table = Table(show_header=any(columns), box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(message(column)), justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(message(cell)) for cell in row))  # Text: what users name their things is no markup
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def metric_cells(metrics: Mapping[str, float], names: Sequence[str]) -> list[str]:
    """Return metrics as table cells, a dash where one was not measured."""
    return [f"{metrics[name]:.4f}" if name in metrics else "-" for name in names]


def metric_rows(label: str, metrics: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Return the names of metrics such as ``recall@20``, and for each cut-off a row of their values with a label."""
    pairs = [name.split("@") for name in metrics]
    names = list(dict.fromkeys(name for name, _ in pairs))
    cutoffs = sorted({int(cutoff) for _, cutoff in pairs})
    rows = [[f"{label}@{k}", *metric_cells(metrics, [f"{name}@{k}" for name in names])] for k in cutoffs]
    return names, rows
