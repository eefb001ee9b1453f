"""Parts of the page about several runs: side by side, and pair by pair."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from diffmm_dist.charts.plots import Curve, Row, line_chart, row_chart
from diffmm_dist.charts.shapes import MOST_SERIES, Picture
from diffmm_dist.evaluation.resampling import Paired, holm, paired
from diffmm_dist.report.html import Content, Html, charts, folded, joined, paragraph, section, table, tag
from diffmm_dist.report.measured import Measured, Setting
from diffmm_dist.report.parts import MOST_TAKEN, interval_cell
from diffmm_dist.runs.naming import differing_settings, setting_words
from diffmm_dist.runs.protocol import SELECTION_SPLIT

_METRICS = ("recall", "ndcg")
_SURE = 0.05
Named = Sequence[tuple[str, Measured]]


def side_by_side(named: Named, setting: Setting) -> Html:
    """Return the figures of all runs, and of one list for all."""
    metrics = [f"{name}@{setting.k}" for name in _METRICS]
    rows: list[list[Content]] = []
    every = [*((name, one.figures) for name, one in named), (MOST_TAKEN, setting.most_taken)]
    for (name, figures), one in zip(every, [*(run for _, run in named), None], strict=True):
        found = figures.of_split[setting.split]
        cells: list[Content] = [interval_cell(found[metric]) for metric in metrics]
        cells.append(f"{figures.coverage[setting.split][f'coverage@{setting.k}']:.4f}")
        rows.append([_label(name, one), *cells, *_costs(one)])
    columns = ["run", *metrics, f"coverage@{setting.k}", "best epoch", "s per epoch", "peak GiB"]
    drawn = []
    for metric in metrics:
        of_runs = [(name, figures.of_split[setting.split][metric]) for name, figures in every]
        row = [Row(name, one.mean, one.low, one.high, f"{one.mean:.4f}") for name, one in of_runs]
        drawn.append(
            row_chart(f"{setting.split} {metric}", row, across="mean, and 95 % of resamples", zero=False, dots=True)
        )
    return section(
        "Side by side",
        paragraph(
            f"Figures on {setting.split} of each run's best epoch: means over users, and between what they lie in 95 % "
            "of resamples of these users. Intervals that overlap do not say that runs are alike: the same users are "
            "compared below."
        ),
        table(columns, rows),
        charts([*drawn, *_learning(named)]),
    )


def _label(name: str, one: Measured | None) -> Content:
    return name if one is None else joined(name, Html("<br>"), tag("small", one.run.uri))


def _costs(one: Measured | None) -> list[Content]:
    if one is None:
        return ["-", "-", "-"]
    result = one.run.result
    return [str(result["best_epoch"]), f"{result['seconds_per_epoch']:.2f}", f"{result['peak_rss_gib']:.2f}"]


def _learning(named: Named) -> list[Picture]:
    """Return what the best epochs were chosen by, over the epochs of all runs that record it."""
    config = named[0][1].run.config
    metric = f"{SELECTION_SPLIT[config.eval.protocol]}/{config.eval.metric}"
    found = []
    for name, one in named:
        stages = one.run.result.get("stages")
        recorded = f"{stages[-1]['name']}/{metric}" if stages else metric  # a stage has figures of its own
        records = [record for record in one.run.records if record.get(recorded) is not None]
        points = [(float(record["epoch"]), float(record[recorded])) for record in records]
        found += [Curve(name, points)] if points else []
    title = metric if len(found) <= MOST_SERIES else f"{metric}, the first {MOST_SERIES} runs"
    return [line_chart(title, found[:MOST_SERIES])] if found else []


def pair_by_pair(named: Named, setting: Setting) -> Html:
    """Return what each pair of runs differs by for the same users, corrected for the number of tests."""
    names, values = [name for name, _ in named], [one.figures.per_user for _, one in named]
    tests: list[Paired] = []
    for place, first in enumerate(values[:-1]):
        tests += paired(np.concatenate([first - second for second in values[place + 1 :]]))
    corrected = iter(holm([one.p for one in tests]))
    rows: list[list[Content]] = []
    for place, (former, latter) in enumerate(combinations(names, 2)):
        cells: list[Content] = []
        for one in tests[2 * place : 2 * place + 2]:
            p = next(corrected)
            cells += [
                joined(f"{one.difference:+.4f}", Html("<br>"), tag("small", f"{one.low:+.4f} to {one.high:+.4f}")),
                tag("b", _p(p)) if p < _SURE else _p(p),
            ]
        rows.append([joined(former, tag("small", " less "), latter), *cells])
    columns = ["pair"]
    for name in _METRICS:
        columns += [f"{name}@{setting.k}", "p, corrected"]
    count = values[0].shape[1]
    return section(
        "Pair by pair, for the same users",
        paragraph(
            f"The mean difference over {count:,} users, between what it lies in 95 % of resamples of them, and the p "
            f"value of Wilcoxon's signed-rank test over these users. The {len(tests)} p values are corrected by Holm's "
            "method for being so many; those below 0.05 are bold. The test ranks differences and is corrected, the "
            "interval is of their mean and is not, so one may find a difference where the other does not. Runs of one "
            "seed say nothing about other seeds."
        ),
        table(columns, rows),
    )


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def differences(named: Named) -> Html:
    """Return the settings in which the runs differ."""
    differing = differing_settings([one.run.config for _, one in named])
    rows: list[list[Content]] = [
        [name, joined(*_lines(settings))] for (name, _), settings in zip(named, differing, strict=True)
    ]
    return folded("the settings in which they differ", table(["run", "settings"], rows))


def _lines(settings: dict[str, object]) -> list[Content]:
    lines: list[Content] = []
    for key, value in settings.items():
        lines += [setting_words({key: value}), Html("<br>")]
    return lines or ["none"]
