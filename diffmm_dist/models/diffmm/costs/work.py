"""What DiffMM computes and moves in an epoch (models/common/work.py).

Symbols: U users, I items, E interactions, M modalities, L layers, d embedding, W workers; a mesh of D x S workers, of
which each has C = I / S items and the part b = B / D of a batch of users in the denoisers.
"""

from collections.abc import Mapping

from diffmm_dist.models.common.costs import FLOAT, Share
from diffmm_dist.models.common.denoising import DiffusionSettings
from diffmm_dist.models.common.denoising_costs import Denoising, denoise_work, rebuild_work
from diffmm_dist.models.common.work import (
    EXCHANGES_PER_PRODUCT,
    TARGET_EXCHANGES,
    Work,
    contrast_exchanges,
    contrast_flop,
    layout_exchanges,
    num_anchors,
    products_of_few,
    propagated_bytes,
    ranking_exchanges,
)
from diffmm_dist.models.diffmm.phases import ContrastSettings

_REPLICAS_EXCHANGES = 1  # the sum of the gradients of projections and modality weights
_ROW_ACCESSES = 60  # of each row of an N x d array in a recommendation step, besides the gathered ones


def work(
    share: Share,
    denoising: Denoising,
    diffusion: DiffusionSettings,
    contrast: ContrastSettings,
    *,
    embedding_dim: int,
    num_layers: int,
    by_columns: bool = False,
    read_edges: int | None = None,
    propagate_every: int = 1,
) -> Mapping[str, Work]:
    """Return what one worker does in an epoch, by phase.

    Args:
        share: the data.
        denoising: sizes of the denoisers.
        diffusion: their settings.
        contrast: the contrastive loss.
        embedding_dim: d.
        num_layers: L.
        by_columns: tables propagate by columns.
        read_edges: edges to the rows that a step reads; None counts all.
        propagate_every: batches of interactions that a step covers.
    """
    products = propagation_products(denoising.count, num_layers, contrasted=contrast.contrastive_weight > 0)
    last = products_of_batch(contrast, denoising.count, num_layers)
    saved = last - products_of_few(last, share, read_edges)
    return {
        "denoise": denoise_work(share, denoising, diffusion, embedding_dim),
        "rebuild": rebuild_work(share, denoising, diffusion),
        "recommend": _recommend(
            share, denoising, diffusion, contrast, products, saved, embedding_dim, by_columns, propagate_every
        ),
    }


def _recommend(
    share: Share,
    denoising: Denoising,
    diffusion: DiffusionSettings,
    contrast: ContrastSettings,
    products: tuple[float, float],
    saved: float,
    dim: int,
    by_columns: bool,
    propagate_every: int,
) -> Work:
    """Return the work of the recommendation phase.

    A step has so many products over the real graph and over each generated one, and of those over the real graph the
    edges of ``saved`` are not touched.
    """
    modalities, size, batch = denoising.count, share.num_workers, denoising.batch_size
    steps = -(-share.num_interactions // (batch * propagate_every))
    real, generated = products[0], modalities * products[1]
    edges = share.num_interactions * (real - saved) + share.num_users * diffusion.rebuild_topk * generated
    nodes = (share.num_users + share.num_items) / size
    targets = num_targets(contrast, modalities)
    anchors = num_anchors(batch, contrast.max_nodes)
    compared = 2 * anchors / size if contrast.negatives == "batch" else nodes
    flops = propagate_every * sum(targets) * contrast_flop(anchors, compared, dim)
    if by_columns:
        of_products: float = layout_exchanges(steps, entering=True)
    else:
        of_products = steps * ((real + generated) * EXCHANGES_PER_PRODUCT + TARGET_EXCHANGES)
    terms = 2 * len(targets) * propagate_every
    of_contrast = contrast_exchanges(terms, in_batch=contrast.negatives == "batch")
    exchanges = (
        of_products
        + steps * (of_contrast + _REPLICAS_EXCHANGES)
        + ranking_exchanges(
            steps, batch * propagate_every, contrasted=bool(targets), sampled=anchors < batch, by_columns=by_columns
        )
    )
    moved = propagated_bytes(edges, dim, num_workers=size, by_columns=by_columns) + nodes * dim * _ROW_ACCESSES * FLOAT
    return Work(steps, steps * flops, steps * moved, exchanges if size > 1 else 0)


def num_targets(contrast: ContrastSettings, modalities: int) -> list[int]:
    """Return, for each view whose nodes are anchors, with how many others it is contrasted."""
    if contrast.contrastive_weight == 0:
        return []
    return [modalities] if contrast.contrastive_anchor == "main" else list(range(modalities - 1, 0, -1))


def propagation_products(modalities: int, layers: int, *, contrasted: bool) -> tuple[float, float]:
    """Return how many sparse products a recommendation step takes over the real graph and over each generated one.

    X is half a product, since only users need it; then follow X + Y and the layers of H and of each view. Z and a
    view's first product have one direction in common.

    Args:
        modalities: M.
        layers: L.
        contrasted: whether the views are computed.
    """
    return 1.5 + layers * (1 + contrasted * modalities), 1.5 if contrasted else 1.0


def products_of_batch(contrast: ContrastSettings, modalities: int, layers: int) -> int:
    """Return of how many products over the real graph a batch reads its own rows alone.

    That is the last one of H, and of every view that is contrasted in the batch.
    """
    in_batch = contrast.contrastive_weight > 0 and contrast.negatives == "batch"
    return min(layers, 1) * (1 + in_batch * modalities)
