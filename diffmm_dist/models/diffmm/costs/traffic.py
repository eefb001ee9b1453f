"""What the workers of DiffMM send in a step, predicted from the data and the cuts alone (models/common/work.py).

W workers, I items, M modalities, L layers, d embedding.
"""

import torch
from torch import Tensor

from diffmm_dist.diffusion.denoiser import TRAFFIC as DENOISER
from diffmm_dist.graph import layout, relation
from diffmm_dist.losses import contrastive
from diffmm_dist.models.base import PhaseContext
from diffmm_dist.models.common.denoising import DiffusionSettings
from diffmm_dist.models.common.denoising_costs import denoiser_traffic
from diffmm_dist.models.common.work import (
    Cuts,
    Traffic,
    contrast_traffic,
    halo_rows_sent,
    layout_traffic,
    real_rows_sent,
    real_target_rows_sent,
    sent_bytes,
    table_traffic,
)
from diffmm_dist.models.diffmm.costs.work import num_targets, products_of_batch, propagation_products
from diffmm_dist.models.diffmm.model import DiffMM
from diffmm_dist.models.diffmm.phases import ContrastSettings
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
    propagation: dict[str, list[int]]
    if cuts.by_columns:
        tables = table_traffic(cuts, embedding_dim)
        propagation = {layout.TRAFFIC: _layout(cuts, contrast, embedding_dim), layout.TABLES: tables}
    else:
        propagation = {relation.TRAFFIC: _propagation(cuts, diffusion, contrast, num_layers, embedding_dim)}
    contrasts = _contrast(cuts, contrast, embedding_dim)
    denoisers = _denoiser(cuts, diffusion, embedding_dim, item_shards)
    return [
        {
            "recommend": {purpose: sent[rank] for purpose, sent in propagation.items()}
            | {contrastive.TRAFFIC: contrasts[rank]},
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
    last = products_of_batch(contrast, num_modalities, num_layers)
    return [
        sent_bytes(
            cuts,
            (of_real - last) * sum(rows)
            + last * few
            + of_generated * sum(sum(of_graph[rank]) for of_graph in generated),
            dim,
        )
        for rank, (rows, few) in enumerate(zip(real_rows_sent(cuts), real_target_rows_sent(cuts), strict=True))
    ]


def _layout(cuts: Cuts, contrast: ContrastSettings, dim: int) -> list[int]:
    """Return the bytes of the items' features on their way to columns, and of what is read on its way back."""
    modalities = len(cuts.data.features)
    views = modalities if contrast.contrastive_weight > 0 else 0
    by_owners, whole = (views, 0) if contrast.negatives == "batch" else (0, views)
    return layout_traffic(cuts, dim, item_tables=modalities, read=2, read_by_owners=by_owners, whole=whole)


def _contrast(cuts: Cuts, contrast: ContrastSettings, dim: int) -> list[int]:
    """Return the bytes of all contrastive terms of the first batch."""
    targets = num_targets(contrast, len(cuts.data.features))
    if not targets:
        return [0] * len(cuts.shards)
    in_batch = contrast.negatives == "batch"
    return contrast_traffic(cuts, dim, in_batch=in_batch, max_nodes=contrast.max_nodes, targets=targets)


def _denoiser(cuts: Cuts, diffusion: DiffusionSettings, dim: int, item_shards: int) -> list[int]:
    """Return the bytes of the first step of all denoisers."""
    shards = cuts.shards
    return denoiser_traffic(
        [shard.user_ids for shard in shards],
        shards[0].items.bounds,
        diffusion,
        count=len(cuts.data.features),
        dim=dim,
        column_shards=item_shards,
        batch_size=cuts.batch_size,
        stream=PhaseContext(World.single(), cuts.seed, 0).stream("users"),
    )
