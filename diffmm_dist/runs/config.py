"""A whole run's configuration: what every run has, and its model's own settings (models/NAME/settings.py).

docs/configuration.md is generated from the sentences here and there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from diffmm_dist.config import load, render
from diffmm_dist.config.names import Names
from diffmm_dist.config.section import (
    Count,
    Destination,
    Folder,
    Location,
    Natural,
    NonNegative,
    Number,
    Positive,
    Seconds,
    Section,
    check_rules,
    one_of,
    rule,
)
from diffmm_dist.models.registry import SETTINGS
from diffmm_dist.monitoring.remote import check_project, settle_server
from diffmm_dist.words import shortened, shown

Workers = Annotated[int, Field(ge=1, le=4096)]
UpToWorkers = Annotated[int, Field(ge=0, le=4096)]
TrackingServer = Annotated[str, AfterValidator(settle_server)]
Project = Annotated[str, AfterValidator(check_project)]
METRICS = ("recall", "ndcg", "precision", "hit_rate", "mrr")


class DataConfig(Section):
    """What to train on."""

    path: Location
    """Prepared dataset: a folder or an address, written by `prepare`."""
    modalities: tuple[str, ...] | None = None
    """Names of the modalities to use, in this order; null uses all that the dataset has."""
    batches_ahead: Count = 4
    """Record batches (of at most 65,536 rows and 4 MiB of features) fetched from stores while earlier ones are used."""
    cache: Folder | None = None
    """Local folder that keeps files read from stores, checked and named by checksum; null fetches them every time."""
    features_on: Literal["device", "host"] = "device"
    """Where the items' features lie while a GPU trains: on the `device`, or on its `host`, in pinned memory, from where
    they come a block at a time, the next one while the present one is used: slower, for features that do not fit."""
    verify: bool = True
    """Compare every file with its checksum as it is read; false believes them."""


class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    path: Destination
    """Run folder, a path or an address; running the same command again resumes from it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 421
    """Seed of every random number of the run."""


class TrainConfig(Section):
    """Optimisation."""

    epochs: Count = 50
    """Epochs; raising it lets a finished run go on. Of a model with several stages: of each of them, at most."""
    patience: Count | None = None
    """Evaluations without a better `eval.metric` after which training ends before `train.epochs`, or goes on with the
    model's next stage; null trains all epochs. Raising it lets a run that it has ended go on."""
    batch_size: Count = 1024
    """Global batch: the interactions, or users, of a step; clipped to the training interactions."""
    propagate_every: Count = 1
    """Batches of interactions that one step covers: tables are propagated once for all of them, forward and backward,
    and Adam takes one step with the mean of their losses. `learning_rate` stays as it is; large-batch practice
    multiplies it by the square root of this."""
    learning_rate: Positive = 1e-3
    """Learning rate of Adam."""
    l2_weight: NonNegative = 1e-5
    """Weight of the squared norm of the two ID tables."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Matrix products in training: float32, or rounded operands where the hardware is faster at them."""


class EvalConfig(Section):
    """All-ranking evaluation."""

    protocol: Literal["validation", "published"] = "validation"
    """`validation`: best epoch on validation, test once for it; `published`: best epoch on test, to compare only."""
    k: Annotated[tuple[Count, ...], Field(min_length=1)] = (10, 20, 50)
    """Cut-offs of the metrics."""
    metric: str = "recall@20"
    """Metric that picks the best epoch."""
    retrieved_ndcg: bool = False
    """Measure `ndcg_retrieved` too, the NDCG of PromptMM's release, to compare with its figures only."""
    every_epochs: Count = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    batch_size: Count = 1024
    """Users ranked at a time; clipped to the users."""


class GraphConfig(Section):
    """Propagation."""

    kernel: Literal["auto", "dgl", "csr"] = "auto"
    """Sparse kernel; `auto` times both on this graph at the first start, and the run keeps to its choice."""
    layout: Literal["rows", "columns"] = "rows"
    """What a worker has while tables propagate: its own `rows` and a halo, or some `columns` of all rows and the whole
    graph, which sends far less where the graph fits every worker (docs/distributed.md); one worker has both."""
    messages: Literal["float32", "bfloat16"] = "float32"
    """As what rows of tables and of their gradients travel between workers while they propagate, in either layout;
    `bfloat16` halves these bytes and rounds what arrives, to 8 significant bits (docs/distributed.md). Counts, degrees,
    AdaGCL's scores of edges, and what losses exchange of the results travel as they are; one worker sends nothing."""


class CheckpointConfig(Section):
    """Checkpoints."""

    every_epochs: Count = 1
    """Epochs between checkpoints; a new best epoch and the last one are always saved."""
    every_steps: Natural = 0
    """Steps between checkpoints inside an epoch; 0 saves at the end of epochs only."""
    keep: Count = 2
    """Newest checkpoints to keep, besides the best; the run goes on from the one before where the newest is damaged."""


