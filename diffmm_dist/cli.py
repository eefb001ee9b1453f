"""The command line: one short function per command, and one place that turns errors into a sentence and a status."""

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from diffmm_dist import __version__
from diffmm_dist.cli_bench import bench_app
from diffmm_dist.cli_completion import ShowCompletion, answer
from diffmm_dist.cli_data import inspect, partition, prepare_app
from diffmm_dist.cli_doctor import doctor
from diffmm_dist.cli_features import prepare_features
from diffmm_dist.cli_options import (
    ConfigFile,
    Force,
    Json,
    Out,
    Overrides,
    Run,
    configured,
    file_and_overrides,
    local_place,
    one_of,
    place,
    positive_numbers,
)
from diffmm_dist.cli_report import report
from diffmm_dist.cli_serve import serve
from diffmm_dist.cli_take import explain, recommend, similar
from diffmm_dist.cli_tune import tune
from diffmm_dist.cli_usage import UsageError, usage_sentence
from diffmm_dist.config.render import to_yaml
from diffmm_dist.cores import tell_libraries
from diffmm_dist.errors import (
    StoppedEarlyError,
    StoppedError,
    TakenOverError,
    UserError,
    is_of_system,
    may_pass,
    one_line,
    system_sentence,
)
from diffmm_dist.interrupts import ENDED, ignore
from diffmm_dist.launch.signals import at_once
from diffmm_dist.monitoring.log import logger, metric_rows, print_table, say, say_json, set_up_logging
from diffmm_dist.runs.config import reference_markdown
from diffmm_dist.safe_text import check_word, message
from diffmm_dist.statuses import INTERRUPTED, MISTAKE, TAKEN_OVER, TRY_AGAIN

# Commands import what they need when they run: `--help` and a misspelt key must not wait for torch.

app = typer.Typer(
    help="Multi-modal graph-diffusion recommendation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Show configurations.", no_args_is_help=True)
prepare_app.command("features")(prepare_features)
app.add_typer(prepare_app, name="prepare")
app.add_typer(config_app, name="config")
app.add_typer(bench_app, name="bench")
app.command()(partition)
app.command()(inspect)
app.command()(doctor)


def _show_version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        say(f"diffmm-dist {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_show_version)
    ] = False,
    show_completion: ShowCompletion = None,
) -> None:
    pass


@app.command()
def init(
    folder: Annotated[str, typer.Argument(help="Where to write; this folder by default.", callback=local_place)] = ".",
    force: Annotated[bool, typer.Option("--force", help="Replace files of the same names.")] = False,
) -> None:
    """Write the example configurations and the files for clusters, to begin without a clone of the project."""
    from diffmm_dist.example_files import write_examples

    files = write_examples(folder, force=force)
    say(f"{len(files)} files in {folder}: {', '.join(sorted({path.split('/')[0] for path in files}))}")
    say("begin with: diffmm-dist prepare synthetic --out datasets/demo")
    say("      then: diffmm-dist train --config configs/demo.yaml")


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show warnings and the result alone.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else: a line for each epoch, then the result.")
    ] = False,
) -> None:
    """Train a model, or go on training it: the same command again resumes the run."""
    if quiet:
        set_up_logging(quiet=True)
    settings = configured(config, overrides)
    from diffmm_dist.launch.job import run_job

    if not as_json:
        _show_result(run_job(settings), settings.run.path)
        return
    from diffmm_dist.monitoring.jsonl import JsonPrinter

    printer = JsonPrinter(sys.stdout)
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print
        result = run_job(settings, recorders=[printer], show_progress=False)
    say_json({"result": result})


app.command()(tune)


