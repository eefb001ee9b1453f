"""metrics.jsonl: one JSON object per epoch, the same keys as TensorBoard's tags."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from diffmm_dist import json_text
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.monitoring.log import finite, say_json
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.records import RunId, check_seal, sealed, unsealed
from diffmm_dist.regular_files import read_regular

LARGEST_METRICS = 1 << 30  # bytes; an epoch takes about a thousand


def read_jsonl(path: Path, *, run: RunId) -> list[dict[str, Any]]:
    """Return a run's records, without a last line that a killed process left unfinished.

    Raises:
        UserError: a line is no record of this run, not the one that was written, or not in its place.
    """
    records, problems = _read(path, run)
    if problems:
        raise UserError(problems[0])
    return records


def lost_epochs(path: Path, *, run: RunId, before: int) -> list[int]:
    """Return the epochs ``0 .. before - 1`` of which a file has no readable record."""
    kept = {record["epoch"] for record in _read(path, run)[0]}
    return [epoch for epoch in range(before) if epoch not in kept]


def _read(path: Path, run: RunId) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records of the lines that are what was written, and a sentence for every other line."""
    records: list[dict[str, Any]] = []
    problems = []
    lines = read_regular(path, limit=LARGEST_METRICS).split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(line, run, after=records[-1]["epoch"] if records else -1))
        except ValueError as error:
            problems.append(
                f"{path}, line {number} is not the record of an epoch ({one_line(error)}); remove that line"
            )
    return records, problems


def _record(line: bytes, run: RunId, *, after: int) -> dict[str, Any]:
    """Return what a line holds.

    Raises:
        ValueError: it is not the record that the run has written of an epoch behind ``after``.
    """
    content = json_text.parse(line)
    check_seal(content, must_be_sealed=True)
    record = unsealed(content)
    if not isinstance(record, dict) or type(record.get("epoch")) is not int or record["epoch"] < 0:
        raise ValueError("it names none")
    if record.pop("run", None) != run:
        raise ValueError("it belongs to another run")
    if record["epoch"] <= after:
        raise ValueError(f"epoch {record['epoch']} comes behind epoch {after}")
    wrong = [tag for tag, value in record.items() if type(value) not in (int, float, type(None))]
    if wrong:
        raise ValueError(f"'{wrong[0]}' is no number")
    return record


class JsonlRecorder(Recorder):
    """Appends one line per epoch to a file.

    Args:
        path: the file; its folder exists.
        run: the run's id; it stands in every line.
        start_epoch: first epoch that this process will record. Lines of later epochs, which a killed process wrote
            after its last checkpoint, are dropped, so the file holds every epoch once; so are damaged ones, of which
            ``lost_epochs`` tells.
        writer: number of this process among all that have recorded in the file; it stands in every line too.
    """

    def __init__(self, path: Path, *, run: RunId, start_epoch: int = 0, writer: int = 0) -> None:
        self._run = run
        self._writer = writer
        kept = [record for record in _read(path, run)[0] if record["epoch"] < start_epoch]
        partial = path.with_name(path.name + ".partial")
        partial.unlink(missing_ok=True)  # it may be a link
        with partial.open("x", encoding="utf-8") as file:
            file.writelines(self._line(record) for record in kept)
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Append one line; a value that is not finite is written as null."""
        self._file.write(self._line({"epoch": epoch, "writer": self._writer, **finite(values)}))
        self._file.flush()

    def _line(self, record: Mapping[str, Any]) -> str:
        return json.dumps(sealed({"run": self._run, **record}), allow_nan=False) + "\n"

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JsonPrinter(Recorder):
    """Prints a line of JSON per epoch, with the keys of metrics.jsonl.

    Args:
        stream: where.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Print one line."""
        say_json({"epoch": epoch, **values}, file=self._stream)

    def close(self) -> None:
        """Do nothing."""
