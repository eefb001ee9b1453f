"""Memory of DiffMM, in bytes (models/common/costs.py): what denoise, rebuild and recommend hold at their peaks.

Symbols: B rows of a batch, C own items of a denoiser, h hidden, d embedding, M modalities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import ADAM_KEEPS, FLOAT, INT, ModelMemory, Parts, Share
from diffmm_dist.models.common.denoising import DiffusionSettings
from diffmm_dist.models.common.denoising_costs import (
    Denoising,
    denoising_step,
    largest_weight,
    rebuild_step,
    rows_of_group,
    topk,
    weight_bytes,
)
from diffmm_dist.models.diffmm.costs.work import num_targets
from diffmm_dist.models.diffmm.phases import ContrastSettings

_EDGE_INTS = 5  # of a generated edge: its pair, both directions and weights; 10 for both where a drop makes them differ
_PAIR_INTS = 9  # of a generated edge while its graph is built


@dataclass(frozen=True)
class Features:
    """The items' features.

    Attributes:
        widths: columns of each modality's.
        matrix_projections: how many of them go through ``matrix``.
    """

    widths: Sequence[int]
    matrix_projections: int


def memory(
    share: Share,
    graph: Share,
    denoising: Denoising,
    diffusion: DiffusionSettings,
    contrast: ContrastSettings,
    features: Features,
    *,
    embedding_dim: int,
    num_layers: int,
    dgl: bool,
    propagate_every: int = 1,
) -> ModelMemory:
    """Return what DiffMM needs.

    Args:
        share: the data.
        graph: what of it is in the worker's graph.
        denoising: sizes of the denoisers.
        diffusion: their settings.
        contrast: the contrastive loss.
        features: of the items.
        embedding_dim: d.
        num_layers: L.
        dgl: whether DGL may propagate.
        propagate_every: batches of interactions that a step covers.
    """
    row, num_modalities = embedding_dim * FLOAT, denoising.count
    table, projections = (share.users + share.items) * row, sum(features.widths) * row
    columns = -(-share.num_items // denoising.item_shards)
    denoisers = num_modalities * weight_bytes(columns, diffusion)
    graphs = _generated_graphs(graph, num_modalities, diffusion, dgl=dgl)
    kept = {
        "interactions": costs.interactions(share),
        "graph": costs.graph(graph, dgl=dgl),
        "features": share.items * sum(features.widths) * FLOAT,
        "tables": ADAM_KEEPS * (table + projections),
        "denoisers": ADAM_KEEPS * denoisers,
        "denoised rows": 0 if denoising.item_shards == 1 else rows_of_group(share, denoising),
        "generated graphs": graphs,
    }
    building = {"generated graphs": graphs + graph.users * topk(share, diffusion) * _PAIR_INTS * INT}
    steps = _Steps(denoising.count, contrast, denoising.batch_size, propagate_every)
    whole_views = num_modalities if contrast.contrastive_weight > 0 and contrast.negatives == "all" else 0
    travelling = max(num_modalities * share.items, whole_views * (share.users + share.items))
    return ModelMemory(
        kept=kept,
        phases={
            "denoise": _denoise(share, denoising, diffusion, columns, embedding_dim),
            "rebuild": costs.largest(rebuild_step(share, denoising, diffusion, columns), building),
            "recommend": {"messages": costs.layout_messages(share, graph, travelling, embedding_dim)}
            | _recommend(share, steps, features.matrix_projections, num_layers, embedding_dim, table + projections),
        },
        embedding=_embedding(share, num_modalities, row) + min(num_layers, 1) * table,
        width=embedding_dim,
        trained=denoisers + table + projections,
        largest=max(largest_weight(columns, diffusion), max(share.users, share.items) * row),
    )


def _denoise(share: Share, denoising: Denoising, diffusion: DiffusionSettings, columns: int, dim: int) -> Parts:
    """Return what a denoising step holds."""
    gradients = denoising.count * weight_bytes(columns, diffusion)
    messages = gradients if share.num_workers > denoising.item_shards else 0  # all of them side by side
    return {
        "gradients": gradients + messages,
        "items' signal": (denoising.count + 1) * columns * dim * FLOAT,
        **denoising_step(share, denoising, diffusion, columns, dim),
    }


def _embedding(share: Share, num_modalities: int, row: int) -> int:
    """Return the bytes of the tables from which the final embeddings are made, but for those of the layers."""
    return (share.users * (5 + num_modalities) + share.items * (5 + 2 * num_modalities)) * row


def _generated_graphs(share: Share, num_modalities: int, diffusion: DiffusionSettings, *, dgl: bool) -> int:
    """Return the bytes of every modality's edges: its items, and their graph in both directions after the drop."""
    keep = diffusion.edge_keep_prob
    edges = 1 + (_EDGE_INTS if keep == 1 else 2 + 2 * _EDGE_INTS * keep) + costs.DGL_INTS * keep * dgl
    per_user = topk(share, diffusion) * edges + 10
    return int(num_modalities * (share.users * per_user + (share.items + share.halo) * 8) * INT)


class _Steps(NamedTuple):
    """What recommendation steps are.

    Attributes:
        modalities: M.
        contrast: the contrastive loss.
        batch_size: B.
        num_batches: that a step covers.
    """

    modalities: int
    contrast: ContrastSettings
    batch_size: int
    num_batches: int


def _recommend(
    share: Share, steps: _Steps, matrix_projections: int, num_layers: int, dim: int, gradients: int
) -> Parts:
    """Return what a recommendation step holds where it holds most.

    That is at the end of the forward pass, where all intermediate rows still have their names; or at the last contrast,
    which finds the gradients of the others; or behind it, at the loss over the batch.
    """
    contrast, count, row = steps.contrast, steps.modalities, dim * FLOAT
    nodes = share.users + share.items
    projected = share.items * (count + matrix_projections) * row
    if contrast.contrastive_weight == 0:
        forward, later, similar = nodes * (5 + count) * row, nodes * (3 + count) * row, 0
    else:
        pairs = count if contrast.contrastive_anchor == "main" else count * (count - 1) // 2
        left = 0 if contrast.negatives == "batch" else pairs * steps.num_batches
        forward = nodes * ((3, 5, 7)[min(num_layers, 2)] + 3 * count) * row
        later, similar = nodes * (3 + 2 * count + left) * row, _similarities(share, steps)
    held = {"propagation": later + projected, "contrast": similar}
    return costs.largest(
        {"gradients": gradients, **costs.largest({"propagation": forward + projected}, held)},
        costs.ranking_phase(
            share,
            gradients=gradients,
            step={"propagation": later + projected},
            dim=dim,
            batch=steps.batch_size * steps.num_batches,
        ),
    )


def _similarities(share: Share, steps: _Steps) -> int:
    """Return the bytes of the similarities that are held at a time: of all terms, where they share messages."""
    contrast = steps.contrast
    if contrast.contrastive_weight == 0:
        return 0
    nodes = max(share.users, share.items)
    anchors = min(steps.batch_size, max(share.num_users, share.num_items), contrast.max_nodes or share.num_users)
    if contrast.negatives == "all":
        return costs.similarities(anchors, nodes)
    terms = 2 * sum(num_targets(contrast, steps.modalities)) * steps.num_batches
    return terms * costs.similarities(anchors, min(nodes, anchors))
