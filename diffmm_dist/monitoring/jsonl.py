"""metrics.jsonl: one JSON object per epoch, the same keys as TensorBoard's tags."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffmm_dist import json_text
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.records import check_seal, sealed, unsealed
from diffmm_dist.regular_files import read_regular

LARGEST_METRICS = 1 << 30  # bytes; an epoch takes about a thousand


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without a last line that a killed process left unfinished.

    Raises:
        UserError: a line is no record of an epoch, or not the one that was written.
    """
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(_lines(path), start=1)]


def lost_epochs(path: Path, *, before: int) -> list[int]:
    """Return the epochs ``0 .. before - 1`` of which a file has no readable record."""
    kept = {record["epoch"] for record in _readable(path)}
    return [epoch for epoch in range(before) if epoch not in kept]


def _lines(path: Path) -> list[bytes]:
    return read_regular(path, limit=LARGEST_METRICS).split(b"\n")[:-1] if path.exists() else []


def _readable(path: Path) -> list[dict[str, Any]]:
    """Return the records of the lines that are what was written."""
    records = []
    for line in _lines(path):
        with suppress(UserError):
            records.append(_record(line, str(path)))
    return records


def _record(line: bytes, place: str) -> dict[str, Any]:
    try:
        content = json_text.parse(line)
        check_seal(content)
        record = unsealed(content)
    except ValueError as error:
        raise UserError(f"{place} is not the record of an epoch ({one_line(error)}); remove that line") from error
    if not isinstance(record, dict) or type(record.get("epoch")) is not int or record["epoch"] < 0:
        raise UserError(f"{place} is not the record of an epoch (it names none); remove that line")
    wrong = [tag for tag, value in record.items() if type(value) not in (int, float, type(None))]
    if wrong:
        raise UserError(f"{place} is not the record of an epoch ('{wrong[0]}' is no number); remove that line")
    return record


class JsonlRecorder(Recorder):
    """Appends one line per epoch to a file.

    Args:
        path: the file; its folder exists.
        start_epoch: first epoch that this process will record. Lines of later epochs, which a killed process wrote
            after its last checkpoint, are dropped, so the file holds every epoch once; so are damaged ones, of which
            ``lost_epochs`` tells.
        writer: number of this process among all that have recorded in the file; it stands in every line if given.
    """

    def __init__(self, path: Path, *, start_epoch: int = 0, writer: int | None = None) -> None:
        self._source = {} if writer is None else {"writer": writer}
        kept = [record for record in _readable(path) if record["epoch"] < start_epoch]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(_line(record) for record in kept), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Append one line; a value that is not finite is written as null."""
        finite = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        self._file.write(_line({"epoch": epoch, **self._source, **finite}))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(sealed(record), allow_nan=False) + "\n"
