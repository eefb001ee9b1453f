"""Parts of the page about one run."""

from collections.abc import Sequence

from diffmm_dist.charts.plots import Bars, Row, bar_chart, row_chart
from diffmm_dist.charts.shapes import MOST_SERIES, Picture
from diffmm_dist.config.render import flatten
from diffmm_dist.data.schema import Split
from diffmm_dist.evaluation.resampling import Interval
from diffmm_dist.report import curves
from diffmm_dist.report.again import command_again
from diffmm_dist.report.graphs import ShownGraph
from diffmm_dist.report.html import (
    Content,
    Html,
    charts,
    code,
    facts,
    folded,
    joined,
    paragraph,
    section,
    table,
    tag,
    tiles,
)
from diffmm_dist.report.measured import Figures, FinishedRun, Measured, Setting
from diffmm_dist.runs.naming import setting_words
from diffmm_dist.runs.protocol import protocol_words
from diffmm_dist.words import shortened

MOST_TAKEN = "most popular items"
_FIRST = ("recall", "ndcg")
_SPLITS: dict[Split, str] = {"train": "Training", "valid": "Validation", "test": "Test"}
_UNKNOWN_MACHINE = (
    "This run folder does not say what it was trained with; runs of later versions do, from their next start on."
)


def stamp(protocol: str) -> Html:
    """Return how the best epoch was chosen, loudly where test figures are none."""
    return paragraph(protocol_words(protocol), kind="stamp" if protocol == "published" else "muted")


def interval_cell(one: Interval) -> Html:
    """Return a figure with its interval below it."""
    return joined(f"{one.mean:.4f}", Html("<br>"), tag("small", f"{one.low:.4f} to {one.high:.4f}"))


def summary(measured: Measured, setting: Setting) -> Html:
    """Return what the run is and has come to, in a few figures."""
    run, split, k = measured.run, setting.split, setting.k
    found = []
    for metric in _FIRST:
        mine = measured.figures.of_split[split][f"{metric}@{k}"]
        base = setting.most_taken.of_split[split][f"{metric}@{k}"]
        times = f"; {mine.mean / base.mean:.2f} times {MOST_TAKEN}" if base.mean else ""
        found.append((f"{split} {metric}@{k}", f"{mine.mean:.4f}", f"{mine.low:.4f} to {mine.high:.4f}{times}"))
    result = run.result
    found.append(("best epoch", f"{result['best_epoch']}", f"of {result['epochs']}, by {_chosen_by(run)}"))
    found.append(("time per epoch", f"{result['seconds_per_epoch']:.2f} s", "median, without checkpoints"))
    found.append(("peak memory", f"{result['peak_rss_gib']:.2f} GiB", "resident, largest worker"))
    return tiles(found)


def _chosen_by(run: FinishedRun) -> str:
    return f"{'test' if run.result['protocol'] == 'published' else 'validation'} {run.config.eval.metric}"


def dataset_words(measured: Measured) -> str:
    """Return the dataset and how large it is."""
    counts = measured.counts
    sizes = [f"{counts[name]:,} {name}" for name in ("users", "items")]
    splits = ", ".join(f"{counts[name]:,} {name}" for name in ("train", "valid", "test"))
    return f"{measured.run.config.data.path}: {', '.join(sizes)}; interactions: {splits}"


def notes(measured: Measured, *, of: str = "") -> Html:
    """Return what is wrong with the run, a line each; ``of`` is its name where there are several."""
    lines = [*measured.disagreements, *measured.run.result.get("notes", [])]
    return joined(*(paragraph(f"{of}: {line}" if of else line, kind="note") for line in lines))


def figures_section(measured: Measured, setting: Setting) -> Html:
    """Return the figures of both splits beside those of one list for all."""
    parts: list[Content] = []
    for split in reversed(list(measured.figures.of_split)):
        first, more = _figure_rows(split, measured.figures, setting.most_taken)
        columns = [split, "this run", MOST_TAKEN]
        rest = folded("precision, hit rate, mrr and coverage", table(columns, more))
        parts.append(tag("div", tag("h3", _SPLITS[split]), table(columns, first), rest))
    return section(
        "Figures",
        paragraph(
            "Means over users, and between what they lie in 95 % of resamples of these users. Beside them one list for "
            "all, the items with the most training interactions, on the same split and with the same items masked."
        ),
        tag("div", *parts, kind="beside"),
    )


def _figure_rows(split: Split, mine: Figures, base: Figures) -> tuple[list[list[Content]], list[list[Content]]]:
    """Return the rows of the metrics that matter most, and those of the others."""
    first: list[list[Content]] = []
    more: list[list[Content]] = []
    for name, one in mine.of_split[split].items():
        row: list[Content] = [name, interval_cell(one), interval_cell(base.of_split[split][name])]
        (first if name.partition("@")[0] in _FIRST else more).append(row)
    for name, value in mine.coverage[split].items():
        more.append([name, f"{value:.4f}", f"{base.coverage[split][name]:.4f}"])
    for rows in (first, more):
        rows.sort(key=lambda row: str(row[0]).partition("@")[0] not in ("recall", "precision"))  # stable
    return first, more


def curves_section(measured: Measured, families: Sequence[curves.Family]) -> Html:
    """Return every recorded value over the epochs, but for what is of the machine."""
    of_training = [one for one in families if not curves.is_of_machine(one.phase) and not curves.is_of_weights(one)]
    lost = measured.run.num_lost
    if not of_training and not lost:
        return Html("")
    drawn, left = curves.pictures(of_training, measured.run.result)
    more = paragraph(f"{left:,} further tags are not drawn; metrics.jsonl has them.") if left else Html("")
    gap = paragraph(f"metrics.jsonl has lost the records of {lost:,} epochs.") if lost else Html("")
    return section("Curves", gap, charts(drawn), more)


