"""Every setting, with its type, its range and one sentence; docs/configuration.md is generated from here.

Hyper-parameters carry the field's names; the published flag that each one replaces stands in models/diffmm/README.md.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
LARGEST_COUNT = 10**9
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Workers = Annotated[int, Field(ge=1, le=4096)]
Location = Annotated[str, Field(min_length=1)]
Projection = Literal["matrix", "affine"]


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
    cache: str | None = None
    """Local folder that keeps the files read from S3, checked and named by checksum; null fetches them every time."""

    @model_validator(mode="after")
    def _modalities_are_different(self) -> "DataConfig":
        if self.modalities is not None and len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"data.modalities names one of {', '.join(self.modalities)} twice; name each once")
        return self


class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    path: Location
    """Run folder, a path or an s3:// address; running the same command again resumes from it."""
    seed: Annotated[int, Field(ge=0)] = 421
    """Seed of every random number of the run."""


class ModelConfig(Section):
    """The recommender."""

    name: Literal["diffmm", "lightgcn", "popularity"] = "diffmm"
    """Model to train; a model reads only the sections that it needs."""
    embedding_dim: Count = 64
    """Width d of all embeddings."""
    num_layers: Annotated[int, Field(ge=0)] = 1
    """Propagation layers L over the real graph."""
    modality_projection: Projection | dict[str, Projection] = "matrix"
    """Features to embeddings: `matrix` (no bias, LeakyReLU 0.2) or `affine`, or a map from modality to one of them."""
    residual_weight: NonNegative = 0.5
    """Weight omega of the row-normalised first layer in the final embedding."""
    modal_graph_weight: NonNegative = 0.2
    """Weight lambda_adj of the generated graphs in the first layer."""


class DiffusionConfig(Section):
    """Diffusion over interaction rows and the graphs generated from it (DiffMM)."""

    num_timesteps: Count = 5
    """Diffusion steps T."""
    noise_scale: Positive = 0.1
    """Factor on both ends of the variance schedule."""
    noise_min: Positive = 1e-4
    """Lower end of the variance schedule."""
    noise_max: Positive = 0.02
    """Upper end of the variance schedule."""
    sampling_steps: Annotated[int, Field(ge=0)] = 0
    """Corruption steps before the reverse chain; 0 starts from the clean row."""
    sampling_noise: bool = False
    """Add posterior noise in the reverse chain."""
    denoiser_hidden_dims: Annotated[tuple[Count, ...], Field(min_length=1)] = (1000,)
    """Widths of the denoiser's hidden layers."""
    time_embedding_dim: Annotated[int, Field(ge=2)] = 10
    """Width of the sinusoidal time embedding."""
    input_dropout_prob: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Dropout on the noisy row while the denoiser trains."""
    normalize_input: bool = False
    """L2-normalise each row before the denoiser's first layer."""
    signal_weight: NonNegative = 0.1
    """Weight lambda_0 of the modality signal (MSI) in the denoising loss."""
    rebuild_topk: Count = 1
    """Generated edges k per user and modality."""
    edge_keep_prob: Probability = 0.5
    """Probability of keeping each entry of a generated graph, drawn once per epoch; 1 keeps all."""

    @model_validator(mode="after")
    def _steps_fit_the_schedule(self) -> "DiffusionConfig":
        problems = []
        if self.noise_min > self.noise_max:
            problems.append(
                f"diffusion.noise_min {self.noise_min} is above diffusion.noise_max {self.noise_max}; swap them"
            )
        if self.noise_scale * self.noise_max >= 1:
            problems.append("diffusion.noise_scale * diffusion.noise_max must stay below 1; lower one of them")
        if self.sampling_steps > self.num_timesteps:
            problems.append(
                f"diffusion.sampling_steps {self.sampling_steps} exceeds diffusion.num_timesteps {self.num_timesteps}; "
                "lower it"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


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
    temperature: Annotated[float, Field(ge=0.03, allow_inf_nan=False)] = 0.5
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
    """Global batch: interactions when ranking, users when denoising."""
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
    """Users ranked at a time."""

    @model_validator(mode="after")
    def _metric_is_measured(self) -> "EvalConfig":
        names = [f"{name}@{k}" for name in ("recall", "ndcg", "precision", "hit_rate", "mrr") for k in self.k]
        if self.metric not in names:
            raise ValueError(f"eval.metric '{self.metric}' is not measured with eval.k; use one of {', '.join(names)}")
        return self


class GraphConfig(Section):
    """Propagation."""

    kernel: Literal["auto", "dgl", "csr"] = "auto"
    """Sparse kernel; `auto` times both on this graph at the first start, and the run keeps to its choice."""


class CheckpointConfig(Section):
    """Checkpoints."""

    every_epochs: Count = 1
    """Epochs between checkpoints; a new best epoch and the last one are always saved."""
    every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints inside an epoch; 0 saves at the end of epochs only."""
    keep: Count = 1
    """Newest checkpoints to keep, besides the best."""


class ClusterConfig(Section):
    """Where the program runs."""

    num_workers: Annotated[int, Field(ge=0, le=4096)] | tuple[Workers, Workers] = 0
    """0 trains in this process; from 1 on, that many workers through Ray Train, which share users and items. A pair
    such as [1, 4] takes as many as there is room for, and goes on from the last checkpoint when that changes."""
    resize_check_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """How often Ray Train looks whether there is room for more workers, with a pair."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the worker; `auto` takes a GPU where there is one."""
    threads_per_worker: Annotated[int, Field(ge=0)] = 0
    """CPU threads of a worker; 0 shares the machine's cores out evenly. Another number may change the last bits."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """Seconds that a worker waits for the others in one exchange before the attempt ends with an error."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often Ray Train starts the workers again, from the last checkpoint, after one has died or hung."""

    @model_validator(mode="after")
    def _fewest_before_most(self) -> "ClusterConfig":
        if isinstance(self.num_workers, tuple) and self.num_workers[0] > self.num_workers[1]:
            fewest, most = self.num_workers
            raise ValueError(f"cluster.num_workers=[{fewest}, {most}] must give the fewest first; swap them")
        return self


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
    def _hidden_noise_has_nothing_to_normalize(self) -> "Config":
        if self.denoiser.noise == "hidden" and self.diffusion.normalize_input:
            raise ValueError(
                "denoiser.noise=hidden cannot be had with diffusion.normalize_input=true, which needs the noisy row "
                "itself; set one of them back"
            )
        return self
