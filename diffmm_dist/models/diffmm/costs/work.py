"""What DiffMM computes and moves in an epoch (models/common/work.py).

Symbols: U users, I items, E interactions, M modalities, L layers, d embedding, W workers; a mesh of D x S workers, of
which each has C = I / S items and the part b = B / D of a batch of users in the denoisers.
"""

from collections.abc import Mapping

from diffmm_dist.diffusion.output import gram_pays
from diffmm_dist.models.common.costs import FLOAT, Share
from diffmm_dist.models.common.work import (
    ADAM_ACCESSES,
    EXCHANGES_PER_PRODUCT,
    RANKING_EXCHANGES,
    Work,
    contrast_flop,
    gathered_bytes,
    input_flop,
    output_flop,
    product_flop,
)
from diffmm_dist.models.diffmm.costs.memory import Denoising
from diffmm_dist.models.diffmm.model import DiffusionSettings
from diffmm_dist.models.diffmm.phases import ContrastSettings

_NOISE_READS = 2  # of each noisy value by each denoiser; written once for all
_OUTPUT_ACCESSES = 6  # of each predicted value: written, scaled, multiplied, read by two products
_ROW_ACCESSES = 60  # of each row of an N x d array in a recommendation step, besides the gathered ones
_EXCHANGES_PER_TERM = 5  # of the contrast: anchors, weights, sums of a block, gradients, counts
_SUMS_OF_ROW = 3  # of a denoiser: into the hidden layer, its gradient, the modality signal


def work(
    share: Share,
    denoising: Denoising,
    diffusion: DiffusionSettings,
    contrast: ContrastSettings,
    *,
    embedding_dim: int,
    num_layers: int,
) -> Mapping[str, Work]:
    """Return what one worker does in an epoch, by phase.

    Args:
        share: the data.
        denoising: sizes of the denoisers.
        diffusion: their settings.
        contrast: the contrastive loss.
        embedding_dim: d.
        num_layers: L.
    """
    return {
        "denoise": _denoise(share, denoising, diffusion, embedding_dim),
        "rebuild": _rebuild(share, denoising, diffusion),
        "recommend": _recommend(share, denoising, diffusion, contrast, num_layers, embedding_dim),
    }


def _denoise(share: Share, denoising: Denoising, diffusion: DiffusionSettings, dim: int) -> Work:
    first, last = diffusion.denoiser_hidden_dims[0], diffusion.denoiser_hidden_dims[-1]
    modalities, shards = len(denoising.widths), denoising.item_shards
    items, batch = share.num_items / shards, denoising.batch_size / (share.num_workers // shards)
    steps = -(-share.num_users // denoising.batch_size)
    hidden_noise = diffusion.noise == "hidden"
    gram = diffusion.products == "gram" or (
        diffusion.products == "auto" and gram_pays(round(batch), round(items), last)
    )
    into = input_flop(batch, items, first, hidden_noise=hidden_noise)
    out = output_flop(batch, items, last, dim, gram=gram)
    weights = items * (first + last + 1) * ADAM_ACCESSES
    noise = 0 if hidden_noise else batch * items * (1 + modalities * _NOISE_READS)
    output = 0 if gram else batch * items * _OUTPUT_ACCESSES
    step_bytes = (noise + modalities * (weights + output)) * FLOAT
    exchanges = modalities * (_SUMS_OF_ROW if shards > 1 else 0) + (share.num_workers > shards)
    return Work(steps, steps * modalities * (into + out), steps * step_bytes, steps * exchanges)


def _rebuild(share: Share, denoising: Denoising, diffusion: DiffusionSettings) -> Work:
    modalities, shards = len(denoising.widths), denoising.item_shards
    items, users = share.num_items / shards, share.num_users / (share.num_workers // shards)
    flops = modalities * product_flop(users, items, diffusion.denoiser_hidden_dims[-1])
    return Work(1, flops, modalities * users * items * 2 * FLOAT)


def _recommend(
    share: Share,
    denoising: Denoising,
    diffusion: DiffusionSettings,
    contrast: ContrastSettings,
    num_layers: int,
    dim: int,
) -> Work:
    modalities, size, batch = len(denoising.widths), share.num_workers, denoising.batch_size
    steps = -(-share.num_interactions // batch)
    contrasted = contrast.contrastive_weight > 0
    real, of_each = propagation_products(modalities, num_layers, contrasted=contrasted)
    generated = modalities * of_each
    edges = share.num_interactions * real + share.num_users * diffusion.rebuild_topk * generated
    nodes = (share.num_users + share.num_items) / size
    pairs = num_pairs(contrast, modalities)
    anchors = min(batch, contrast.max_nodes or batch)
    compared = 2 * anchors / size if contrast.negatives == "batch" else nodes
    flops = pairs * contrast_flop(anchors, compared, dim)
    exchanges = (real + generated) * EXCHANGES_PER_PRODUCT + 2 * pairs * _EXCHANGES_PER_TERM + RANKING_EXCHANGES
    moved = gathered_bytes(edges / size, dim) + nodes * dim * _ROW_ACCESSES * FLOAT
    return Work(steps, steps * flops, steps * moved, steps * exchanges if size > 1 else 0)


def num_pairs(contrast: ContrastSettings, modalities: int) -> int:
    """Return how many pairs of views are contrasted."""
    if contrast.contrastive_weight == 0:
        return 0
    return modalities if contrast.contrastive_anchor == "main" else modalities * (modalities - 1) // 2


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
