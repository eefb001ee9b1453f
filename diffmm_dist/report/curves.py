"""The records of a run as curves: by phase, and within it by what they measure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffmm_dist.charts.plots import Curve, line_chart
from diffmm_dist.charts.shapes import MOST_SERIES, Picture
from diffmm_dist.runs.run_records import Result

_WEIGHT = "weight"  # what the tags of modalities' weights begin with: <phase>/weight_<modality>
_OF_MACHINE = ("time", "mem", "throughput", "comm", "storage")
_NO_PHASE = ("epoch", "writer", "stage")
_MOST_CHARTS = 60
Points = list[tuple[float, float]]
Records = Sequence[Mapping[str, Any]]


class Family(NamedTuple):
    """Curves that belong into one chart, such as a loss of every modality, or a metric at every cut-off.

    Attributes:
        phase: what their tags begin with.
        metric: what they measure.
        curves: by what tells them apart.
    """

    phase: str
    metric: str
    curves: dict[str, Points]


def families(records: Records, modalities: Sequence[str]) -> list[Family]:
    """Return all recorded tags as families, those of the selecting split first, and of the machine last."""
    found: dict[tuple[str, str], dict[str, Points]] = {}
    for tag, points in _points(records).items():
        phase, _, metric = tag.rpartition("/")
        name, label = _split(metric, modalities)
        found.setdefault((phase, name), {})[label] = points
    every = [Family(*key, curves) for key, curves in found.items()]
    return sorted(every, key=lambda one: _order(one.phase))


def _points(records: Records) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for record in records:
        for tag, value in record.items():
            if tag not in _NO_PHASE and value is not None:
                found.setdefault(tag, []).append((float(record["epoch"]), float(value)))
    return found


def _split(metric: str, modalities: Sequence[str]) -> tuple[str, str]:
    """Return what a tag measures, and which of several such tags it is."""
    name, at, cutoff = metric.partition("@")
    if at:
        return name, f"@{cutoff}"
    if metric.startswith(f"{_WEIGHT}_"):
        return _WEIGHT, metric.removeprefix(f"{_WEIGHT}_")
    for modality in modalities:
        if metric.endswith(f"_{modality}"):
            return metric.removesuffix(f"_{modality}"), modality
    return metric, ""


def _order(phase: str) -> int:
    return 0 if is_of_evaluation(phase) else 2 if is_of_machine(phase) else 1


def is_of_evaluation(phase: str) -> bool:
    """Return whether tags are figures of a split."""
    return phase.rpartition("/")[2] in ("valid", "test")


def is_of_machine(phase: str) -> bool:
    """Return whether tags are times, memory, or what was sent."""
    return phase in _OF_MACHINE


def is_of_weights(family: Family) -> bool:
    """Return whether a family is the weights of modalities."""
    return family.metric == _WEIGHT


def pictures(chosen: Sequence[Family], result: Result) -> tuple[list[Picture], int]:
    """Return a chart for each family, and how many tags are not drawn because there are too many.

    Args:
        chosen: the families.
        result: of the run; it has the best epochs, which are marked in charts of figures.
    """
    shown = chosen[:_MOST_CHARTS]
    left = sum(len(one.curves) for one in chosen[_MOST_CHARTS:])
    left += sum(max(0, len(one.curves) - MOST_SERIES) for one in shown)
    return [_picture(one, result) for one in shown], left


def _picture(family: Family, result: Result) -> Picture:
    curves = [Curve(name, points) for name, points in family.curves.items()]
    label = next(iter(family.curves)) if len(family.curves) == 1 else ""
    title = f"{family.phase} / {family.metric.replace('_', ' ')}{' ' if label and label[0] != '@' else ''}{label}"
    return line_chart(title, curves, mark=_best(family.phase, result), zero=is_of_weights(family))


def _best(phase: str, result: Result) -> float | None:
    """Return the best epoch of the stage that a phase of figures belongs to."""
    if not is_of_evaluation(phase):
        return None
    stage = phase.rpartition("/")[0]
    stages = {one["name"]: one["best_epoch"] for one in result.get("stages", [])}
    return stages.get(stage, result["best_epoch"])
