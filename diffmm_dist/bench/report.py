"""Markdown tables from benchmark files."""

from collections.abc import Sequence
from typing import Any

from diffmm_dist import storage


def markdown(files: Sequence[str]) -> str:
    """Return one table of quality and one of cost, a row per file, and the command behind each."""
    documents = [storage.read_json(file) for file in files]
    lines = _quality(documents) + _cost(documents) + _commands(files, documents)
    return "\n".join(lines) + "\n"


def _quality(documents: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| model | protocol | seeds | test recall@20 | test ndcg@20 | per seed, recall@20 (epoch) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for document in documents:
        runs, summary = document["runs"], document["summary"]
        per_seed = ", ".join(f"{run['test']['recall@20']:.4f} ({run['best_epoch']})" for run in runs)
        cells = [
            document["config"]["model"]["name"],
            runs[0]["protocol"],
            str(len(runs)),
            _mean(summary["test/recall@20"]),
            _mean(summary["test/ndcg@20"]),
            per_seed,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.4f} ± {entry['spread']:.4f}"


def _cost(documents: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "| model | protocol | s per epoch | products per epoch | by phase, in products | peak GiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for document in documents:
        summary = document["summary"]
        phases = summary.get("products_per_phase", {})
        cells = [
            document["config"]["model"]["name"],
            document["runs"][0]["protocol"],
            f"{summary['seconds_per_epoch']:.2f}",
            f"{summary['products_per_epoch']:.0f}" if phases else "-",
            ", ".join(f"{name} {value:.1f}" for name, value in phases.items()),
            f"{summary['peak_rss_gib']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _commands(files: Sequence[str], documents: Sequence[dict[str, Any]]) -> list[str]:
    lines = [""]
    for file, document in zip(files, documents, strict=True):
        lines.append(f"* `{file.rsplit('/', 1)[-1]}`: `{document['command']}`")
    return lines