class ClusterConfig(Section):
    """Where the program runs."""

    num_workers: UpToWorkers | tuple[Workers, Workers] = 0
    """0 trains in this process; from 1 on, that many workers through Ray Train, which share users and items. A pair
    such as [1, 4] takes as many as there is room for, and goes on from the last checkpoint when that changes."""
    resize_check_s: Seconds = 60.0
    """How often Ray Train looks whether there is room for more workers, with a pair."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the worker; `auto` takes a GPU where there is one, and makes an autoscaler add one only where nothing
    else would do."""
    threads_per_worker: UpToWorkers = 0
    """CPU threads of a worker; 0 shares out evenly what may be used here: CPU affinity, the container's CPU quota and
    OMP_NUM_THREADS count. Another number may change the last bits."""
    timeout_s: Seconds = 300.0
    """Seconds that a worker waits for the others in one exchange before the attempt ends with an error."""
    wait_for_nodes_s: Annotated[Number, Field(ge=0, le=86_400)] = 600.0
    """Seconds to wait for nodes that an autoscaler is to add; 0 refuses what does not fit on those that are there."""
    lease_s: Seconds = 30.0
    """With a run folder on a store: seconds that its writer may be silent before another one takes its place."""
    max_failures: Natural = 3
    """How often Ray Train starts the workers again, from the last checkpoint, after one has died or hung."""


class MonitoringConfig(Section):
    """What is written while training."""

    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""
    mlflow: TrackingServer | None = None
    """Record in MLflow too: the address of a server, or `sqlite:///FILE`; login and experiment come from the
    environment (docs/monitoring.md)."""
    wandb: Project | None = None
    """Record in Weights & Biases too: PROJECT, or ENTITY/PROJECT; the key and WANDB_MODE come from the environment."""
    profile_steps: Natural = 0
    """Steps of each phase to trace, in the first epoch after every start, into the run folder; 0 traces none."""


@rule("data.modalities")
def _modalities_are_different(names: tuple[str, ...] | None) -> str | None:
    if names is None or len(set(names)) == len(names):
        return None
    return f"data.modalities names one of {shortened(', '.join(names))} twice; name each once"


def _is_metric(metric: str) -> bool:
    name, at, k = metric.partition("@")
    return name in METRICS and bool(at) and k.isdecimal()


@rule("eval.metric")
def _metric_is_one(metric: str) -> str | None:
    if _is_metric(metric):
        return None
    return f"eval.metric {shown(metric)} is no metric at a cut-off; use {', '.join(METRICS)}, such as recall@20"


@rule("eval.metric", "eval.k")
def _metric_is_measured(metric: str, ks: tuple[int, ...]) -> str | None:
    if not _is_metric(metric) or metric.partition("@")[2] in map(str, ks):
        return None
    cutoffs = ", ".join(map(str, ks))
    return f"eval.metric {shown(metric)} is not measured with eval.k; use one of its cut-offs, {cutoffs}"


@rule("cluster.num_workers")
def _fewest_before_most(num_workers: int | tuple[int, int]) -> str | None:
    if isinstance(num_workers, int) or num_workers[0] <= num_workers[1]:
        return None
    return f"cluster.num_workers={shown(list(num_workers))} must give the fewest first; swap them"


class Config(Section):
    """A whole run."""

    rules = (_modalities_are_different, _metric_is_one, _metric_is_measured, _fewest_before_most)

    data: DataConfig
    run: RunConfig
    model: one_of(SETTINGS) = SETTINGS.default()  # type: ignore[valid-type]
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    graph: GraphConfig = GraphConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    monitoring: MonitoringConfig = MonitoringConfig()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Config":
        check_rules(self)
        return self


def names() -> Names:
    """Return the names of all settings, for messages; they are put together when something is wrong."""
    return Names(Config)


def places(config: Config) -> dict[str, str]:
    """Return the paths and addresses that a configuration names, by their keys."""
    found = {
        "data.path": config.data.path,
        "run.path": config.run.path,
        "data.cache": config.data.cache,
        "model.teacher": getattr(config.model, "teacher", None),
    }
    return {key: place for key, place in found.items() if place is not None}


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a run's configuration file and apply overrides, as ``config.load.load_config`` does."""
    return load.load_config(Config, path, overrides)


def config_from_text(text: str, *, source: str) -> Config:
    """Read a configuration that extends no other, for instance the one kept in a run folder.

    Raises:
        UserError: naming every mistake at once, each with its key.
    """
    return config_from_tree(load.parsed(text, source), source=source)


def config_from_tree(tree: dict[str, Any], *, source: str) -> Config:
    """Check an already parsed configuration."""
    return load.config_from_tree(Config, tree, source=source)


def reference_markdown() -> str:
    """Return docs/configuration.md."""
    return render.reference_markdown(Config)
