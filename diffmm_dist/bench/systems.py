"""Every system that was trained on each data set, side by side, and the page that has these tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

from diffmm_dist import storage
from diffmm_dist.bench.documents import TrainingBenchmark
from diffmm_dist.bench.report import complete, labelled, table
from diffmm_dist.errors import UserError

START, END = "<!-- systems -->", "<!-- /systems -->"
_METRICS = ("recall@20", "ndcg@20")
_REMEDY = "give files written by bench train"
_TITLES = {"tiktok": "TikTok", "lastfm": "Last.FM", "ml100k": "MovieLens-100k"}  # others are called as their folder


@dataclass(frozen=True)
class _Row:
    """A system on a data set: a model, or a stage of one.

    Attributes:
        file: where its figures are from.
        data: the name of the data set's folder.
        system: the model, with its stage and the settings in which systems of one model differ.
        protocol: what its best epochs were chosen by.
        threads: how many it was trained with.
        runs: for each seed its figures on test, its times and its memory.
    """

    file: str
    data: str
    system: str
    protocol: str
    threads: int
    runs: Sequence[Mapping[str, Any]]


def tables(files: Sequence[str], *, num_seeds: int) -> str:
    """Return a markdown table for each data set, a row per system, the best one by test recall@20 first.

    Seconds and products per epoch are medians over the seeds, memory is the most of any seed. A model that trains in
    stages has a row for each; their memory is that of the whole run.

    Args:
        files: JSON files written by ``bench train``.
        num_seeds: how many each must have at least.

    Raises:
        UserError: a file is not one of these, lacks seeds or figures, is of another protocol than the first, or of the
            same system as another.
    """
    documents = [storage.read_record(file, TrainingBenchmark, remedy=_REMEDY) for file in files]
    of_data: dict[str, list[tuple[str, TrainingBenchmark]]] = {}
    for file, document in zip(files, documents, strict=True):
        with complete([file]):
            of_data.setdefault(storage.name(document["config"]["data"]["path"]), []).append((file, document))
    rows = [row for data, group in of_data.items() for row in _rows(data, group)]
    _check(rows, num_seeds)
    return "\n".join(line for data in of_data for line in _table(data, [row for row in rows if row.data == data]))


def write_tables(page: str, text: str) -> None:
    """Put tables between the two comments of a page, all at once.

    Raises:
        UserError: the page cannot be read or written, or does not have the comments.
    """
    storage.write_bytes(page, _with_tables(page, text).encode())


def check_tables(page: str, text: str) -> None:
    """Compare tables with those between the two comments of a page.

    Raises:
        UserError: they are others, or as by ``write_tables``.
    """
    if _with_tables(page, text) != _text(page):
        raise UserError(f"the tables of {page} are not those of the files; run the same without --check")


def _rows(data: str, group: Sequence[tuple[str, TrainingBenchmark]]) -> Iterator[_Row]:
    """Yield the systems of the files of one data set."""
    files = [file for file, _ in group]
    with complete(files):
        named = labelled([document for _, document in group])
    for file, (label, document) in zip(files, named, strict=True):
        with complete([file]):
            chosen_by = document["config"]["eval"]["metric"]
            protocol = f"{document['runs'][0]['protocol']} by {chosen_by}"
            for stage, runs in _stages(document["runs"]):
                system = f"{label}, {stage}" if stage else label
                yield _Row(file, data, system, protocol, document["machine"]["threads"], runs)


def _stages(runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield the runs, or each of their stages with its own figures and times."""
    if not runs[0].get("stages"):
        yield "", list(runs)
        return
    for place, stage in enumerate(runs[0]["stages"]):
        yield stage["name"], [_of_stage(run, run["stages"][place]) for run in runs]


def _of_stage(run: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run as if it had one stage alone."""
    own = {**run, **stage}
    unit = run.get("product_seconds")
    return {**own, "products_per_epoch": stage["seconds_per_epoch"] / unit} if unit else own


def _check(rows: Sequence[_Row], num_seeds: int) -> None:
    first, seen = rows[0], dict[tuple[str, str], str]()
    for row in rows:
        with complete([row.file]):
            seeds = len({run["seed"] for run in row.runs})
            missing = [name for name in _METRICS if any(name not in run["test"] for run in row.runs)]
        if row.protocol != first.protocol:
            raise UserError(
                f"best epochs were chosen on {first.protocol} in {first.file} and on {row.protocol} in {row.file}; "
                "give files of one protocol"
            )
        if seeds < num_seeds:
            raise UserError(
                f"{row.file} has {seeds} of {num_seeds} seeds; train the others, or ask for fewer by --seeds"
            )
        if missing:
            raise UserError(f"{row.file} has no test {missing[0]} of {row.system}; train again, with 20 among eval.k")
        if (other := seen.setdefault((row.data, row.system), row.file)) != row.file:
            raise UserError(f"{other} and {row.file} are both of {row.system} on {row.data}; give one of them")


def _table(data: str, rows: Sequence[_Row]) -> list[str]:
    by_recall: list[tuple[float, list[str]]] = []
    for row in rows:
        with complete([row.file]):
            by_recall.append((mean(run["test"][_METRICS[0]] for run in row.runs), _cells(row)))
    by_recall.sort(key=lambda pair: -pair[0])
    metrics = [f"test {name}" for name in _METRICS]
    columns = ["system", "seeds", *metrics, "threads", "s per epoch", "products per epoch", "peak GiB"]
    return [f"### {_TITLES.get(data, data)}", "", *table(columns, [cells for _, cells in by_recall])]


def _cells(row: _Row) -> list[str]:
    products = [run["products_per_epoch"] for run in row.runs if "products_per_epoch" in run]
    return [
        row.system,
        str(len(row.runs)),
        *(_spread([run["test"][name] for run in row.runs]) for name in _METRICS),
        str(row.threads),
        f"{median(run['seconds_per_epoch'] for run in row.runs):.2f}",
        f"{median(products):.3g}" if products else "-",
        f"{max(run['peak_rss_gib'] for run in row.runs):.2f}",
    ]


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def _with_tables(page: str, text: str) -> str:
    """Return a page with tables between its two comments."""
    before, start, rest = _text(page).partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in rest or END in before + after:
        raise UserError(f"{page} must have {START} once and {END} once behind it; put both where the tables belong")
    return f"{before}{START}\n\n{text}\n{END}{after}"


def _text(page: str) -> str:
    try:
        return storage.read_bytes(page).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{page} is not text in UTF-8; name a markdown page") from error
