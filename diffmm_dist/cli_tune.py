"""The command that searches for settings."""

import os
import shlex
import sys
from typing import Annotated

import typer

from diffmm_dist.cli_completion import yaml_files
from diffmm_dist.cli_options import ConfigFile, Overrides, configured, folder_to_write, local_place
from diffmm_dist.config.section import LARGEST_COUNT
from diffmm_dist.monitoring.log import print_table, say


def tune(
    space: Annotated[
        str,
        typer.Option(
            help="YAML file of the settings that vary; see docs/tuning.md.",
            callback=local_place, autocompletion=yaml_files,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(help="Folder of the search, a path or an address; the same command goes on with it.",
                     callback=folder_to_write),
    ],
    overrides: Overrides = None,
    config: ConfigFile = None,
    trials: Annotated[int, typer.Option(min=1, max=100_000, help="Trials in all; more of them go on.")] = 40,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_COUNT, help="Epochs of a trial, at most; else train.epochs.")
    ] = None,
    first_stop: Annotated[
        int | None,
        typer.Option(
            min=1, max=LARGEST_COUNT,
            help="Epochs after which the first trials may be stopped; else a ninth of --epochs.",
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Trials at a time; else a tenth of them, as far as there is room."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of the search; that of trials is run.seed.")] = 0,
    keep: Annotated[
        int, typer.Option(min=1, help="Best trials whose checkpoints are kept; of the others their figures alone are.")
    ] = 5,
) -> None:  # fmt: skip
    """Search for settings with many short trials, on validation alone; the same command resumes the search."""
    settings = configured(config, overrides)
    from diffmm_dist.launch.tune import Asked, run_search
    from diffmm_dist.tuning.results import reasons, table, write_best, write_plot

    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else [os.path.basename(sys.argv[0])]
    asked = Asked(
        space, out, trials=trials, epochs=epochs, first_stop=first_stop, parallel=parallel, seed=seed, keep=keep,
        command=shlex.join([*program, *sys.argv[1:]]),
    )  # fmt: skip
    journal = run_search(settings, asked)
    best, picture = write_best(journal, settings), write_plot(journal)
    columns, rows = table(journal)
    print_table(f"{len(rows)} trials, chosen on validation", ["rank", *columns], [
        [str(place), *row] for place, row in enumerate(rows, start=1)
    ])  # fmt: skip
    for reason in reasons(journal):
        say(f"note: {reason}")
    say(f"every trial: {out}/tune.json; picture: {picture}; test was not measured")
    say(f"train the best: {shlex.join([*program, 'train', '--config', best])}")
