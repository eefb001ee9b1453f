"""What a worker of DiffMM sends in a step: predicted from the data and the cuts alone, and measured.

Bytes are counted as parallel/collectives.py says. W workers, I items, M modalities, L layers, d embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.scaling import generate_random_edges, random_edges
from diffmm_dist.bench.work import propagation_products
from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import TrainingData, shard_of
from diffmm_dist.diffusion.denoiser import TRAFFIC as DENOISER
from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.errors import UserError
from diffmm_dist.graph import relation
from diffmm_dist.losses import contrastive
from diffmm_dist.models.base import PhaseContext
from diffmm_dist.models.diffmm.recipe import item_shards
from diffmm_dist.parallel.collectives import ring_bytes
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.group import run_group
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World
from diffmm_dist.train.build import build_recipe, load_training_data, open_dataset
from diffmm_dist.train.config import Config
from diffmm_dist.train.worker import prepare_process

_FLOAT = 4
PURPOSES = (relation.TRAFFIC, contrastive.TRAFFIC, DENOISER)


def bench_comm(config: Config, *, predicted: Sequence[int], measured: Sequence[int], out: str) -> None:
    """Write a JSON file with the bytes that each worker sends in the first denoising and recommendation step.

    The generated graphs are random, the same in prediction and measurement.

    Args:
        config: the run; nothing is written into its folder.
        predicted: numbers of workers to predict for; no process is started for them.
        measured: numbers of workers to measure with.
        out: the JSON file.

    Raises:
        UserError: the model is not DiffMM, or a measurement differs from its prediction.
    """
    if config.model.name != "diffmm":
        raise UserError(f"bench comm knows model.name=diffmm, not {config.model.name}")
    prepare_process(config.cluster.threads_per_worker)
    dataset = open_dataset(config)
    data = load_training_data(config, dataset, World.single())
    prediction = {str(size): predict(config, dataset, data, size) for size in sorted({*predicted, *measured})}
    measurement = {str(size): run_group(size, measure, config) for size in measured}
    storage.write_json(
        out,
        {
            "command": command(),
            "machine": machine(),
            "config": config.model_dump(mode="json"),
            "predicted_bytes": prediction,
            "measured_bytes": measurement,
        },
    )
    wrong = [size for size, workers in measurement.items() if workers != prediction[size]]
    if wrong:
        raise UserError(f"what {', '.join(wrong)} workers sent is not what was predicted; {out} has both")


def measure(config: Config) -> dict[str, int]:
    """Return what this worker sends in one step of each phase, by purpose."""
    prepare_process(1)
    world = World.current()
    data = load_training_data(config, open_dataset(config), world)
    recipe = build_recipe(config, data, device=world.device)
    generate_random_edges(recipe.model)
    context = PhaseContext(world, config.run.seed, 0)
    sent = dict.fromkeys(PURPOSES, 0)
    for phase in recipe.phases:
        if phase.name != "rebuild":  # sends nothing
            phase.begin(context)
            world.sent_bytes.clear()
            phase.step(0)
            sent |= {purpose: sent[purpose] + world.sent_bytes[purpose] for purpose in PURPOSES}
    return sent


def predict(config: Config, dataset: Dataset, data: TrainingData, size: int) -> list[dict[str, int]]:
    """Return what each of ``size`` workers sends in one step of each phase, from the whole data in one process."""
    shards = [shard_of(dataset, World(rank, size, torch.device("cpu"))) for rank in range(size)]
    real = _rows_sent(data.shard.user_ids[data.interactions.row_ids], data.interactions.indices, shards)
    topk = min(config.model.diffusion.rebuild_topk, dataset.num_items)
    users = data.shard.user_ids.repeat_interleave(topk)
    generated = [
        _rows_sent(users, random_edges(data.shard.user_ids, modality, topk, dataset.num_items).reshape(-1), shards)
        for modality in range(len(data.features))
    ]
    contrast = _contrast(config, data, shards)
    denoiser = _denoiser(config, data, shards)
    return [
        {
            relation.TRAFFIC: _propagation(config, real[rank], [rows[rank] for rows in generated]),
            contrastive.TRAFFIC: contrast[rank],
            DENOISER: denoiser[rank],
        }
        for rank in range(size)
    ]


def _rows_sent(user_ids: Tensor, item_ids: Tensor, shards: Sequence[Shard]) -> list[int]:
    """Return the rows that each worker sends in one product: its own that others need, and its halo's sums back."""
    size, num_items = len(shards), shards[0].num_items
    user_owner = torch.empty(shards[0].num_users, dtype=torch.int64)
    for rank, shard in enumerate(shards):
        user_owner[shard.user_ids] = rank
    rows = shards[0].item_rows[item_ids]
    pairs = torch.unique(user_owner[user_ids] * num_items + rows)
    reader, owner = pairs // num_items, shards[0].items.owner_of(pairs % num_items)
    away = reader != owner
    given = torch.bincount(owner[away], minlength=size)
    returned = torch.bincount(reader[away], minlength=size)
    return [int(count) for count in given + returned]


