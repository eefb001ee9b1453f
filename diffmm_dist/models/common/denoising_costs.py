"""Memory and work of denoisers, in the terms of costs.py and work.py: of a step that trains them, and of a rebuild.

The share that they take counts what is denoised: rows as users, columns as items, stored entries as interactions.

Symbols: B rows of a batch, C own columns of a denoiser, h hidden, d embedding; a mesh of D x S workers, of which each
has C columns and the part b = B / D of a batch of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.diffusion import gaussian, noise
from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.diffusion.output import gram_pays
from diffmm_dist.models.common.costs import FLOAT, INT, Parts, Share
from diffmm_dist.models.common.denoising import REBUILT_ROWS, DiffusionSettings
from diffmm_dist.models.common.work import ADAM_ACCESSES, Work, input_flop, output_flop, product_flop
from diffmm_dist.parallel.collectives import ring_bytes
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.random import RandomStream

_ROUNDED = 2  # bytes of a rounded operand
_NOISY_ARRAYS = 3  # B x C of noise, where rows are normalised
_DIRECT_ARRAYS = 2  # B x C: residual and its gradient
_SIGNAL_ARRAYS = 5  # B x d: the modality signal on both sides, and its gradients
_HIDDEN_ARRAYS = {"direct": 3.25, "gram": 5.25}  # B x h of the last layer
_LAYER_ARRAYS = 1.5  # B x h of each layer before it
_HIDDEN_NOISE_ARRAYS, _HIDDEN_NOISE_SQUARES = 1, 4  # B x h, and h x h of its covariance and factor
_STEPWISE_ARRAYS = 4  # users x C, of a reverse chain that goes step by step
_NORM_ARRAYS = 4  # rows x h: what the norms of a chain follow from
_CHAIN_ARRAYS, _CHAIN_BLOCKS = 4, 4  # users x h; blocks of denoised values with what finds their best
_ENTRY_INTS = 8  # of an interaction of a batch of rows
_NOISE_READS = 2  # of each noisy value by each denoiser; written once for all
_OUTPUT_ACCESSES = 6  # of each predicted value: written, scaled, multiplied, read by two products


@dataclass(frozen=True)
class Denoising:
    """Sizes of the denoisers on one worker.

    Attributes:
        count: how many there are.
        item_shards: over how many workers each denoiser is spread.
        batch_size: B, of all workers.
        rounded: whether products round their operands.
    """

    count: int
    item_shards: int
    batch_size: int
    rounded: bool


def weight_bytes(columns: int, diffusion: DiffusionSettings) -> int:
    """Return the bytes of a denoiser's weights at so many columns."""
    hidden = diffusion.denoiser_hidden_dims
    return (columns * (hidden[0] + hidden[-1] + 1) + sum(a * b for a, b in pairwise(hidden))) * FLOAT


def largest_weight(columns: int, diffusion: DiffusionSettings) -> int:
    """Return the bytes of the largest of them."""
    return columns * max(diffusion.denoiser_hidden_dims[0], diffusion.denoiser_hidden_dims[-1]) * FLOAT


def denoising_step(share: Share, denoising: Denoising, diffusion: DiffusionSettings, columns: int, dim: int) -> Parts:
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


