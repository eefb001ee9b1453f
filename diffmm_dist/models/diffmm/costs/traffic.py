"""What the workers of DiffMM send in a step, predicted from the data and the cuts alone (models/common/work.py).

W workers, I items, M modalities, L layers, d embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.diffusion.denoiser import TRAFFIC as DENOISER
from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.graph import relation
from diffmm_dist.losses import contrastive
from diffmm_dist.models.base import PhaseContext
from diffmm_dist.models.common.costs import FLOAT
from diffmm_dist.models.common.work import Cuts, Traffic, first_batch, halo_rows_sent, owned, real_rows_sent, sent_bytes
from diffmm_dist.models.diffmm.costs.work import num_pairs, propagation_products
from diffmm_dist.models.diffmm.model import DiffMM, DiffusionSettings
from diffmm_dist.models.diffmm.phases import ContrastSettings
from diffmm_dist.parallel.collectives import ring_bytes
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.world import World


def traffic(
    cuts: Cuts,
    diffusion: DiffusionSettings,
    contrast: ContrastSettings,
    *,
    embedding_dim: int,
    num_layers: int,
    item_shards: int,
) -> list[Traffic]:
    """Return what each worker sends in the first step, with random generated graphs.

    Args:
        cuts: the data and how they are cut.
        diffusion: settings of the denoisers.
        contrast: the contrastive loss.
        embedding_dim: d.
        num_layers: L.
        item_shards: over how many workers each denoiser is spread.
    """
    propagation = _propagation(cuts, diffusion, contrast, num_layers, embedding_dim)
    contrasts = _contrast(cuts, contrast, embedding_dim)
    denoisers = _denoiser(cuts, diffusion, embedding_dim, item_shards)
    return [
        {
            "recommend": {relation.TRAFFIC: propagation[rank], contrastive.TRAFFIC: contrasts[rank]},
            "denoise": {DENOISER: denoisers[rank]},
        }
        for rank in range(len(cuts.shards))
    ]


def settle(model: DiffMM) -> None:
    """Put random generated graphs in place of the empty ones that a new model has."""
    num_modalities, topk = model.generated_items.shape[1:]
    for modality in range(num_modalities):
        model.generated_items[:, modality] = random_edges(model.shard.user_ids, modality, topk, model.shard.num_items)
    model.use_generated_items(0)


def random_edges(user_ids: Tensor, modality: int, topk: int, num_items: int) -> Tensor:
    """Return random item ids, keyed by user and modality: int64 (users, topk)."""
    streams = (RandomStream.of("bench", modality, place) for place in range(topk))
    return torch.stack([stream.integers(user_ids, num_items) for stream in streams], dim=1)


def _propagation(
    cuts: Cuts, diffusion: DiffusionSettings, contrast: ContrastSettings, num_layers: int, dim: int
) -> list[int]:
    """Return the bytes of all products of one recommendation step, forward and backward."""
    user_ids, num_items, num_modalities = cuts.data.shard.user_ids, cuts.data.shard.num_items, len(cuts.data.features)
    topk = min(diffusion.rebuild_topk, num_items)
    users = user_ids.repeat_interleave(topk)
    generated = [
        halo_rows_sent(users, random_edges(user_ids, modality, topk, num_items).reshape(-1), cuts.shards)
        for modality in range(num_modalities)
    ]
    contrasted = contrast.contrastive_weight > 0
    of_real, of_generated = propagation_products(num_modalities, num_layers, contrasted=contrasted)
    return [
        sent_bytes(of_real * sum(rows) + of_generated * sum(sum(of_graph[rank]) for of_graph in generated), dim)
        for rank, rows in enumerate(real_rows_sent(cuts))
    ]


def _contrast(cuts: Cuts, contrast: ContrastSettings, dim: int) -> list[int]:
    """Return the bytes of all contrastive terms of the first batch."""
    shards = cuts.shards
    users, items = first_batch(cuts)
    if contrast.max_nodes is not None:
        batch_stream = PhaseContext(World.single(), cuts.seed, 0).stream("batch").child(0)
        users = _sampled(users, contrast.max_nodes, batch_stream.child("users"))
        items = _sampled(items, contrast.max_nodes, batch_stream.child("items"))
    own_users = owned(users, [shard.user_ids for shard in shards])
    own_items = owned(items, [shard.own_item_ids for shard in shards])
    sides = ((own_users, max(shards[0].users.sizes)), (own_items, max(shards[0].items.sizes)))
    in_batch = contrast.negatives == "batch"
    terms = [_contrast_term(counts, max(counts) if in_batch else most, dim) for counts, most in sides]
    pairs = num_pairs(contrast, len(cuts.data.features))
    return [pairs * sum(term[rank] for term in terms) for rank in range(len(shards))]


def _sampled(ids: Tensor, max_nodes: int, stream: RandomStream) -> Tensor:
    """Return the nodes of a batch that are contrasted."""
    return ids if ids.numel() <= max_nodes else ids[stream.uniform(ids) < max_nodes / ids.numel()]


def _contrast_term(counts: Sequence[int], most_rows: int, dim: int) -> list[int]:
    """Return the bytes of one term: anchors and weights to all, sums block by block, gradients of the anchors."""
    size, total = len(counts), sum(counts)
    step = max(contrastive.LEAST_ANCHORS, contrastive.BLOCK_ELEMENTS // max(most_rows, 1))
    blocks = [min(step, total - start) for start in range(0, total, step)]
    summed = sum(ring_bytes(block * FLOAT, size) for block in blocks) + ring_bytes(total * dim * FLOAT, size)
    return [count * (dim + 1) * FLOAT * (size - 1) + summed for count in counts]


def _denoiser(cuts: Cuts, diffusion: DiffusionSettings, dim: int, item_shards: int) -> list[int]:
    """Return the bytes of the first step of all denoisers: sums over each row of the mesh, then over each column."""
    shards, data, num_modalities = cuts.shards, cuts.data, len(cuts.data.features)
    num_rows = len(shards) // item_shards
    stream = PhaseContext(World.single(), cuts.seed, 0).stream("users")
    batches = EpochBatches(data.shard.user_ids, total=data.shard.num_users, batch_size=cuts.batch_size, stream=stream)
    users = data.shard.user_ids[batches[0]]
    sent = []
    for rank in range(len(shards)):
        row, column = divmod(rank, item_shards)
        of_row = shards[row * item_shards : (row + 1) * item_shards]
        batch = sum(int(torch.isin(users, shard.user_ids).sum()) for shard in of_row)
        bounds = shards[0].items.bounds[::num_rows]
        sums = _sums_of_row(diffusion, batch, dim) if item_shards > 1 else []
        bytes_of_row = num_modalities * sum(ring_bytes(count * FLOAT, item_shards) for count in sums)
        gradients = num_modalities * _weights(diffusion, bounds[column + 1] - bounds[column])
        sent.append(bytes_of_row + (ring_bytes(gradients * FLOAT, num_rows) if num_rows > 1 else 0))
    return sent


def _sums_of_row(diffusion: DiffusionSettings, batch: int, dim: int) -> list[int]:
    """Return the values of each sum over a row of the mesh: into the hidden layer, its gradient, the signal, noise."""
    widths = diffusion.denoiser_hidden_dims
    sums = [batch * widths[0], batch * widths[-1], batch * dim]
    if diffusion.normalize_input:
        sums.append(batch)
    return [*sums, widths[0] ** 2] if diffusion.noise == "hidden" else sums


def _weights(diffusion: DiffusionSettings, num_items: int) -> int:
    """Return how many weights a denoiser has at some items."""
    denoiser = Denoiser(
        Columns.whole(num_items), diffusion.denoiser_hidden_dims, time_embedding_dim=diffusion.time_embedding_dim
    )
    return sum(parameter.numel() for parameter in denoiser.parameters())
