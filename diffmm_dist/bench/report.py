"""Markdown tables from benchmark files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import mean, median
from typing import Any

from diffmm_dist import storage
from diffmm_dist.bench.documents import (
    ColdStartBenchmark,
    Document,
    GpuPrediction,
    GrowthBenchmark,
    MemoryBenchmark,
    OperationBenchmark,
    PropagationBenchmark,
    ScalingBenchmark,
    ServingBenchmark,
    StreamBenchmark,
    StudentsBenchmark,
    TrafficBenchmark,
    TrainingBenchmark,
)
from diffmm_dist.bench.students import COLUMNS, row_of
from diffmm_dist.errors import UserError
from diffmm_dist.graph.layout import TABLES
from diffmm_dist.runs.config import Config

_LATE_EPOCHS = 20
_LOSS_EPOCHS = (0, 1, 4, 9, 24, 49)
_REMEDY = "give a file written by a `bench` command"


_Labelled = tuple[str, TrainingBenchmark]


def markdown(files: Sequence[str]) -> str:
    """Return the tables of each kind of file, a row per measurement, and the command behind each file.

    Raises:
        UserError: a file is not one of ours.
    """
    documents: list[Any] = [storage.read_record(file, Document, remedy=_REMEDY) for file in files]
    with complete(files):
        return _tables(files, documents)


@contextmanager
def complete(files: Sequence[str]) -> Iterator[None]:
    """Explain what fails because a file lacks some of what its tables need."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{' or '.join(files)} is damaged, since something is missing in it; {_REMEDY}") from error


def _tables(files: Sequence[str], documents: Sequence[Any]) -> str:
    runs = labelled([document for document in documents if "runs" in document])
    graphs = [document for document in documents if "graph" in document]
    scaling = [document for document in documents if "scaling" in document]
    traffic = [document for document in documents if "predicted_bytes" in document]
    lines = [*_quality(runs), *_cost(runs), *_losses(runs), *_propagation(graphs)]
    gpus = [_gpus(document) for document in documents if "gpus" in document]
    streams = [_streams(document) for document in documents if "streams" in document]
    growth = [_growth(document) for document in documents if "growth" in document]
    of_workers = [*(_scaling(document) for document in scaling), *(_traffic(document) for document in traffic)]
    memory = [_memory(document) for document in documents if "memory" in document]
    operations = [_operations(document) for document in documents if "case" in document]
    students = [_students(document) for document in documents if "groups" in document]
    serving = [_serving(document) for document in documents if "serving" in document]
    cold = [_coldstart(document) for document in documents if "fold_in" in document]
    for tables in (of_workers, gpus, streams, growth, memory, operations, students, serving, cold):
        lines += [line for table in tables for line in table]
    lines += _commands(files, documents)
    return "\n".join(lines) + "\n"


def _quality(documents: Sequence[_Labelled]) -> list[str]:
    rows = []
    for name, document in documents:
        metric = document["config"]["eval"]["metric"]
        ndcg = f"ndcg@{metric.split('@')[1]}"
        runs, summary = document["runs"], document["summary"]
        per_seed = ", ".join(f"{run['test'][metric]:.4f} ({run['best_epoch']})" for run in runs)
        means = [f"{name} {_mean(summary[f'test/{name}'])}" for name in (metric, ndcg)]
        late = mean(mean(run["curve"][-_LATE_EPOCHS:]) for run in runs)
        rows.append([name, runs[0]["protocol"], str(len(runs)), *means, per_seed, f"{late:.4f}"])
    columns = ["model", "protocol", "seeds", "test", "test", "per seed (best epoch)"]
    return table([*columns, f"last {_LATE_EPOCHS} epochs, selecting split"], rows)


def labelled(documents: Sequence[TrainingBenchmark]) -> list[_Labelled]:
    """Return each document behind its model, with the settings of the method in which documents of one model differ."""
    settings = [_method(document["config"]) for document in documents]
    labels = []
    for mine in settings:
        others = [other for other in settings if other["model.name"] == mine["model.name"]]
        differing = [key for key in mine if any(other.get(key, mine[key]) != mine[key] for other in others)]
        labels.append(", ".join([mine["model.name"], *(f"{key}={mine[key]}" for key in differing)]))
    return list(zip(labels, documents, strict=True))


