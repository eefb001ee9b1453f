"""What a worker is going to need of memory, before it reads a byte, and whether this machine has it.

Symbols: U users, I items, E interactions, d embedding, h hidden, M modalities, W workers, B batch.
"""

import os
from collections.abc import Mapping
from itertools import pairwise

import torch

from diffmm_dist.config.schema import Config
from diffmm_dist.data.schema import Manifest
from diffmm_dist.diffusion import noise
from diffmm_dist.diffusion.output import gram_pays
from diffmm_dist.errors import UserError
from diffmm_dist.evaluation import evaluator
from diffmm_dist.losses import contrastive
from diffmm_dist.train.build import item_shards

_FLOAT, _INT = 4, 8
_ADAM_COPIES = 4  # value, gradient and two moments
_PROCESS_BYTES = 400 << 20  # the interpreter, torch, pyarrow and DGL, measured
_OUTPUT_ARRAYS = 3  # B x C, of the direct products: residual, its gradient, and one in between
_HIDDEN_ARRAYS = 8  # B x H
_GRADIENT_ARRAYS = 2  # C x H, besides the gradients themselves
_GRAM_ARRAYS = 6  # H x H
_SCORE_ARRAYS = 3  # users x items of a block while ranking
_EDGE_INTS = 9  # of each interaction: both directions by target and by source, weights, ids, keys and scratch
_STATES_PER_MODALITY, _STATES = 8, 12  # N x d arrays of a recommendation step, with their gradients


def estimate(config: Config, manifest: Manifest, *, num_workers: int) -> dict[str, int]:
    """Return the bytes that a worker needs at its peak, by what needs them.

    The halo is bounded from above, by one row per own interaction and by all items of others; a good partition needs
    less.
    """
    users, items = (-(-count // num_workers) for count in (manifest.num_users, manifest.num_items))
    interactions = -(-manifest.num_interactions("train") // num_workers)
    dim = config.model.embedding_dim
    halo = 0 if num_workers == 1 else min(interactions, manifest.num_items - items)
    row = dim * _FLOAT
    needs = {
        "program": _PROCESS_BYTES,
        "tables": (users + items) * row * _ADAM_COPIES,
        "graph": interactions * _INT * _EDGE_INTS,
        "halo": 4 * halo * row,
        "evaluation": 2 * items * row
        + config.eval.batch_size * min(items, evaluator.ITEMS_PER_BLOCK) * _FLOAT * _SCORE_ARRAYS
        + users * min(max(config.eval.k), manifest.num_items) * (_FLOAT + _INT),
    }
    if config.model.name == "diffmm":
        needs |= _diffmm(config, manifest, users=users, items=items, num_workers=num_workers)
    return needs


def _diffmm(config: Config, manifest: Manifest, *, users: int, items: int, num_workers: int) -> dict[str, int]:
    used = config.data.modalities or tuple(manifest.modalities)
    widths = [entry.width for name, entry in manifest.modalities.items() if name in used]
    num_modalities, hidden = len(widths), config.diffusion.denoiser_hidden_dims
    shards = item_shards(config, num_items=manifest.num_items, num_workers=num_workers)
    groups = num_workers // shards
    columns, row = -(-manifest.num_items // shards), config.model.embedding_dim * _FLOAT
    weights = columns * (hidden[0] + hidden[-1] + 1) + sum(a * b for a, b in pairwise(hidden))
    gradients = weights * _FLOAT * num_modalities if groups > 1 else 0  # one message with all of them
    return {
        "features": items * sum(widths) * _FLOAT,
        "denoisers": num_modalities * weights * _FLOAT * _ADAM_COPIES + gradients,
        "denoising": (num_modalities + 1) * columns * row + _denoising_step(config, columns, groups),
        "denoised rows": 0 if shards == 1 else _rows_of_group(manifest, num_workers=num_workers, groups=groups),
        "generated graphs": num_modalities * users * config.diffusion.rebuild_topk * _INT * _EDGE_INTS,
        "contrast": _similarities(config, max(users, items)),
        "propagation": (users + items) * row * (_STATES + _STATES_PER_MODALITY * num_modalities),
    }


def _denoising_step(config: Config, columns: int, groups: int) -> int:
    """Return the bytes of one denoiser's step: values of the batch's rows, hidden layers, products of the weights."""
    widths = config.diffusion.denoiser_hidden_dims
    batch = -(-config.train.batch_size // groups)
    products = config.denoiser.products
    direct = products == "direct" or (products == "auto" and not gram_pays(batch, columns, widths[-1]))
    noisy = min(batch * columns, noise.BLOCK_ELEMENTS) if config.denoiser.noise == "exact" else 0
    rows = noisy + (batch * columns * _OUTPUT_ARRAYS if direct else 0)
    hidden = batch * sum(widths) * _HIDDEN_ARRAYS
    gradients = columns * max(widths) * _GRADIENT_ARRAYS + max(widths) ** 2 * _GRAM_ARRAYS
    return (rows + hidden + gradients) * _FLOAT


def _similarities(config: Config, nodes: int) -> int:
    """Return the bytes of the similarities that are held at a time."""
    if config.contrast.contrastive_weight == 0:
        return 0
    return min(config.train.batch_size * nodes, contrastive.BLOCK_ELEMENTS) * _FLOAT


def _rows_of_group(manifest: Manifest, *, num_workers: int, groups: int) -> int:
    """Return the bytes of the interactions of a mesh row's users with the items of a column, and of their exchange."""
    users = -(-manifest.num_users // groups)
    return -(-manifest.num_interactions("train") // num_workers) * _INT * _EDGE_INTS + 2 * users * _INT


def available_memory(device: torch.device) -> int:
    """Return the bytes that processes can still get on this machine, or on its GPU: what the kernel or torch says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limits = _lines("/sys/fs/cgroup/memory.max")
    if limits and limits[0].isdecimal():
        used = _lines("/sys/fs/cgroup/memory.current") or ["0"]
        free = min(free, int(limits[0]) - int(used[0]))
    return free


def check_memory(needs: Mapping[str, int], *, available: int, workers_here: int) -> str:
    """Return a line for the log that compares an estimate with what there is.

    Args:
        needs: of one worker, from ``estimate``.
        available: bytes of this machine.
        workers_here: workers that share it.

    Raises:
        UserError: the workers of this machine cannot fit; it shows the whole estimate.
    """
    parts = sorted(needs.items(), key=lambda part: -part[1])
    table = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts if size >= 0.005 * 2**30)
    total = sum(needs.values())
    said = f"a worker is estimated to need {total / 2**30:.2f} GiB ({table})"
    if total * workers_here > available:
        raise UserError(
            f"{said}; {workers_here} on this machine do not fit the {available / 2**30:.2f} GiB it has: use more "
            "machines, or lower diffusion.denoiser_hidden_dims, train.batch_size or eval.batch_size"
        )
    return f"{said}; {workers_here} here, {available / 2**30:.2f} GiB available"


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []
