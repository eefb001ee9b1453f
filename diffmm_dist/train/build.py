"""From a configuration to the objects of a run; models and all below them take plain keyword arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffmm_dist.config.schema import Config
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.stream import Reading
from diffmm_dist.data.training import TrainingData, shard_interactions, shard_of
from diffmm_dist.errors import UserError
from diffmm_dist.graph.hetero import REAL, HeteroGraph, Kernel
from diffmm_dist.graph.kernels import choose_kernel
from diffmm_dist.graph.relation import Relation
from diffmm_dist.models.base import Optimization, Phase, Recommender
from diffmm_dist.models.diffmm.model import DiffMM, DiffusionSettings
from diffmm_dist.models.diffmm.phases import ContrastSettings, diffmm_phases
from diffmm_dist.models.diffmm.sharding import DenoiserSizes, choose_item_shards
from diffmm_dist.models.lightgcn.model import LightGCN
from diffmm_dist.models.lightgcn.phases import lightgcn_phases
from diffmm_dist.models.popularity.model import Popularity
from diffmm_dist.monitoring.log import logger
from diffmm_dist.parallel.world import World
from diffmm_dist.train.selection import Evaluation


def choose_device(requested: str) -> torch.device:
    """Return the device to compute on.

    Raises:
        UserError: a GPU is asked for where there is none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise UserError("cluster.device=cuda but torch sees no GPU here; set it to auto or cpu")
    return torch.device("cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu")


def open_dataset(config: Config) -> Dataset:
    """Open the configured dataset, to be read as configured.

    Raises:
        UserError: there is none.
    """
    return Dataset.open(config.data.path, Reading(config.data.batches_ahead, config.data.cache, config.data.verify))


def load_training_data(config: Config, dataset: Dataset, world: World) -> TrainingData:
    """Read the worker's slice of the training data onto its device.

    Raises:
        UserError: there is nothing to train on, a modality is missing, or a file is damaged.
    """
    if dataset.manifest.num_interactions("train") == 0:
        raise UserError(f"dataset {dataset.uri} has no training interactions; prepare it with some")
    modalities = config.data.modalities
    if modalities is None:
        modalities = tuple(dataset.manifest.modalities)
    if not MODELS[config.model.name].reads_features:
        modalities = ()
    shard = shard_of(dataset, world)
    return TrainingData(
        shard=shard,
        interactions=shard_interactions(dataset, "train", shard),
        num_interactions=dataset.manifest.num_interactions("train"),
        features={name: dataset.features(name, shard.items.own).to(world.device) for name in modalities},
        name_of_user=lambda row: dataset.name_of("users", shard.users.own.start + row),
    )


def build_evaluation(
    config: Config, dataset: Dataset, data: TrainingData, *, ks: Sequence[int] | None = None
) -> Evaluation:
    """Return the evaluation that the configuration asks for, at other cut-offs if given."""
    return Evaluation(
        dataset,
        data.interactions,
        data.shard,
        protocol=config.eval.protocol,
        ks=ks or config.eval.k,
        batch_size=config.eval.batch_size,
    )


@dataclass(frozen=True)
class Recipe:
    """A model and its phases."""

    model: Recommender
    phases: list[Phase]

    @property
    def kernel(self) -> Kernel | None:
        """The sparse kernel of the model's graph, None for a model without one."""
        graph = getattr(self.model, "graph", None)
        return graph.kernel if isinstance(graph, HeteroGraph) else None


def build_recipe(config: Config, data: TrainingData, *, device: torch.device) -> Recipe:
    """Build the configured model and its phases.

    Raises:
        UserError: the data do not fit the model, or the kernel asked for cannot run here.
    """
    return MODELS[config.model.name].build(config, data, device)


def _diffmm(config: Config, data: TrainingData, device: torch.device) -> Recipe:
    model = DiffMM(
        data,
        _graph(config, data),
        seed=config.run.seed,
        embedding_dim=config.model.embedding_dim,
        num_layers=config.model.num_layers,
        modality_projection=config.model.modality_projection,
        residual_weight=config.model.residual_weight,
        modal_graph_weight=config.model.modal_graph_weight,
        diffusion=diffusion_settings(config),
        num_item_shards=item_shards(config, num_items=data.shard.num_items, num_workers=data.shard.world.size),
    ).to(device)
    return Recipe(model, diffmm_phases(model, _optimization(config), contrast_settings(config)))


def diffusion_settings(config: Config) -> DiffusionSettings:
    """Return what DiffMM is told of its denoisers."""
    return DiffusionSettings(
        **config.diffusion.model_dump(), products=config.denoiser.products, noise=config.denoiser.noise
    )


def contrast_settings(config: Config) -> ContrastSettings:
    """Return what DiffMM is told of its contrast."""
    return ContrastSettings(**config.contrast.model_dump())


def item_shards(config: Config, *, num_items: int, num_workers: int) -> int:
    """Return over how many workers each denoiser is spread."""
    widths = config.diffusion.denoiser_hidden_dims
    sizes = DenoiserSizes(
        num_items=num_items,
        first_width=widths[0],
        last_width=widths[-1],
        embedding_dim=config.model.embedding_dim,
        batch_size=config.train.batch_size,
    )
    return choose_item_shards(config.denoiser.sharding, num_workers, sizes)


def _lightgcn(config: Config, data: TrainingData, device: torch.device) -> Recipe:
    model = LightGCN(
        data,
        _graph(config, data),
        seed=config.run.seed,
        embedding_dim=config.model.embedding_dim,
        num_layers=config.model.num_layers,
    ).to(device)
    return Recipe(model, lightgcn_phases(model, data, _optimization(config)))


def _popularity(config: Config, data: TrainingData, device: torch.device) -> Recipe:
    return Recipe(Popularity(data).to(device), [])


@dataclass(frozen=True)
class ModelEntry:
    """What the trainer must know of a model before there is one.

    Attributes:
        build: makes it.
        reads_features: whether it wants the items' modality features.
        trains: False for a model that is ready when it is made: its run has one epoch, without phases.
    """

    build: Callable[[Config, TrainingData, torch.device], Recipe]
    reads_features: bool = False
    trains: bool = True


MODELS = {
    "diffmm": ModelEntry(_diffmm, reads_features=True),
    "lightgcn": ModelEntry(_lightgcn),
    "popularity": ModelEntry(_popularity, trains=False),
}


def num_epochs(config: Config) -> int:
    """Return the epochs of the run."""
    return config.train.epochs if MODELS[config.model.name].trains else 1


def _graph(config: Config, data: TrainingData) -> HeteroGraph:
    """Return the real graph, with the kernel that is asked for or found fastest on it."""
    real = Relation.normalized(data.interactions, data.shard)
    choice = choose_kernel(config.graph.kernel, real, width=config.model.embedding_dim)
    if config.graph.kernel == "auto" and data.shard.world.is_first:
        logger.info("propagation kernel: %s (%s)", choice.kernel, choice.reason)
    return HeteroGraph({REAL: real}, kernel=choice.kernel)


def _optimization(config: Config) -> Optimization:
    train = config.train
    return Optimization(batch_size=train.batch_size, learning_rate=train.learning_rate, l2_weight=train.l2_weight)