def _method(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a run's settings is its method; earlier versions had the model's sections beside the others."""
    of_model = {**config["model"], **{name: part for name, part in config.items() if name not in Config.model_fields}}
    return dict(_flat({"model": of_model, "train": config["train"]}))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _losses(documents: Sequence[_Labelled]) -> list[str]:
    """Return every loss in a few epochs, its mean over the seeds, as far as all of these go; nothing without losses."""
    curves: list[tuple[list[str], list[float]]] = []
    for name, document in documents:
        runs = document["runs"]
        if all("losses" in run for run in runs):
            for loss in runs[0]["losses"]:
                by_epoch = zip(*(run["losses"][loss] for run in runs), strict=False)  # patience ends seeds apart
                curves.append(([loss, name, runs[0]["protocol"]], [mean(values) for values in by_epoch]))
    epochs = [epoch for epoch in _LOSS_EPOCHS if any(epoch < len(means) for _, means in curves)]
    rows = [[*labels, *(_loss(means, epoch) for epoch in epochs)] for labels, means in curves]
    rows.sort(key=lambda row: row[0])
    return table(["loss", "model", "protocol", *(f"epoch {epoch}" for epoch in epochs)], rows)


def _loss(means: Sequence[float], epoch: int) -> str:
    return f"{means[epoch]:.4g}" if epoch < len(means) else "-"


def _mean(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.4f} ± {entry['spread']:.4f}"


def _cost(documents: Sequence[_Labelled]) -> list[str]:
    rows = []
    for name, document in documents:
        summary = document["summary"]
        phases = summary.get("products_per_phase", {})
        rows.append(
            [
                name,
                document["runs"][0]["protocol"],
                f"{summary['seconds_per_epoch']:.2f}",
                f"{summary['products_per_epoch']:.0f}" if phases else "-",
                ", ".join(f"{name} {value:.1f}" for name, value in phases.items()),
                f"{summary['peak_rss_gib']:.2f}",
            ]
        )
    columns = ["model", "protocol", "s per epoch", "products per epoch", "by phase, in products", "peak GiB"]
    return table(columns, rows)


def _propagation(documents: Sequence[PropagationBenchmark]) -> list[str]:
    """Return the sums of neighbours by kernel, and whole propagations by allocator."""
    names = list(dict.fromkeys(name for d in documents for times in d["neighbor_sum_ms"].values() for name in times))
    sums = [
        [_size(document), direction, *_milliseconds(times, names)]
        for document in documents
        for direction, times in document["neighbor_sum_ms"].items()
    ]
    allocators = list(dict.fromkeys(name for document in documents for name in document["propagate_ms"]))
    wholes = [[_size(document), *_milliseconds(document["propagate_ms"], allocators)] for document in documents]
    return [
        *table(["graph", "sum of neighbours, ms", *names], sums),
        *table(["graph, both directions, ms", *allocators], wholes),
    ]


def _scaling(document: ScalingBenchmark) -> list[str]:
    """Return seconds of an epoch by phase and number of workers, and the efficiency of each pair."""
    phases = list(next(iter(document["scaling"].values()))[0]["epoch_s"])
    rows = []
    for size, measured in document["scaling"].items():
        seconds = [f"{median(result['epoch_s'][phase] for result in measured):.0f}" for phase in phases]
        efficiency = [_efficiency(document["efficiency"].get(size, {}).get(phase)) for phase in phases]
        memory = f"{max(result['all_workers_rss_gib'] for result in measured):.2f}"
        rows.append([size, *seconds, *efficiency, memory])
    columns = ["workers", *(f"{phase}, s per epoch" for phase in phases), *(f"{phase}, efficiency" for phase in phases)]
    return table([*columns, "all workers, peak GiB"], rows)


def _efficiency(entry: dict[str, float] | None) -> str:
    return "-" if entry is None else f"{entry['median']:.2f} ({entry['min']:.2f} to {entry['max']:.2f})"


def _traffic(document: TrafficBenchmark) -> list[str]:
    """Return the mean and the largest worker's traffic by number of workers, and whether it was measured."""
    predicted, measured = document["predicted_bytes"], document["measured_bytes"]
    purposes = list(next(iter(predicted.values()))[0])
    rows = []
    for size, workers in predicted.items():
        sent = [[worker[purpose] / 2**20 for worker in workers] for purpose in purposes]
        mib = [f"{mean(values):.2f} / {max(values):.2f}" for values in sent]
        agreement = "-" if size not in measured else "equal" if measured[size] == workers else "DIFFERENT"
        rows.append([size, *mib, agreement])
    per = {purpose: "epoch" if purpose == TABLES else "step" for purpose in purposes}
    columns = [f"{purpose.replace('_', ' ')}, MiB per {of}" for purpose, of in per.items()]
    return table(["workers (mean / most)", *columns, "measured"], rows)


def _gpus(document: GpuPrediction) -> list[str]:
    """Return the predicted seconds of an epoch, by phase, and what share of them is spent on sending."""
    assumed = document["assumed"]
    rows = []
    for size, prediction in document["gpus"].items():
        seconds = prediction["seconds"]
        works = prediction["work"].values()
        network_s = sum(work["sent_bytes"] for work in works) / (assumed["network_gb_s"] * 1e9)
        exchange_s = sum(work["exchanges"] for work in works) * assumed["latency_us"] * 1e-6
        total = sum(seconds.values())
        shares = [f"{part / total:.0%}" for part in (network_s, exchange_s)]
        gib = max(sum(parts.values()) for parts in prediction["memory_bytes"].values()) / 2**30
        rows.append([size, *(f"{value:.3g}" for value in seconds.values()), f"{total:.3g}", *shares, f"{gib:.2f}"])
    phases = [f"{phase}, s" for phase in next(iter(document["gpus"].values()))["seconds"]]
    return table(["GPUs", *phases, "epoch, s", "bytes sent, share", "latency, share", "memory, GiB"], rows)


def _streams(document: StreamBenchmark) -> list[str]:
    """Return the speed of each dataset's stream, and its peak memory."""
    rows = [
        [
            uri,
            f"{entry['interactions']:,}",
            f"{entry['mib']:.0f}",
            f"{entry['seconds']['median']:.2f}",
            f"{entry['mib_per_s']:.0f}",
            _efficiency(entry["speed_of_first"]),
            _efficiency(entry["speed_of_unchecked"]),
            f"{entry['peak_mib']:.0f}",
        ]
        for uri, entry in document["streams"].items()
    ]
    columns = ["dataset", "training interactions", "MiB read", "seconds", "MiB per second", "speed, of the first's"]
    return table([*columns, "of the same, unchecked", "peak memory of the process, MiB"], rows)


def _operations(document: OperationBenchmark) -> list[str]:
    """Return a table for each operation, a row per size and variant, and what was recorded of the results."""
    tables: dict[str, list[list[str]]] = {}
    notes = []
    for entry in document["sizes"]:
        notes.append(f"* {entry['size']}: {size_text(entry)}")
        for name, operation in entry["operations"].items():
            rows = [[entry["size"], *_variant(*variant)] for variant in operation["variants"].items()]
            tables.setdefault(name, []).extend(rows)
            probes, facts = operation["probes"], operation["facts"]
            speeds = f"product {probes['gemm']['gflop_per_s']:.0f} GFLOP/s, copy {probes['copy']['gb_per_s']:.1f} GB/s"
            notes.append("; ".join([f"* {entry['size']}, {name}: {speeds}", *_facts(facts)]))
    columns = ["s (least to most)", "GFLOP", "GB", "of product's speed", "of copy's speed"]
    columns += ["time over the first's", "extra MiB"]
    lines = [line for name, rows in tables.items() for line in table(["size", name, *columns], rows)]
    return [*lines, *notes, ""]


def size_text(entry: dict[str, Any]) -> str:
    """Return what a size is by its values, so that its name does not matter."""
    return ", ".join(f"{name} {value:,}" for name, value in entry["values"].items())


def _variant(name: str, result: dict[str, Any]) -> list[str]:
    seconds, ratio, extra = result["seconds"], result.get("before_over_after"), result.get("extra_mib")
    return [
        name,
        f"{seconds['median']:.4g} ({seconds['min']:.4g} to {seconds['max']:.4g})",
        f"{result['flop'] / 1e9:.4g}",
        f"{result['bytes'] / 1e9:.3g}",
        f"{result['share_of_gemm_peak']:.0%}",
        f"{result['share_of_copy_peak']:.0%}",
        "-" if ratio is None else f"{ratio:.2f}",
        "-" if extra is None else f"{extra:.0f}",
    ]


def _facts(facts: dict[str, Any]) -> list[str]:
    """Return what was recorded of the results, numbers with four digits."""
    flat = {
        " ".join([name, part]).strip().replace("_", " "): value
        for name, values in facts.items()
        for part, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    return [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in flat.items()]


def _growth(document: GrowthBenchmark) -> list[str]:
    """Return what each operation costs at the least and the most of each size, and its exponents."""
    names = list(next(iter(document["growth"].values()))["operations"])
    rows = []
    for size, measured in document["growth"].items():
        values = measured["values"]
        cells = []
        for result in (measured["operations"][name] for name in names):
            seconds, memory = result["seconds"], result["extra_mib"]
            cell = f"{1e3 * seconds[0]:.3g} to {1e3 * seconds[-1]:.3g} ms; {result['exponent']:.2f}"
            if (slope := result["memory_exponent"]) is not None:
                cell += f", {memory[0]:.0f} to {memory[-1]:.0f} MiB; {slope:.2f}"
            cells.append(cell)
        rows.append([f"{size}, {values[0]:,} to {values[-1]:,}", *cells])
    return table(["what grows", *(f"{name}: a step; exponent" for name in names)], rows)


def _memory(document: MemoryBenchmark) -> list[str]:
    """Return estimate and measured peak of each shape, and of each of its phases taken apart."""
    rows = []
    for name, entry in document["memory"].items():
        phases = {phase: part["estimated"] / part["measured"] for phase, part in entry["phases"].items()}
        sizes = [f"{entry[key] / 2**20:,.0f}" for key in ("estimated", "measured")]
        rows.append(
            [
                name,
                entry["what"],
                *sizes,
                f"{entry['ratio']:.2f}",
                entry["phase"],
                ", ".join(f"{phase} {ratio:.2f}" for phase, ratio in phases.items()) or "-",
            ]
        )
    ratios = [entry["ratio"] for entry in document["memory"].values()]
    columns = ["shape", "most of it", "estimated, MiB", "measured, MiB", "ratio", "largest phase"]
    lines = table([*columns, "each phase's ratio"], rows)
    return [*lines, f"* {len(ratios)} shapes, ratios from {min(ratios):.2f} to {max(ratios):.2f}", ""]


def _students(document: StudentsBenchmark) -> list[str]:
    """Return what each group of runs takes to deploy."""
    return table(["runs", *COLUMNS[1:]], [row_of(name, group) for name, group in document["groups"].items()])


def _serving(document: ServingBenchmark) -> list[str]:
    """Return how often and how fast each number of replicas has answered."""
    rows = []
    for count, entry in document["serving"].items():
        times = [f"{entry[name]:.1f}" for name in ("p50_ms", "p90_ms", "p99_ms")]
        memory = [f"{mean(one[name] for one in entry['memory']):.0f}" for name in ("resident_mib", "share_mib")]
        rows.append(
            [count, f"{entry['requests']:,}", str(entry["errors"]), f"{entry['requests_per_s']:.0f}", *times, *memory]
        )
    columns = ["replicas", "requests", "errors", "requests per second", "p50, ms", "p90, ms", "p99, ms"]
    bundle, machine = document["bundle"], document["machine"]
    facts = (
        f"* {bundle['model']}, {bundle['users']:,} users, {bundle['items']:,} items, width {bundle['width']}; "
        f"{document['clients']} clients for {document['seconds']:g} s, {document['k']} items for a user in a request; "
        f"{machine['usable_cores']} cores of {machine['processor']}"
    )
    return [*table([*columns, "resident, MiB a replica", "of it its own share"], rows), facts, ""]


def _coldstart(document: ColdStartBenchmark) -> list[str]:
    """Return how good the lists are for users, and of items, that a run has never seen."""
    metrics = [f"{name}@{document['k']}" for name in ("recall", "ndcg")]
    lines = []
    for part, what in (("fold_in", "users held out"), ("cold_items", "items held out")):
        found: Mapping[str, Any] = document.get(part) or {}  # type: ignore[assignment]
        rows = [[name, *(f"{figures[one]:.4f}" for one in metrics)] for name, figures in found.get("lists", {}).items()]
        lines += table([what, *metrics], rows)
        if "share of lists of all items" in found:
            share = found["share of lists of all items"]
            lines += [f"* among all items, the {found['items']:,} held out take {share:.0%} of the places in lists", ""]
        for name, ratio in found.items():
            if isinstance(ratio, Mapping) and "ratio" in ratio:
                interval = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
                lines += [f"* {name}: {metrics[0]} {ratio['ratio']:.3f} times ({interval} in 95 % of resamples of "
                          f"{found['users']:,} users)", ""]  # fmt: skip
    return lines


def _size(document: PropagationBenchmark) -> str:
    graph = document["graph"]
    return f"{graph['users']:,} users, {graph['items']:,} items, {graph['edges']:,} edges, {graph['width']} columns"


def _milliseconds(times: dict[str, float], names: Sequence[str]) -> list[str]:
    return [f"{times[name]:.2f}" if name in times else "-" for name in names]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a markdown table and an empty one, or none without rows."""
    if not rows:
        return []
    head = [columns, ["---"] * len(columns)]
    return [f"| {' | '.join(cells)} |" for cells in [*head, *rows]] + [""]


def _commands(files: Sequence[str], documents: Sequence[Document]) -> list[str]:
    return [
        f"* `{file.rsplit('/', 1)[-1]}`: `{document['command']}`"
        for file, document in zip(files, documents, strict=True)
    ]
