"""Memory of DiffMM, in bytes (models/common/costs.py): what denoise, rebuild and recommend hold at their peaks.

Symbols: B rows of a batch, C own items of a denoiser, h hidden, d embedding, M modalities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from diffmm_dist.diffusion import gaussian, noise
from diffmm_dist.diffusion.output import gram_pays
from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import ADAM_KEEPS, FLOAT, INT, ModelMemory, Parts, Share
from diffmm_dist.models.diffmm.model import DiffusionSettings
from diffmm_dist.models.diffmm.phases import REBUILT_USERS, ContrastSettings

_ROUNDED = 2  # bytes of a rounded operand
_NOISY_ARRAYS = 3  # B x C of noise, where rows are normalised
_DIRECT_ARRAYS = 2  # B x C: residual and its gradient
_SIGNAL_ARRAYS = 5  # B x d: the modality signal on both sides, and its gradients
_HIDDEN_ARRAYS = {"direct": 3.25, "gram": 5.25}  # B x h of the last layer
_LAYER_ARRAYS = 1.5  # B x h of each layer before it
_HIDDEN_NOISE_ARRAYS, _HIDDEN_NOISE_SQUARES = 1, 4  # B x h, and h x h of its covariance and factor
_STEPWISE_ARRAYS = 4  # users x C, of a reverse chain that goes step by step
_CHAIN_ARRAYS, _CHAIN_BLOCKS = 4, 4  # users x h; blocks of denoised values with what finds their best
_ENTRY_INTS = 8  # of an interaction of a batch of rows
_EDGE_INTS = 5  # of a generated edge: its pair, both directions and weights; 10 for both where a drop makes them differ
_PAIR_INTS = 9  # of a generated edge while its graph is built


@dataclass(frozen=True)
class Denoising:
    """Sizes of the denoisers on one worker.

    Attributes:
        widths: columns of each modality's features.
        matrix_projections: how many of them go through ``matrix``.
        item_shards: over how many workers each denoiser is spread.
        batch_size: B, of all workers.
        rounded: whether products round their operands.
    """

    widths: Sequence[int]
    matrix_projections: int
    item_shards: int
    batch_size: int
    rounded: bool


def memory(
    share: Share,
    denoising: Denoising,
    diffusion: DiffusionSettings,
    contrast: ContrastSettings,
    *,
    embedding_dim: int,
    num_layers: int,
    dgl: bool,
) -> ModelMemory:
    """Return what DiffMM needs.

    Args:
        share: the data.
        denoising: sizes of the denoisers.
        diffusion: their settings.
        contrast: the contrastive loss.
        embedding_dim: d.
        num_layers: L.
        dgl: whether DGL may propagate.
    """
    row, num_modalities = embedding_dim * FLOAT, len(denoising.widths)
    table = (share.users + share.items) * row
    projections = sum(denoising.widths) * row
    hidden = diffusion.denoiser_hidden_dims
    columns = -(-share.num_items // denoising.item_shards)
    weights = (columns * (hidden[0] + hidden[-1] + 1) + sum(a * b for a, b in pairwise(hidden))) * FLOAT
    denoisers = num_modalities * weights
    graphs = _generated_graphs(share, num_modalities, diffusion, dgl=dgl)
    kept = {
        "interactions": costs.interactions(share),
        "graph": costs.graph(share, dgl=dgl),
        "features": share.items * sum(denoising.widths) * FLOAT,
        "tables": ADAM_KEEPS * (table + projections),
        "denoisers": ADAM_KEEPS * denoisers,
        "denoised rows": 0 if denoising.item_shards == 1 else _rows_of_group(share, denoising),
        "generated graphs": graphs,
    }
    rebuilding = _rebuild_step(share, denoising, diffusion, columns)
    building = {"generated graphs": graphs + share.users * _topk(share, diffusion) * _PAIR_INTS * INT}
    messages = denoisers if share.num_workers > denoising.item_shards else 0  # all gradients side by side
    return ModelMemory(
        kept=kept,
        phases={
            "denoise": {
                "gradients": denoisers + messages,
                "items' signal": (num_modalities + 1) * columns * row,
                **_denoising_step(share, denoising, diffusion, columns, embedding_dim),
            },
            "rebuild": costs.largest(rebuilding, building),
            "recommend": _recommend(share, denoising, contrast, num_layers, embedding_dim, table + projections),
        },
        embedding=(share.users * (5 + num_modalities) + share.items * (5 + 2 * num_modalities)) * row
        + min(num_layers, 1) * table,
        width=embedding_dim,
        trained=denoisers + table + projections,
        largest=max(columns * max(hidden[0], hidden[-1]) * FLOAT, max(share.users, share.items) * row),
    )


def _denoising_step(share: Share, denoising: Denoising, diffusion: DiffusionSettings, columns: int, dim: int) -> Parts:
    """Return what one denoiser's step holds beside its gradients; the modalities' come one after the other."""
    hidden = diffusion.denoiser_hidden_dims
    groups = share.num_workers // denoising.item_shards
    batch = -(-min(denoising.batch_size, share.num_users) // groups)
    products = diffusion.products
    if products == "auto":
        products = "gram" if gram_pays(batch, columns, hidden[-1]) else "direct"
    gram, hidden_noise = products == "gram", diffusion.noise == "hidden"
    value = _ROUNDED if denoising.rounded else FLOAT
    noisy = 0 if hidden_noise else min(batch * columns, noise.BLOCK_ELEMENTS) * value
    if diffusion.normalize_input:
        noisy = min(batch * columns, noise.BLOCK_ELEMENTS) * _NOISY_ARRAYS * FLOAT
    arrays = _HIDDEN_ARRAYS[products] + _HIDDEN_NOISE_ARRAYS * hidden_noise + denoising.rounded
    layers = batch * (arrays * hidden[-1] + _LAYER_ARRAYS * sum(hidden[:-1]) + _SIGNAL_ARRAYS * dim) * FLOAT
    squares = max(hidden) ** 2 * (1 + _HIDDEN_NOISE_SQUARES * hidden_noise) * FLOAT
    rounded = columns * max(hidden[0], 2 * hidden[-1] * gram) * _ROUNDED if denoising.rounded else 0
    entries = -(-share.num_interactions * batch // (share.num_users * denoising.item_shards)) * _ENTRY_INTS * INT
    return {
        "noisy rows": noisy,
        "outputs": 0 if gram else batch * columns * _DIRECT_ARRAYS * FLOAT,
        "hidden layers": int(layers),
        "products of weights": squares
        + rounded
        + columns * (dim + 1) * FLOAT * gram
        + columns * hidden[0] * FLOAT * hidden_noise,
        "batch": entries,
    }


def _rebuild_step(share: Share, denoising: Denoising, diffusion: DiffusionSettings, columns: int) -> Parts:
    """Return what a batch of users holds while their rows are denoised and the best items found."""
    hidden = diffusion.denoiser_hidden_dims
    users = min(REBUILT_USERS, -(-share.num_users * denoising.item_shards // share.num_workers))
    lists = users * (_topk(share, diffusion) + 1) * 12 * INT
    if diffusion.sampling_noise or diffusion.normalize_input:
        return {"denoised rows of a batch": users * columns * _STEPWISE_ARRAYS * FLOAT + lists}
    values = min(users * columns, gaussian.BLOCK_ELEMENTS) * _CHAIN_BLOCKS + users * max(hidden) * _CHAIN_ARRAYS
    if diffusion.sampling_steps > 0:
        values += min(users * columns, noise.BLOCK_ELEMENTS)
    chains = len(denoising.widths) * hidden[0] * hidden[-1] * FLOAT
    if denoising.rounded:
        chains += columns * (hidden[-1] * (len(denoising.widths) + 1) + hidden[0]) * _ROUNDED
    return {"reverse chains": values * FLOAT + chains + lists}


def _topk(share: Share, diffusion: DiffusionSettings) -> int:
    return min(diffusion.rebuild_topk, share.num_items)


def _generated_graphs(share: Share, num_modalities: int, diffusion: DiffusionSettings, *, dgl: bool) -> int:
    """Return the bytes of every modality's edges: its items, and their graph in both directions after the drop."""
    keep = diffusion.edge_keep_prob
    edges = 1 + (_EDGE_INTS if keep == 1 else 2 + 2 * _EDGE_INTS * keep) + costs.DGL_INTS * keep * dgl
    per_user = _topk(share, diffusion) * edges + 10
    return int(num_modalities * (share.users * per_user + (share.items + share.halo) * 8) * INT)


