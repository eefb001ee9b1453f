"""From a configuration to the objects of a run; models and all below them take plain keyword arguments."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.knowledge import check_knowledge, shard_knowledge
from diffmm_dist.data.stream import Reading
from diffmm_dist.data.training import TrainingData, shard_interactions, shard_of
from diffmm_dist.errors import UserError
from diffmm_dist.host_rows import HostRows, Table
from diffmm_dist.models.base import Optimization
from diffmm_dist.models.recipe import Ingredients, ModelEntry, Recipe, TeacherTables
from diffmm_dist.models.registry import FOLDERS, entry_of
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.config import Config
from diffmm_dist.training.selection import Evaluation, check_selection_split


def choose_device(requested: str) -> torch.device:
    """Return the device to compute on: of several GPUs this process's, which Ray Train has made its present one.

    Raises:
        UserError: a GPU is asked for where there is none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise UserError("cluster.device=cuda but torch sees no GPU here; set it to auto or cpu")
    if requested == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def open_dataset(config: Config) -> Dataset:
    """Open the configured dataset, to be read as configured.

    Raises:
        UserError: there is none.
    """
    return Dataset.open(config.data.path, Reading(config.data.batches_ahead, config.data.cache, config.data.verify))


def check_trainable(config: Config, dataset: Dataset) -> None:
    """Refuse a dataset that the run cannot be trained on, before there is a run folder.

    Raises:
        UserError: it has no training interactions, none to choose the best epoch with, or not what the model reads.
    """
    if dataset.manifest.num_interactions("train") == 0:
        raise UserError(f"dataset {dataset.uri} has no training interactions; prepare it with some")
    if model_entry(config).reads_knowledge:
        check_knowledge(dataset, of_model=config.model.name)
    check_propagation(config)
    check_selection_split(dataset, config.eval.protocol)


def check_propagation(config: Config) -> None:
    """Raise a ``UserError`` if the model's tables cannot propagate as configured."""
    wanted = (
        ("graph.layout", config.graph.layout, "rows", "by_columns"),
        ("train.propagate_every", config.train.propagate_every, 1, "several_batches"),
    )
    wrong = []
    for key, value, always, capability in wanted:
        if value != always and not getattr(model_entry(config), capability):
            able = ", ".join(name for name in FOLDERS if getattr(entry_of(name), capability))
            wrong.append(f"{key}={value} is for {able}, not for {config.model.name}; set it to {always}")
    if wrong:
        raise UserError("; ".join(wrong))


def messages_of(config: Config) -> torch.dtype | None:
    """Return as what rows of tables travel while they propagate; None for as they are."""
    return torch.bfloat16 if config.graph.messages == "bfloat16" else None


def load_training_data(config: Config, dataset: Dataset, world: World) -> TrainingData:
    """Read the worker's slice of the training data onto its device.

    Raises:
        UserError: a modality is missing, or a file is damaged.
    """
    modalities = config.data.modalities
    if modalities is None:
        modalities = tuple(dataset.manifest.modalities)
    if not reads_features(config):
        modalities = ()
    shard = shard_of(dataset, world, messages=messages_of(config))
    return TrainingData(
        shard=shard,
        interactions=shard_interactions(dataset, "train", shard),
        num_interactions=dataset.manifest.num_interactions("train"),
        features={name: _placed(dataset.features(name, shard.items.own), config, world) for name in modalities},
        knowledge=shard_knowledge(dataset, shard) if model_entry(config).reads_knowledge else None,
        name_of_user=lambda row: dataset.name_of("users", shard.users.own.start + row),
    )


def _placed(features: Tensor, config: Config, world: World) -> Table:
    """Return features where the run has them; what computes in main memory has them there anyway."""
    if config.data.features_on == "host" and world.device.type != "cpu":
        return HostRows.of(features, world.device)
    return features.to(world.device)


def reads_features(config: Config) -> bool:
    """Return whether the configured model wants the items' features; one that is given a teacher leaves them to it."""
    entry = model_entry(config)
    return entry.reads_features and entry.teacher(config.model) is None


def build_evaluation(
    config: Config,
    dataset: Dataset,
    data: TrainingData,
    *,
    ks: Sequence[int] | None = None,
    retrieved_ndcg: bool = False,
) -> Evaluation:
    """Return the evaluation that the configuration asks for, at other cut-offs and with the retrieved NDCG if asked."""
    return Evaluation(
        dataset,
        data.interactions,
        data.shard,
        protocol=config.eval.protocol,
        ks=ks or config.eval.k,
        batch_size=config.eval.batch_size,
        retrieved_ndcg=retrieved_ndcg or config.eval.retrieved_ndcg,
    )


def build_recipe(
    config: Config, data: TrainingData, *, device: torch.device, teacher: Callable[[], TeacherTables] | None = None
) -> Recipe:
    """Build the configured model and the stages of its training.

    Args:
        config: the run.
        data: this worker's slice of its data.
        device: where to compute.
        teacher: reads what the model is distilled from (``train.teacher.teacher_of``); not needed by one that is only
            loaded, since its checkpoints hold all that it is.

    Raises:
        UserError: the data do not fit the model, or the kernel asked for cannot run here.
    """
    train = config.train
    given = Ingredients(
        data,
        device,
        config.run.seed,
        Optimization(
            batch_size=train.batch_size,
            learning_rate=train.learning_rate,
            l2_weight=train.l2_weight,
            propagate_every=train.propagate_every,
        ),
        config.graph.kernel,
        config.graph.layout == "columns",
        epochs=train.epochs,
        patience=train.patience,
        teacher=teacher,
    )
    recipe: Recipe = model_entry(config).build(config.model, given)
    return recipe


def model_entry(config: Config) -> ModelEntry[Any]:
    """Return what is to be known of the configured model before there is one."""
    entry: ModelEntry[Any] = entry_of(config.model.name)
    return entry
