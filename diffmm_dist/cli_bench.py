"""The `bench` commands."""

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffmm_dist.cli_options import (
    ConfigFile,
    JsonOut,
    Overrides,
    configured,
    file_and_overrides,
    file_to_write,
    local_place,
    place,
    positive_numbers,
)
from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.log import say

if TYPE_CHECKING:
    from diffmm_dist.bench.operations import Case

# Commands import what they need when they run, as those of cli.py do.

bench_app = typer.Typer(help="Measure quality, time and memory.", no_args_is_help=True)


@bench_app.command("train")
def bench_train(
    out: JsonOut,
    seeds: Annotated[str, typer.Option(help="Seeds, comma-separated.")] = "421,422,423",
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Train once per seed; write means, spreads, memory, and times in units of one matrix product."""
    from diffmm_dist.bench.runner import bench_seeds

    settings = configured(config, overrides)
    bench_seeds(settings, positive_numbers(seeds, "--seeds"), out)
    say(out)


@bench_app.command("paired")
def bench_paired(
    first: Annotated[list[str], typer.Option(help="A run folder of the first group, repeatable.")],
    second: Annotated[list[str], typer.Option(help="A run folder of the second group, repeatable.")],
    out: JsonOut,
    k: Annotated[int, typer.Option(min=1, help="Cut-off.")] = 20,
) -> None:
    """Compare runs user by user on test: difference, its spread over resamples of users, and a signed-rank test."""
    from diffmm_dist.bench.paired import bench_paired as paired

    paired(first, second, k=k, out=out)


Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", help="A preset, values, or both (large,items=500); may be given again."),
]
Repeats = Annotated[int, typer.Option(min=1, help="How often to measure each.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of torch; 0 takes all that may be used.")]


def _measure(case: "Case[Any]", sizes: list[str] | None, *, out: str, repeats: int, device: str, threads: int) -> None:
    from diffmm_dist.bench.operations import bench_case
    from diffmm_dist.bench.report import markdown

    bench_case(case, sizes or [next(iter(case.presets))], repeats=repeats, out=out, device=device, threads=threads)
    say(markdown([out]), end="")


def _add_case(name: str, *, repeats: int, text: str) -> None:
    """Add the command of a case, which is found in the module of its name."""

    def run(
        out: JsonOut, size: Sizes = None, repeats: Repeats = repeats, device: Device = "cpu", threads: Threads = 0
    ) -> None:
        case = import_module(f"diffmm_dist.bench.{name}").CASE
        _measure(case, size, out=out, repeats=repeats, device=device, threads=threads)

    bench_app.command(name, help=text)(run)


_add_case(
    "denoise",
    repeats=5,
    text="Time one denoising step, and its output side alone. Sizes: batch, items, hidden, dim, per_user.",
)
_add_case(
    "rebuild",
    repeats=3,
    text="Time rebuilding a graph. Sizes: users, items, hidden, timesteps, topk, batch, per_user.",
)
_add_case("contrast", repeats=5, text="Time a contrastive term. Sizes: nodes, batch, dim.")
_add_case(
    "evaluate",
    repeats=3,
    text="Time ranking all items, and check the lists. Sizes: users, items, dim, topk, batch, per_user.",
)


@bench_app.command("propagate")
def bench_propagate(
    out: JsonOut,
    dataset: Annotated[
        str | None, typer.Argument(help="A prepared dataset, for its graph, forward only.", callback=place)
    ] = None,
    width: Annotated[int, typer.Option(min=1, help="Columns of the rows, with a dataset.")] = 64,
    size: Sizes = None,
    repeats: Repeats = 15,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Time the propagation kernels on a random graph or a dataset's. Sizes: users, items, draws, dim."""
    from diffmm_dist.bench import cases, propagate

    if dataset is None:
        _measure(propagate.CASE, size, out=out, repeats=repeats, device=device, threads=threads)
        return
    if size:
        raise UserError("--size is for random graphs, and a dataset has its own; leave one of the two out")
    cases.bench_propagate(dataset, width, out)
    say(out)


@bench_app.command("epoch")
def bench_epoch(
    out: JsonOut,
    repeats: Annotated[int, typer.Option(min=1, help="Epochs to time, after one that is not.")] = 3,
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Time whole training epochs, phase by phase."""
    from diffmm_dist.bench.epoch import bench_epoch as run
    from diffmm_dist.bench.report import markdown

    run(configured(config, overrides), repeats=repeats, out=out)
    say(markdown([out]), end="")


@bench_app.command("threads")
def bench_threads(
    out: JsonOut,
    repeats: Annotated[int, typer.Option(min=1, help="Epochs of each variant, after one that is not timed.")] = 5,
    busy: Annotated[int, typer.Option(min=0, help="Endless loops to run beside them, each of which keeps a core.")] = 0,
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Time epochs with other numbers of threads and other ways to wait, in turns, also beside a busy machine."""
    from diffmm_dist.bench.report import markdown
    from diffmm_dist.bench.threads import bench_threads as run

    run(configured(config, overrides), repeats=repeats, busy=busy, out=out)
    say(markdown([out]), end="")


@bench_app.command("growth")
def bench_growth(
    out: JsonOut,
    repeats: Annotated[int, typer.Option(min=1, help="Steps to time at each size, after one that is not.")] = 5,
    plot: Annotated[str | None, typer.Option(help="SVG file to draw.", callback=file_to_write)] = None,
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Time a step of each phase while users, items, interactions, modalities or hidden width grow."""
    from diffmm_dist.bench.growth import bench_growth as run
    from diffmm_dist.bench.report import markdown

    run(configured(config, overrides), out, repeats=repeats, plot=plot)
    say(markdown([out]), end="")


@bench_app.command("memory")
def bench_memory(
    out: JsonOut,
    shape: Annotated[
        list[str] | None, typer.Option(help="A problem to measure, all by default; may be given again.")
    ] = None,
) -> None:
    """Compare the estimate of memory with the peaks of runs that differ in what their memory is for."""
    from diffmm_dist.bench.estimate import bench_memory as run
    from diffmm_dist.bench.report import markdown

    run(shape or [], out=out)
    say(markdown([out]), end="")


@bench_app.command("profile")
def bench_profile(
    out: Annotated[str, typer.Option(help="Text file to write.", callback=file_to_write)],
    steps: Annotated[int, typer.Option(min=1, help="Steps of each phase, after one that is not counted.")] = 5,
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """List what the steps of each phase spend their time on, operator by operator."""
    from diffmm_dist.bench.profile import bench_profile as run

    say(run(configured(config, overrides), num_steps=steps, out=out), end="")


@bench_app.command("scaling")
def bench_scaling(
    out: JsonOut,
    workers: Annotated[str, typer.Option(help="Numbers of workers, comma-separated.")] = "1,2",
    steps: Annotated[int, typer.Option(min=1, help="Steps to time of each phase.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="How often to measure each.")] = 3,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Dataset of each number of workers, in their order, for weak scaling; batches grow too.",
            callback=place,
        ),
    ] = None,
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Time every phase with several numbers of workers on this machine, one thread each unless configured."""
    from diffmm_dist.bench.scaling import bench_scaling as run

    settings = configured(config, overrides)
    sizes = positive_numbers(workers, "--workers")
    run(settings, sizes, num_steps=steps, repeats=repeats, out=out, datasets=dataset or [])
    say(out)


@bench_app.command("overlap")
def bench_overlap(
    out: JsonOut,
    workers: Annotated[int, typer.Option(min=2, help="Number of workers.")] = 2,
    network: Annotated[float, typer.Option(min=1e-3, help="Bytes that a worker sends per second, in MB.")] = 250.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time of each phase.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="How often to measure each.")] = 3,
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Time every phase on a network that is slowed down, with exchanges beside the sums and without."""
    from diffmm_dist.bench.overlap import bench_overlap as run

    settings = configured(config, overrides)
    run(settings, num_workers=workers, network_mb_s=network, num_steps=steps, repeats=repeats, out=out)
    say(out)


@bench_app.command("comm")
def bench_comm(
    out: JsonOut,
    predict: Annotated[str, typer.Option(help="Numbers of workers to predict for.")] = "1,2,3,4,8,16,32,64",
    measure: Annotated[str, typer.Option(help="Numbers of workers to measure with, on this machine.")] = "2,3,4",
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Predict what each worker sends in a step, and check the prediction against real workers."""
    from diffmm_dist.bench.comm import bench_comm as run

    settings = configured(config, overrides)
    sizes, real = positive_numbers(predict, "--predict"), positive_numbers(measure, "--measure")
    run(settings, predicted=sizes, measured=real, out=out)
    say(out)


@bench_app.command("gpus")
def bench_gpus(
    out: JsonOut,
    workers: Annotated[str, typer.Option(help="Numbers of GPUs, comma-separated.")] = "1,8,64",
    tflops: Annotated[float, typer.Option(min=1e-3, help="Assumed float32 operations per second, in 10^12.")] = 40.0,
    memory: Annotated[float, typer.Option(min=1e-3, help="Assumed memory traffic per second, in GB.")] = 2000.0,
    network: Annotated[float, typer.Option(min=1e-3, help="Assumed bytes sent per second, in GB.")] = 25.0,
    latency: Annotated[float, typer.Option(min=0, help="Assumed time of an exchange besides its bytes, in us.")] = 30.0,
    times: Annotated[int, typer.Option(min=1, help="Predict for a graph and batches so many times larger.")] = 1,
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Predict the seconds of an epoch on GPUs from operations, bytes and what a GPU is assumed to do per second."""
    from diffmm_dist.bench.gpus import Assumptions
    from diffmm_dist.bench.gpus import bench_gpus as run

    settings = configured(config, overrides)
    assumed = Assumptions(tflops, memory, network, latency)
    run(settings, positive_numbers(workers, "--workers"), assumed, out=out, times=times)
    say(out)


@bench_app.command("stream")
def bench_stream(
    datasets: Annotated[
        list[str], typer.Argument(help="Datasets, the first to compare the others with.", callback=place)
    ],
    out: JsonOut,
    repeats: Annotated[int, typer.Option(min=1, help="How often to read each.")] = 5,
    batches_ahead: Annotated[int, typer.Option(min=1, help="Record batches fetched from S3 in advance.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the reader's arithmetic.")] = 1,
) -> None:
    """Time reading all training interactions and features, in turns, with and without comparing checksums."""
    from diffmm_dist.bench.stream import bench_stream as run

    run(datasets, out, repeats=repeats, batches_ahead=batches_ahead, threads=threads)
    say(out)


@bench_app.command("serve")
def bench_serve(
    bundle: Annotated[str, typer.Argument(help="A bundle written by `export`.", callback=place)],
    out: JsonOut,
    replicas: Annotated[str, typer.Option(help="Numbers of replicas, comma-separated.")] = "1,2",
    clients: Annotated[int, typer.Option(min=1, max=1000, help="Connections, one request under way in each.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="For how long to ask each server.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the users that are drawn.")] = 421,
) -> None:
    """Ask servers on loopback for recommendations: requests per second, and how long clients wait."""
    from diffmm_dist.bench.report import markdown
    from diffmm_dist.bench.serve import bench_serve as run

    numbers = positive_numbers(replicas, "--replicas")
    run(bundle, replicas=numbers, clients=clients, seconds=seconds, seed=seed, out=out)
    say(markdown([out]), end="")


@bench_app.command("coldstart")
def bench_coldstart(
    out: JsonOut,
    folder: Annotated[str, typer.Option(help="Folder for datasets, runs and bundles.", callback=local_place)],
    users: Annotated[float, typer.Option(min=0.001, max=0.5, help="Share of the users that are left out.")] = 0.1,
    items: Annotated[float, typer.Option(min=0.001, max=0.5, help="Share of the items that are left out.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of what is left out.")] = 1,
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Train with everything, without some users and without some items, and measure lists for what was left out."""
    from diffmm_dist.bench.coldstart import bench_coldstart as run
    from diffmm_dist.bench.report import markdown

    file, words = file_and_overrides(config, overrides)
    run(file, words, users=users, items=items, seed=seed, folder=folder, out=out)
    say(markdown([out]), end="")


@bench_app.command("report")
def bench_report(
    files: Annotated[list[str], typer.Argument(help="JSON files written by other `bench` commands.", callback=place)],
) -> None:
    """Print the tables of docs/benchmarks from JSON files."""
    from diffmm_dist.bench.report import markdown

    say(markdown(files), end="")


@bench_app.command("compare")
def bench_compare(
    before: Annotated[
        str, typer.Argument(help="JSON file of an operation, such as by `bench denoise`.", callback=place)
    ],
    after: Annotated[str, typer.Argument(help="Another of the same operation.", callback=place)],
) -> None:
    """Print the times of two files side by side, also in units of each one's own matrix product."""
    from diffmm_dist.bench.compare import compare

    say(compare(before, after), end="")


@bench_app.command("students")
def bench_students(
    out: JsonOut,
    group: Annotated[
        list[str], typer.Option(help="NAME=RUN,RUN: runs of one model with several seeds; give it for each model.")
    ],
    repeats: Annotated[int, typer.Option(min=1, help="How often all users are ranked.")] = 5,
    threads: Threads = 1,
    plot: Annotated[
        str | None, typer.Option(help="SVG file: recall against the bundle's size.", callback=file_to_write)
    ] = None,
) -> None:
    """Compare runs by what they take to deploy: recall, parameters, bundle, time to rank all users."""
    from diffmm_dist.bench.students import bench_students as students
    from diffmm_dist.bench.students import groups_of

    students(groups_of(group), threads=threads, repeats=repeats, out=out, plot=plot)


@bench_app.command("systems")
def bench_systems(
    files: Annotated[list[str], typer.Argument(help="JSON files written by `bench train`.", callback=place)],
    into: Annotated[
        str | None,
        typer.Option(help="Page that gets the tables, between its two comments; else print them.", callback=place),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare the page with the files, and write nothing.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds each file must have at least.")] = 3,
) -> None:
    """Show every system on each data set side by side: quality, time and memory, under one protocol."""
    from diffmm_dist.bench.systems import check_tables, tables, write_tables

    text = tables(files, num_seeds=seeds)
    if into is not None:
        (check_tables if check else write_tables)(into, text)
    elif check:
        raise UserError("--check compares a page with the files; name the page by --into")
    say(into or text, end="\n" if into else "")
