"""Every setting, with its type, its range and one sentence; docs/configuration.md is generated from here.

Hyper-parameters carry the field's names; the published flag that each one replaces stands in models/diffmm/README.md.
"""

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from diffmm_dist.places import settle, settle_local
from diffmm_dist.words import shortened, shown

Number = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[Number, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[Number, Field(ge=0.0)]
Positive = Annotated[Number, Field(gt=0.0)]
Seconds = Annotated[Number, Field(gt=0, le=86_400)]
LARGEST_COUNT = 10**9
Natural = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Workers = Annotated[int, Field(ge=1, le=4096)]
UpToWorkers = Annotated[int, Field(ge=0, le=4096)]
Location = Annotated[str, Field(min_length=1), AfterValidator(settle)]
Destination = Annotated[str, Field(min_length=1), AfterValidator(partial(settle, to_write=True))]
Folder = Annotated[str, Field(min_length=1), AfterValidator(settle_local)]
Projection = Literal["matrix", "affine"]
METRICS = ("recall", "ndcg", "precision", "hit_rate", "mrr")


class Section(BaseModel):
    """A group of settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataConfig(Section):
    """What to train on."""

    path: Location
    """Prepared dataset: a folder or an s3:// prefix written by `prepare`."""
    modalities: tuple[str, ...] | None = None
    """Names of the modalities to use, in this order; null uses all that the dataset has."""
    batches_ahead: Count = 4
    """Record batches (of at most 65,536 rows and 4 MiB of features) fetched from S3 while earlier ones are used."""
    cache: Folder | None = None
    """Local folder that keeps the files read from S3, checked and named by checksum; null fetches them every time."""
    verify: bool = True
    """Compare every file with its checksum as it is read; false believes them."""


class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    path: Destination
    """Run folder, a path or an s3:// address; running the same command again resumes from it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 421
    """Seed of every random number of the run."""


class ModelConfig(Section):
    """The recommender."""

    name: Literal["diffmm", "lightgcn", "popularity"] = "diffmm"
    """Model to train; a model reads only the sections that it needs."""
    embedding_dim: Count = 64
    """Width d of all embeddings."""
    num_layers: Annotated[int, Field(ge=0, le=64)] = 1
    """Propagation layers L over the real graph."""
    modality_projection: Projection | dict[str, Projection] = "matrix"
    """Features to embeddings: `matrix` (no bias, LeakyReLU 0.2) or `affine`, or a map from modality to one of them."""
    residual_weight: NonNegative = 0.5
    """Weight omega of the row-normalised first layer in the final embedding."""
    modal_graph_weight: NonNegative = 0.2
    """Weight lambda_adj of the generated graphs in the first layer."""


class DiffusionConfig(Section):
    """Diffusion over interaction rows and the graphs generated from it (DiffMM)."""

    num_timesteps: Annotated[int, Field(ge=1, le=100_000)] = 5
    """Diffusion steps T."""
    noise_scale: Positive = 0.1
    """Factor on both ends of the variance schedule."""
    noise_min: Positive = 1e-4
    """Lower end of the variance schedule."""
    noise_max: Positive = 0.02
    """Upper end of the variance schedule."""
    sampling_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Corruption steps before the reverse chain; 0 starts from the clean row."""
    sampling_noise: bool = False
    """Add posterior noise in the reverse chain."""
    denoiser_hidden_dims: Annotated[tuple[Count, ...], Field(min_length=1)] = (1000,)
    """Widths of the denoiser's hidden layers."""
    time_embedding_dim: Annotated[int, Field(ge=2, le=65_536)] = 10
    """Width of the sinusoidal time embedding."""
    input_dropout_prob: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.5
    """Dropout on the noisy row while the denoiser trains."""
    normalize_input: bool = False
    """L2-normalise each row before the denoiser's first layer."""
    signal_weight: NonNegative = 0.1
    """Weight lambda_0 of the modality signal (MSI) in the denoising loss."""
    rebuild_topk: Count = 1
    """Generated edges k per user and modality; clipped to the items."""
    edge_keep_prob: Probability = 0.5
    """Probability of keeping each entry of a generated graph, drawn once per epoch; 1 keeps all."""


class DenoiserConfig(Section):
    """How the denoisers are computed (DiffMM); what they learn is set under `diffusion`."""

    sharding: Literal["auto", "replicated", "items"] = "auto"
    """Every worker has them whole (`replicated`), or a range of their `items`; `auto` takes what sends the least."""
    products: Literal["auto", "direct", "gram"] = "auto"
    """Loss of the output layer from the output itself or through the `gram` matrix of its weights; same numbers."""
    noise: Literal["exact", "hidden"] = "exact"
    """Noise drawn on the items, or in the first `hidden` layer, cheap for large catalogues (docs/numerics.md)."""


class ContrastConfig(Section):
    """Cross-modal contrast (DiffMM)."""

    contrastive_weight: NonNegative = 1e-2
    """Weight of the contrastive loss."""
    temperature: Annotated[Number, Field(ge=0.03)] = 0.5
    """Temperature tau; from 0.03 on exp(cos / tau) stays below 4e14, so float32 needs no maximum subtracted."""
    contrastive_anchor: Literal["main", "modal"] = "modal"
    """Anchors: the `main` view against every modality, or each `modal` view against the later ones."""
    negatives: Literal["all", "batch"] = "all"
    """Nodes in the denominator: `all`, or those of the `batch` where comparing with all of them costs too much."""
    max_nodes: Count | None = None
    """Users, and as many items, of a batch to contrast, drawn at random, for very large batches; null contrasts all."""


class TrainConfig(Section):
    """Optimisation."""

    epochs: Count = 50
    """Epochs; raising it lets a finished run go on."""
    batch_size: Count = 1024
    """Global batch: interactions when ranking, users when denoising; clipped to the training interactions."""
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
    every_epochs: Count = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    batch_size: Count = 1024
    """Users ranked at a time; clipped to the users."""


class GraphConfig(Section):
    """Propagation."""

    kernel: Literal["auto", "dgl", "csr"] = "auto"
    """Sparse kernel; `auto` times both on this graph at the first start, and the run keeps to its choice."""


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
    """With a run folder on S3: seconds that its writer may be silent before another one takes its place."""
    max_failures: Natural = 3
    """How often Ray Train starts the workers again, from the last checkpoint, after one has died or hung."""


class MonitoringConfig(Section):
    """What is written while training."""

    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""


class Config(Section):
    """A whole run."""

    data: DataConfig
    run: RunConfig
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    contrast: ContrastConfig = ContrastConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    graph: GraphConfig = GraphConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    monitoring: MonitoringConfig = MonitoringConfig()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Config":
        keys = {key for rule in RULES for key in rule.keys}
        broken = broken_rules({key: attrgetter(key)(self) for key in keys})
        if broken:
            raise ValueError("; ".join(sentence for _, sentence in broken))
        return self


class Rule(NamedTuple):
    """What settings have to be together.

    Attributes:
        keys: the settings it looks at.
        mistake: says what is wrong with their values, or nothing.
    """

    keys: tuple[str, ...]
    mistake: Callable[..., str | None]


RULES: list[Rule] = []


def broken_rules(values: Mapping[str, Any]) -> list[tuple[Rule, str]]:
    """Return the rules that are broken, and how.

    Args:
        values: by dotted key; a rule that looks at another one, such as one whose value is wrong, is left out.
    """
    found = []
    for rule in RULES:
        if all(key in values for key in rule.keys):
            mistake = rule.mistake(*(values[key] for key in rule.keys))
            if mistake is not None:
                found.append((rule, mistake))
    return found


def _rule(*keys: str) -> Callable[[Callable[..., str | None]], Callable[..., str | None]]:
    """Make a function the rule of some settings."""

    def add(mistake: Callable[..., str | None]) -> Callable[..., str | None]:
        RULES.append(Rule(keys, mistake))
        return mistake

    return add


@_rule("data.modalities")
def _modalities_are_different(names: tuple[str, ...] | None) -> str | None:
    if names is None or len(set(names)) == len(names):
        return None
    return f"data.modalities names one of {shortened(', '.join(names))} twice; name each once"


@_rule("diffusion.noise_min", "diffusion.noise_max")
def _noise_rises(low: float, high: float) -> str | None:
    return f"diffusion.noise_min {low} is above diffusion.noise_max {high}; swap them" if low > high else None


@_rule("diffusion.noise_scale", "diffusion.noise_max")
def _variances_stay_below_one(scale: float, high: float) -> str | None:
    if scale * high < 1:
        return None
    return "diffusion.noise_scale * diffusion.noise_max must stay below 1; lower one of them"


@_rule("diffusion.sampling_steps", "diffusion.num_timesteps")
def _steps_fit_the_schedule(steps: int, num_timesteps: int) -> str | None:
    if steps <= num_timesteps:
        return None
    return f"diffusion.sampling_steps {steps} exceeds diffusion.num_timesteps {num_timesteps}; lower it"


@_rule("denoiser.noise", "diffusion.normalize_input")
def _hidden_noise_has_nothing_to_normalize(noise: str, normalize_input: bool) -> str | None:
    if noise != "hidden" or not normalize_input:
        return None
    return (
        "denoiser.noise=hidden cannot be had with diffusion.normalize_input=true, which needs the noisy row itself; "
        "set one of them back"
    )


@_rule("eval.metric")
def _metric_is_one(metric: str) -> str | None:
    name, at, k = metric.partition("@")
    if name in METRICS and at and k.isdecimal():
        return None
    return f"eval.metric {shown(metric)} is no metric at a cut-off; use {', '.join(METRICS)}, such as recall@20"


@_rule("eval.metric", "eval.k")
def _metric_is_measured(metric: str, ks: tuple[int, ...]) -> str | None:
    if _metric_is_one(metric) or metric.partition("@")[2] in map(str, ks):
        return None
    cutoffs = ", ".join(map(str, ks))
    return f"eval.metric {shown(metric)} is not measured with eval.k; use one of its cut-offs, {cutoffs}"


@_rule("cluster.num_workers")
def _fewest_before_most(num_workers: int | tuple[int, int]) -> str | None:
    if isinstance(num_workers, int) or num_workers[0] <= num_workers[1]:
        return None
    return f"cluster.num_workers={shown(list(num_workers))} must give the fewest first; swap them"