def _propagation(config: Config, real: int, generated: Sequence[int]) -> int:
    """Return the bytes of all products of one recommendation step, forward and backward."""
    contrasted = config.model.contrast.contrastive_weight > 0
    of_real, of_generated = propagation_products(len(generated), config.model.num_layers, contrasted=contrasted)
    rows = 2 * (of_real * real + of_generated * sum(generated))  # forward and backward
    width: int = config.model.embedding_dim
    return int(rows) * width * _FLOAT


def _contrast(config: Config, data: TrainingData, shards: Sequence[Shard]) -> list[int]:
    """Return the bytes of all contrastive terms of the first batch."""
    if config.model.contrast.contrastive_weight == 0:
        return [0] * len(shards)
    stream = PhaseContext(World.single(), config.run.seed, 0).stream("interactions")
    batches = EpochBatches(
        data.interaction_ids, total=data.num_interactions, batch_size=config.train.batch_size, stream=stream
    )
    chosen = batches[0]
    users = torch.unique(data.shard.user_ids[data.interactions.row_ids[chosen]])
    items = torch.unique(data.interactions.indices[chosen])
    num_modalities = len(data.features)
    main = config.model.contrast.contrastive_anchor == "main"
    pairs = num_modalities if main else num_modalities * (num_modalities - 1) // 2
    if config.model.contrast.max_nodes is not None:
        batch_stream = PhaseContext(World.single(), config.run.seed, 0).stream("batch").child(0)
        users = _sampled(users, config.model.contrast.max_nodes, batch_stream.child("users"))
        items = _sampled(items, config.model.contrast.max_nodes, batch_stream.child("items"))
    own_users = [int(torch.isin(users, shard.user_ids).sum()) for shard in shards]
    own_items = [int(torch.isin(items, shard.own_item_ids).sum()) for shard in shards]
    sides = ((own_users, max(shards[0].users.sizes)), (own_items, max(shards[0].items.sizes)))
    terms = [_contrast_term(config, counts, most) for counts, most in sides]
    return [pairs * sum(term[rank] for term in terms) for rank in range(len(shards))]


def _sampled(ids: Tensor, max_nodes: int, stream: RandomStream) -> Tensor:
    """Return the nodes of a batch that are contrasted."""
    return ids if ids.numel() <= max_nodes else ids[stream.uniform(ids) < max_nodes / ids.numel()]


def _contrast_term(config: Config, counts: Sequence[int], most_rows: int) -> list[int]:
    """Return the bytes of one term: anchors and weights to all, sums block by block, gradients of the anchors."""
    size, dim, total = len(counts), config.model.embedding_dim, sum(counts)
    if config.model.contrast.negatives == "batch":
        most_rows = max(counts)
    step = max(contrastive.LEAST_ANCHORS, contrastive.BLOCK_ELEMENTS // max(most_rows, 1))
    blocks = [min(step, total - start) for start in range(0, total, step)]
    summed = sum(ring_bytes(block * _FLOAT, size) for block in blocks) + ring_bytes(total * dim * _FLOAT, size)
    return [count * (dim + 1) * _FLOAT * (size - 1) + summed for count in counts]


def _denoiser(config: Config, data: TrainingData, shards: Sequence[Shard]) -> list[int]:
    """Return the bytes of the first step of all denoisers: sums over each row of the mesh, then over each column."""
    size, num_modalities = len(shards), len(data.features)
    num_item_shards = item_shards(
        config.model, batch_size=config.train.batch_size, num_items=data.shard.num_items, num_workers=size
    )
    num_rows = size // num_item_shards
    stream = PhaseContext(World.single(), config.run.seed, 0).stream("users")
    batches = EpochBatches(
        data.shard.user_ids, total=data.shard.num_users, batch_size=config.train.batch_size, stream=stream
    )
    users = data.shard.user_ids[batches[0]]
    sent = []
    for rank in range(size):
        row, column = divmod(rank, num_item_shards)
        of_row = shards[row * num_item_shards : (row + 1) * num_item_shards]
        batch = sum(int(torch.isin(users, shard.user_ids).sum()) for shard in of_row)
        bounds = shards[0].items.bounds[::num_rows]
        sums = _sums_of_row(config, batch) if num_item_shards > 1 else []
        bytes_of_row = num_modalities * sum(ring_bytes(count * _FLOAT, num_item_shards) for count in sums)
        gradients = num_modalities * _weights(config, bounds[column + 1] - bounds[column])
        sent.append(bytes_of_row + (ring_bytes(gradients * _FLOAT, num_rows) if num_rows > 1 else 0))
    return sent


def _sums_of_row(config: Config, batch: int) -> list[int]:
    """Return the values of each sum over a row of the mesh: into the hidden layer, its gradient, the signal, noise."""
    widths = config.model.diffusion.denoiser_hidden_dims
    sums = [batch * widths[0], batch * widths[-1], batch * config.model.embedding_dim]
    if config.model.diffusion.normalize_input:
        sums.append(batch)
    return [*sums, widths[0] ** 2] if config.model.denoiser.noise == "hidden" else sums


def _weights(config: Config, num_items: int) -> int:
    """Return how many weights a denoiser has at some items."""
    diffusion = config.model.diffusion
    denoiser = Denoiser(
        Columns.whole(num_items), diffusion.denoiser_hidden_dims, time_embedding_dim=diffusion.time_embedding_dim
    )
    return sum(parameter.numel() for parameter in denoiser.parameters())