def rebuild_step(share: Share, denoising: Denoising, diffusion: DiffusionSettings, columns: int) -> Parts:
    """Return what a batch of users holds while their rows are denoised and the best items found."""
    hidden = diffusion.denoiser_hidden_dims
    users = min(REBUILT_ROWS, -(-share.num_users * denoising.item_shards // share.num_workers))
    lists = users * (topk(share, diffusion) + 1) * 12 * INT
    if diffusion.sampling_noise:
        return {"denoised rows of a batch": users * columns * _STEPWISE_ARRAYS * FLOAT + lists}
    values = min(users * columns, gaussian.BLOCK_ELEMENTS) * _CHAIN_BLOCKS + users * max(hidden) * _CHAIN_ARRAYS
    if diffusion.sampling_steps > 0:
        values += min(users * columns, noise.BLOCK_ELEMENTS)
    chains = denoising.count * hidden[0] * hidden[-1] * FLOAT
    if diffusion.normalize_input:
        values += users * hidden[-1] * _NORM_ARRAYS
        chains += denoising.count * hidden[-1] ** 2 * FLOAT
    if denoising.rounded:
        chains += columns * (hidden[-1] * (denoising.count + 1) + hidden[0]) * _ROUNDED
    return {"reverse chains": values * FLOAT + chains + lists}


def topk(share: Share, diffusion: DiffusionSettings) -> int:
    """Return how many columns are chosen for each row."""
    return min(diffusion.rebuild_topk, share.num_items)


def rows_of_group(share: Share, denoising: Denoising) -> int:
    """Return the bytes of the interactions of a mesh row's users with the items of a column, and of their exchange."""
    users = -(-share.num_users * denoising.item_shards // share.num_workers)
    return (share.interactions * 9 + 2 * users) * INT


def denoise_work(share: Share, denoising: Denoising, diffusion: DiffusionSettings, dim: int) -> Work:
    """Return what one worker does in an epoch of denoising."""
    first, last = diffusion.denoiser_hidden_dims[0], diffusion.denoiser_hidden_dims[-1]
    count, shards = denoising.count, denoising.item_shards
    items, batch = share.num_items / shards, denoising.batch_size / (share.num_workers // shards)
    steps = -(-share.num_users // denoising.batch_size)
    hidden_noise = diffusion.noise == "hidden"
    gram = diffusion.products == "gram" or (
        diffusion.products == "auto" and gram_pays(round(batch), round(items), last)
    )
    into = input_flop(batch, items, first, hidden_noise=hidden_noise)
    out = output_flop(batch, items, last, dim, gram=gram)
    weights = items * (first + last + 1) * ADAM_ACCESSES
    noise = 0 if hidden_noise else batch * items * (1 + count * _NOISE_READS)
    output = 0 if gram else batch * items * _OUTPUT_ACCESSES
    step_bytes = (noise + count * (weights + output)) * FLOAT
    exchanges = count * (len(_sums_of_row(diffusion, 0, 0)) if shards > 1 else 0) + (share.num_workers > shards)
    return Work(steps, steps * count * (into + out), steps * step_bytes, steps * exchanges)


def rebuild_work(share: Share, denoising: Denoising, diffusion: DiffusionSettings) -> Work:
    """Return what one worker does while it rebuilds; where rows are normalised, each step takes two small products."""
    count, shards = denoising.count, denoising.item_shards
    items, users = share.num_items / shards, share.num_users / (share.num_workers // shards)
    width = diffusion.denoiser_hidden_dims[-1]
    flops = count * product_flop(users, items, width)
    if diffusion.normalize_input:
        flops += count * (diffusion.num_timesteps - 1) * product_flop(users, width, width) * 1.6
    return Work(1, flops, count * users * items * 2 * FLOAT)


def denoiser_traffic(
    row_ids: Sequence[Tensor],
    column_bounds: Sequence[int],
    diffusion: DiffusionSettings,
    *,
    count: int,
    dim: int,
    column_shards: int,
    batch_size: int,
    stream: RandomStream,
) -> list[int]:
    """Return what each worker sends in the first step: sums over each row of the mesh, then over each column.

    Args:
        row_ids: of each worker's own rows.
        column_bounds: first column of each worker, and the end of the last.
        diffusion: settings of the denoisers.
        count: denoisers.
        dim: d.
        column_shards: over how many workers each denoiser is spread.
        batch_size: B.
        stream: of the epoch's batches.
    """
    size, every = len(row_ids), torch.cat(list(row_ids)).sort().values
    num_rows = size // column_shards
    batch = every[EpochBatches(every, total=every.numel(), batch_size=batch_size, stream=stream)[0]]
    in_batch = [int(torch.isin(batch, ids).sum()) for ids in row_ids]
    bounds = column_bounds[::num_rows]
    sent = []
    for rank in range(size):
        row, column = divmod(rank, column_shards)
        rows = sum(in_batch[row * column_shards : (row + 1) * column_shards])
        sums = _sums_of_row(diffusion, rows, dim) if column_shards > 1 else []
        bytes_of_row = count * sum(ring_bytes(values * FLOAT, column_shards) for values in sums)
        gradients = count * _weights(diffusion, bounds[column + 1] - bounds[column])
        sent.append(bytes_of_row + (ring_bytes(gradients * FLOAT, num_rows) if num_rows > 1 else 0))
    return sent


def _sums_of_row(diffusion: DiffusionSettings, batch: int, dim: int) -> list[int]:
    """Return the values of each sum over a row of the mesh: into the hidden layer, its gradient, the signal, noise."""
    widths = diffusion.denoiser_hidden_dims
    sums = [batch * widths[0], batch * widths[-1], batch * dim]
    if diffusion.normalize_input:
        sums.append(batch)
    return [*sums, widths[0] ** 2] if diffusion.noise == "hidden" else sums


def _weights(diffusion: DiffusionSettings, num_columns: int) -> int:
    """Return how many weights a denoiser has at some columns."""
    denoiser = Denoiser(
        Columns.whole(num_columns), diffusion.denoiser_hidden_dims, time_embedding_dim=diffusion.time_embedding_dim
    )
    return sum(parameter.numel() for parameter in denoiser.parameters())
