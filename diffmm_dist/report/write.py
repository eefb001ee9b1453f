"""The whole page: of one run, or of several side by side."""

from collections.abc import Sequence

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.report import parts, several
from diffmm_dist.report.curves import Family, families
from diffmm_dist.report.html import Content, Html, folded, joined, page, paragraph, tag
from diffmm_dist.report.measured import FinishedRun, Measured, Measuring, Setting, read_finished
from diffmm_dist.runs.naming import run_names

MOST_RUNS = 20


def write_report(paths: Sequence[str], out: str, *, k: int, user: str | None = None) -> int:
    """Write a page about runs, at once; return how many runs it is about.

    Args:
        paths: run folders, each once.
        out: the HTML file.
        k: the cut-off of what is shown in detail; figures are shown at those of every run's ``eval.k`` too.
        user: original id of the user whose neighbourhood is drawn; None takes a typical one.

    Raises:
        UserError: a run is none, has not finished, or cannot be loaded; they are of different datasets or protocols;
            there is no such user; or the file cannot be written.
    """
    places = list(dict.fromkeys(paths))
    if not out.lower().endswith((".html", ".htm")):
        raise UserError(f"--out {out} must end in .html, which is what is written")
    if len(places) > MOST_RUNS:
        raise UserError(f"{len(places)} runs are more than a page has room for; give {MOST_RUNS} at most")
    storage.check_file(out, places)
    runs = [read_finished(place) for place in places]
    _check_comparable(runs)
    measuring = Measuring(k=k, ks=sorted({k}.union(*(run.config.eval.k for run in runs))), user=user)
    measured = [measuring.measure(run) for run in runs]
    assert measuring.setting is not None
    names = run_names([run.config for run in runs], places)
    named = list(zip(names, measured, strict=True))
    text = _of_one(*named[0], measuring.setting) if len(named) == 1 else _of_several(named, measuring.setting)
    storage.write_bytes(out, text.encode())
    return len(named)


def _check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raise a ``UserError`` unless the runs have the same users, items and masks."""
    first = runs[0]
    for run in runs[1:]:
        if run.identity["dataset"] != first.identity["dataset"]:
            raise UserError(
                f"runs {first.uri} and {run.uri} are of different datasets, so their users cannot be compared; report "
                "each by itself"
            )
        if run.result["protocol"] != first.result["protocol"]:
            raise UserError(
                f"runs {first.uri} and {run.uri} are of different protocols, so their test figures cannot be compared; "
                "report each by itself"
            )


def _of_one(name: str, measured: Measured, setting: Setting) -> str:
    found = _families(measured)
    title = f"{name} on {storage.name(measured.run.config.data.path)}"
    return page(
        title,
        tag("h1", title),
        paragraph(parts.dataset_words(measured), kind="muted"),
        parts.stamp(measured.run.result["protocol"]),
        parts.notes(measured),
        parts.summary(measured, setting),
        parts.figures_section(measured, setting),
        parts.groups_section([(name, measured.figures)], setting),
        parts.graphs_section(measured),
        parts.weights_section(measured, found),
        parts.curves_section(measured, found),
        parts.cost_section(measured, found),
        parts.origin_section(measured),
    )


def _of_several(named: several.Named, setting: Setting) -> str:
    first = named[0][1]
    title = f"{len(named)} runs on {storage.name(first.run.config.data.path)}"
    return page(
        title,
        tag("h1", title),
        paragraph(parts.dataset_words(first), kind="muted"),
        parts.stamp(first.run.result["protocol"]),
        *(parts.notes(one, of=name) for name, one in named),
        several.side_by_side(named, setting),
        several.differences(named),
        several.pair_by_pair(named, setting),
        parts.groups_section([(name, one.figures) for name, one in named], setting),
        tag("h2", "Each run"),
        *(_short(name, one, setting) for name, one in named),
    )


def _short(name: str, measured: Measured, setting: Setting) -> Html:
    """Return what is known of one run of several, folded."""
    found = _families(measured)
    content: list[Content] = [
        parts.summary(measured, setting),
        parts.figures_section(measured, setting),
        parts.graphs_section(measured),
        parts.weights_section(measured, found),
        parts.curves_section(measured, found),
        parts.cost_section(measured, found),
        parts.origin_section(measured),
    ]
    return folded(name, joined(*content))


def _families(measured: Measured) -> list[Family]:
    return families(measured.run.records, measured.modalities)
