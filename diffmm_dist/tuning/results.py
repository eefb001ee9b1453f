"""What a search ends with: a table, a picture, and the best configuration."""

from typing import Any

from diffmm_dist import storage
from diffmm_dist.config.render import to_yaml
from diffmm_dist.config.section import changed
from diffmm_dist.runs.config import Config
from diffmm_dist.tuning.journal import Journal, Trial
from diffmm_dist.tuning.plot import plot
from diffmm_dist.tuning.space import with_values
from diffmm_dist.words import shown

BEST, PLOT = "best.yaml", "tune.svg"


def table(journal: Journal) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the trials, the best first, with what differs between them."""
    keys = list(journal.search["space"])
    names = [key.rpartition(".")[2] for key in keys]
    short = [name if names.count(name) == 1 else key for key, name in zip(keys, names, strict=True)]
    # With spaces in them names may be broken, so that a table of many settings is no wider than a page.
    words = [name.replace("_", " ") for name in short]
    columns = ["trial", f"valid {journal.metric}", "best epoch", "epochs", "state", *words]
    return columns, [_row(journal, trial, keys) for trial in journal.ranked()]


def _row(journal: Journal, trial: Trial, keys: list[str]) -> list[str]:
    figure = journal.figure(trial)
    return [
        trial["name"],
        "-" if figure is None else f"{figure:.4f}",
        str(trial.get("best_epoch", "-")),
        str(trial["epochs"]),
        trial["state"],
        *(_cell(trial["values"][key]) for key in keys),
    ]


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else shown(value)


def reasons(journal: Journal) -> list[str]:
    """Return a line for each reason why trials have failed."""
    failed: dict[str, list[str]] = {}
    for trial in journal.of("failed"):
        failed.setdefault(trial.get("reason", "for no known reason"), []).append(trial["name"])
    return [f"{', '.join(names)} failed: {reason}" for reason, names in failed.items()]


def write_plot(journal: Journal) -> str:
    """Draw the search and return where."""
    place = storage.join(journal.folder, PLOT)
    storage.write_bytes(place, plot(journal).encode())
    return place


def write_best(journal: Journal, config: Config) -> str:
    """Write the configuration of the best trial, which there is, and return where.

    Args:
        journal: the search.
        config: what the user gave, whose epochs and folders of data it keeps.
    """
    best = journal.best()
    assert best is not None
    place = storage.join(journal.folder, BEST)
    settings = with_values(config, best["values"], source=place)
    settings = changed(settings, {"run.path": storage.join(journal.folder, "best")})
    figure, done = journal.figure(best), len(journal.trials)
    head = [
        f"The best of {done} trials of a search, chosen on validation alone.",
        "",
        f"Search:   {journal.record['command']}",
        f"Trial:    {best['name']}, valid {journal.metric} {figure:.4f} at epoch {best['best_epoch']}, after "
        f"{best['epochs']} of at most {journal.search['epochs']} epochs",
        *(f"Found:    {key}={_cell(value)}" for key, value in best["values"].items()),
        f"Command:  {journal.record['command'].partition(' tune ')[0]} train --config {place}",
    ]
    text = "".join(f"# {line}".rstrip() + "\n" for line in head) + "\n" + to_yaml(settings)
    storage.write_bytes(place, text.encode())
    return place