def weights_section(measured: Measured, families: Sequence[curves.Family]) -> Html:
    """Return the weights of modalities over the epochs; nothing of a model without them."""
    drawn, _ = curves.pictures([one for one in families if curves.is_of_weights(one)], measured.run.result)
    return section("Modality weights", charts(drawn)) if drawn else Html("")


def graphs_section(measured: Measured) -> Html:
    """Return the generated graphs in numbers, and around one node before and after; nothing of a model without."""
    if not measured.graphs:
        return Html("")
    columns = ["graph", "edges", "real edges", "generated edges that are real", "reached", "reached by real edges"]
    rows = [[one.name or "generated", *_graph_cells(one)] for one in measured.graphs]
    parts: list[Content] = [
        paragraph("As the best epoch was trained with them, before edges are dropped at random."),
        table(columns, rows),
        charts([one.degrees for one in measured.graphs]),
    ]
    drawn = [one for one in measured.graphs if one.before is not None and one.after is not None]
    if drawn:
        real = {one.centre: one.before for one in drawn if one.before is not None}
        afters = [one.after for one in drawn if one.after is not None]
        words = (
            "Blue edges are in both graphs, dashed orange ones are new, and dotted grey ones are not in the generated "
            "graph; a number is the value that an edge was chosen by. "
        )
        parts += [
            tag("h3", f"Before and after: {', '.join(real)}"),
            paragraph(words, "Unless it was asked for, the node has about as many real edges as most."),
            charts([*real.values(), *afters]),
        ]
    return section("Generated graphs", *parts)


def _graph_cells(one: ShownGraph) -> list[Content]:
    found = one.numbers
    share = f"{found.num_known / found.num_edges:.1%}" if found.num_edges else "-"
    what = "items" if one.rows == "users" else "entities"
    return [
        f"{found.num_edges:,}",
        f"{found.num_source:,}",
        f"{found.num_known:,} ({share})",
        f"{found.reached:,} of {found.num_columns:,} {what}",
        f"{found.source_reached:,}",
    ]


def groups_section(named: Sequence[tuple[str, Figures]], setting: Setting) -> Html:
    """Return recall by how active users are, and by how popular items are, of runs and of one list for all."""
    room = MOST_SERIES - 1
    shown = [*named[:room], (MOST_TAKEN, setting.most_taken)]
    return section(
        "For whom, and of what",
        paragraph(
            f"{_SPLITS[setting.split]} recall@{setting.k} of groups of about as many users each, by their training "
            "interactions, with intervals; and of groups of items, by how many users took them in training: the share "
            "of what was to be found of them that stood in lists. The least active users and the least taken items "
            "show what a model makes of little.",
            f" The first {room} of {len(named)} runs are drawn." if len(named) > room else "",
        ),
        charts([_by_activity(shown, setting), _by_taken(shown, setting)]),
    )


def _by_activity(shown: Sequence[tuple[str, Figures]], setting: Setting) -> Picture:
    bars = [
        Bars(name, [one.mean for one in found.by_activity], [(one.low, one.high) for one in found.by_activity])
        for name, found in shown
    ]
    across = "training interactions of a user; below, how many users"
    return bar_chart(f"recall@{setting.k} by how active a user is", setting.users.labels(), bars, across=across)


def _by_taken(shown: Sequence[tuple[str, Figures]], setting: Setting) -> Picture:
    bars = [Bars(name, list(found.by_taken)) for name, found in shown]
    across = "training interactions of an item; below, how many items"
    return bar_chart(f"recall@{setting.k} by how popular an item is", setting.items.labels(), bars, across=across)


def cost_section(measured: Measured, families: Sequence[curves.Family]) -> Html:
    """Return what an epoch takes, by phase, and memory."""
    result = measured.run.result
    rows = [Row(name, seconds, words=f"{seconds:.3g} s") for name, seconds in result["seconds_per_phase"].items()]
    peaks = {
        name: [record.get(f"mem/{name}_gib") for record in measured.run.records] for name in result["seconds_per_phase"]
    }
    known = {name: max(filter(None, values)) for name, values in peaks.items() if any(values)}
    held = [Row(name, peak, words=f"{peak:.3g} GiB") for name, peak in known.items()]
    drawn, _ = curves.pictures([one for one in families if curves.is_of_machine(one.phase)], result)
    words = f"An epoch takes {result['seconds_per_epoch']:.2f} s; the largest worker has {result['peak_rss_gib']:.2f} "
    return section(
        "Time and memory",
        paragraph(words, "GiB at its peak, over all starts of the run. Times are medians over the epochs."),
        charts(
            [
                row_chart(title, bars, across=across)
                for title, bars, across in (
                    ("seconds of an epoch by phase", rows, "seconds"),
                    ("largest resident memory by phase", held, "GiB"),
                )
                if bars
            ]
        ),
        folded("over the epochs", charts(drawn)) if drawn else Html(""),
    )


def origin_section(measured: Measured) -> Html:
    """Return what the run was trained with, and the command that repeats it."""
    run = measured.run
    environment = run.identity.get("environment")
    rows: list[tuple[str, Content]] = [("diffmm_dist at the first start", run.identity["version"])]
    rows += [(name, value) for name, value in (environment or {}).items()]
    rows += [("sparse kernel", run.identity.get("kernel", "none")), ("run folder", run.uri)]
    every = [
        (key, shortened(setting_words({key: value}).partition("=")[2])) for key, value in flatten(run.config).items()
    ]
    return section(
        "Environment, and the command that repeats the run",
        facts(rows),
        Html("") if environment else paragraph(_UNKNOWN_MACHINE),
        code(command_again(run.config, run.uri)),
        folded("all settings", facts(every)),
    )