@app.command()
def submit(
    address: Annotated[str, typer.Option(help="The cluster's dashboard, such as http://HEAD:8265.")],
    working_dir: Annotated[
        str | None,
        typer.Option(
            help="A clone of the project, uploaded without data and runs; this folder if it is one, and else the job "
            "runs what the cluster's nodes have installed.",
            callback=local_place,
        ),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Print the job's log and end with its status.")] = True,
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Send a `train` command to a Ray cluster as a job, follow its log, and end as it ends."""
    from diffmm_dist.launch.submit import submit as send

    file, settings = file_and_overrides(config, overrides)
    sys.exit(send(address, file, settings, working_dir=working_dir, follow=follow))


def _show_result(result: Mapping[str, Any], path: str) -> None:
    """Print a table for each stage, the last one last, and what the run has cost."""
    start = 0
    for stage in result.get("stages", [result]):
        _show_stage(result, stage, start=start)
        start += stage["epochs"]
    for note in result.get("notes", []):
        say(f"note: {note}")
    phases = ", ".join(f"{name} {value:.2f} s" for name, value in result["seconds_per_phase"].items())
    say(f"an epoch takes {result['seconds_per_epoch']:.2f} s ({phases})")
    say(f"peak memory {result['peak_rss_gib']:.2f} GiB; run folder {path}; watch it with tensorboard --logdir {path}")


def _show_stage(result: Mapping[str, Any], stage: Mapping[str, Any], *, start: int) -> None:
    """Print the figures of a stage's best epoch; of a model without stages those of the run."""
    from diffmm_dist.runs.protocol import protocol_words

    tables = [metric_rows(f"{split} ", stage[split]) for split in ("valid", "test") if stage[split]]
    model = result["config"].get("model", {}).get("name", "a model without a name")
    name = f"stage '{stage['name']}', " if "name" in stage else ""
    print_table(
        f"{model}, seed {result['seed']}: {name}epoch {stage['best_epoch']} of {start}..{start + stage['epochs'] - 1}, "
        f"{protocol_words(result['protocol'])}",
        ["", *tables[0][0]] if tables else [""],
        [row for _, rows in tables for row in rows],
    )


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Folders of runs.", callback=place)],
    k: Annotated[int, typer.Option(min=1, help="Cut-off.")] = 20,
    as_json: Json = False,
) -> None:
    """Show the test figures of several runs side by side, with intervals, and what tells the runs apart."""
    from diffmm_dist.training.comparison import compare_runs
    from diffmm_dist.training.worker import prepare_process

    prepare_process(0)
    comparison = compare_runs(runs, k=k)
    if as_json:
        for record in comparison.records:
            say_json(record)
        return
    print_table("", comparison.columns, comparison.rows)
    for note in comparison.notes:
        say(note)


@app.command()
def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    k: Annotated[str, typer.Option(help="Cut-offs, comma-separated.")] = "10,20,50",
    retrieved_ndcg: Annotated[
        bool, typer.Option("--retrieved-ndcg", help="Measure the NDCG over retrieved items too, to compare only.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Evaluate the best epoch of a run at any cut-offs, under the run's protocol."""
    splits: dict[str, Literal["valid", "test"]] = {"valid": "valid", "test": "test"}
    if split not in splits:
        raise UserError(f"--split {split} is neither valid nor test")
    cutoffs = positive_numbers(k, "--k")
    from diffmm_dist.runs.protocol import protocol_words
    from diffmm_dist.training.trained import load_trained
    from diffmm_dist.training.worker import prepare_process

    prepare_process(0)
    trained = load_trained(run)
    metrics = trained.figures(splits[split], cutoffs, retrieved_ndcg=retrieved_ndcg)
    if as_json:
        place = {"run": run, "split": split, "epoch": trained.best_epoch, "protocol": trained.config.eval.protocol}
        say_json({**place, "metrics": metrics})
        return
    names, rows = metric_rows("", metrics)
    protocol = protocol_words(trained.config.eval.protocol)
    print_table(f"{split} of {run}: epoch {trained.best_epoch}, {protocol}", ["", *names], rows)


@app.command()
def export(
    run: Run,
    out: Out,
    index: Annotated[str | None, typer.Option(help="Build an approximate index of the items too: ivf or hnsw.")] = None,
    force: Force = False,
) -> None:
    """Write the best epoch's embeddings, ids, settings and weights as a bundle."""
    from diffmm_dist.bundles.index import KINDS
    from diffmm_dist.exports.bundle import export_run

    kind = None if index is None else one_of(index, KINDS, "--index")
    trained = export_run(run, out, force=force, index=kind)
    say(f"{out}: {trained.config.model.name}, epoch {trained.best_epoch} of {run}")
    if kind is not None:
        from diffmm_dist.bundles.recommender import recall_of_index

        say(recall_of_index(out))


app.command()(report)
app.command()(recommend)
app.command()(similar)
app.command()(explain)
app.command()(serve)


@config_app.command("show")
def config_show(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Print the resolved configuration."""
    say(to_yaml(configured(config, overrides)), end="")


@config_app.command("reference")
def config_reference() -> None:
    """Print docs/configuration.md."""
    say(reference_markdown(), end="")


def _run() -> None:
    with at_once(StoppedEarlyError(ENDED)):
        status = app(standalone_mode=False)
    if status == INTERRUPTED:
        raise StoppedEarlyError(ENDED)


def main() -> None:
    """Run the command line.

    Whatever is wrong is one sentence and an exit status of statuses.py.
    """
    _prepare()
    answer(app)
    try:
        _check_words()
        _run()
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been shown
            sys.exit(error.exit_code)
        _fail(f"error: {usage_sentence(error, sys.argv[1:])}", error.exit_code)
    except UserError as error:
        _fail(f"error: {one_line(error)}", TRY_AGAIN if may_pass(error) else MISTAKE)
    except StoppedEarlyError as error:
        _fail(str(error), INTERRUPTED)
    except typer.Abort:
        _fail(ENDED, INTERRUPTED)
    except TakenOverError as error:
        _fail(f"stopped: {error}", TAKEN_OVER)
    except StoppedError as error:
        _fail(f"stopped at {error}; a checkpoint is saved, the same command goes on from there", INTERRUPTED)
    except (OSError, MemoryError, RuntimeError) as error:
        if not is_of_system(error):
            raise
        _fail(f"error: {system_sentence(error)}", MISTAKE)


def _prepare() -> None:
    """Set up what is said and where, and tell libraries how many threads there are before any of them is loaded."""
    set_up_logging()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    mistake = tell_libraries()
    if mistake is not None:
        logger.warning("%s", mistake)


def _check_words() -> None:
    for word in sys.argv[1:]:
        check_word(word)


def _fail(text: str, status: int) -> None:
    if os.environ.get("DIFFMM_DEBUG") == "1":
        raise
    ignore()
    print(message(text), file=sys.stderr)
    sys.exit(status)