def _recommend(
    share: Share, denoising: Denoising, contrast: ContrastSettings, num_layers: int, dim: int, gradients: int
) -> Parts:
    """Return what a recommendation step holds where it holds most.

    That is at the end of the forward pass, where all intermediate rows still have their names; or at the last contrast,
    which finds the gradients of the others; or behind it, at the loss over the batch.
    """
    count, row = len(denoising.widths), dim * FLOAT
    nodes = share.users + share.items
    projected = share.items * (count + denoising.matrix_projections) * row
    if contrast.contrastive_weight == 0:
        forward, later, similar = nodes * (5 + count) * row, nodes * (3 + count) * row, 0
    else:
        pairs = count if contrast.contrastive_anchor == "main" else count * (count - 1) // 2
        left = 0 if contrast.negatives == "batch" else pairs
        forward = nodes * ((3, 5, 7)[min(num_layers, 2)] + 3 * count) * row
        later, similar = nodes * (3 + 2 * count + left) * row, _similarities(share, denoising, contrast)
    held = {"propagation": later + projected, "contrast": similar}
    return costs.largest(
        {"gradients": gradients, **costs.largest({"propagation": forward + projected}, held)},
        costs.ranking_phase(
            share,
            gradients=gradients,
            step={"propagation": later + projected},
            dim=dim,
            batch=denoising.batch_size,
        ),
    )


def _similarities(share: Share, denoising: Denoising, contrast: ContrastSettings) -> int:
    """Return the bytes of the similarities that are held at a time."""
    if contrast.contrastive_weight == 0:
        return 0
    nodes = max(share.users, share.items)
    anchors = min(denoising.batch_size, max(share.num_users, share.num_items), contrast.max_nodes or share.num_users)
    return costs.similarities(anchors, min(nodes, anchors) if contrast.negatives == "batch" else nodes)


def _rows_of_group(share: Share, denoising: Denoising) -> int:
    """Return the bytes of the interactions of a mesh row's users with the items of a column, and of their exchange."""
    users = -(-share.num_users * denoising.item_shards // share.num_workers)
    return (share.interactions * 9 + 2 * users) * INT
