"""How long an epoch of DiffMM would take on machines that are not at hand: operations and bytes over assumed speeds.

Symbols: U users, I items, E interactions, M modalities, L layers, d embedding, W workers; a mesh of D x S workers, of
which each has C = I / S items and the part b = B / D of a batch of users in the denoisers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from diffmm_dist import storage
from diffmm_dist.bench.comm import predict
from diffmm_dist.bench.machine import command
from diffmm_dist.bench.work import contrast_flop, input_flop, output_flop, product_flop, propagation_products
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.diffusion.denoiser import TRAFFIC as DENOISER
from diffmm_dist.diffusion.output import gram_pays
from diffmm_dist.models.diffmm.recipe import item_shards
from diffmm_dist.parallel.world import World
from diffmm_dist.train.build import load_training_data, open_dataset
from diffmm_dist.train.config import Config

_FLOAT = 4
_ADAM_ACCESSES = 7  # of each weight in a step: value, gradient and moments read, all but the gradient written
_NOISE_READS = 2  # of each noisy value by each denoiser; written once for all
_OUTPUT_ACCESSES = 6  # of each predicted value: written, scaled, multiplied, read by two products
_ROW_ACCESSES = 60  # of each row of an N x d array in a recommendation step, besides the gathered ones
_EXCHANGES_PER_PRODUCT = 4  # out and back, forward and backward
_EXCHANGES_PER_TERM = 5  # of the contrast: anchors, weights, sums of a block, gradients, counts


@dataclass(frozen=True)
class Assumptions:
    """What a worker's machine does per second.

    Attributes:
        tflops: float32 operations of matrix products, in 10^12.
        memory_gb_s: bytes that its memory moves, in 10^9.
        network_gb_s: bytes that it can send, in 10^9.
        latency_us: seconds that an exchange takes besides its bytes, in 10^-6.
    """

    tflops: float
    memory_gb_s: float
    network_gb_s: float
    latency_us: float


@dataclass(frozen=True)
class Work:
    """What one worker does in an epoch of a phase.

    Attributes:
        flops: operations of matrix products.
        memory_bytes: bytes read and written besides.
        sent_bytes: bytes sent.
        exchanges: messages and sums that it takes part in.
    """

    flops: float
    memory_bytes: float
    sent_bytes: float = 0
    exchanges: float = 0

    def seconds(self, assumed: Assumptions) -> float:
        """Return the time without any overlap."""
        computing = self.flops / (assumed.tflops * 1e12) + self.memory_bytes / (assumed.memory_gb_s * 1e9)
        return computing + self.sent_bytes / (assumed.network_gb_s * 1e9) + self.exchanges * assumed.latency_us * 1e-6


def bench_gpus(config: Config, sizes: Sequence[int], assumed: Assumptions, *, out: str) -> None:
    """Write a JSON file with the predicted seconds of an epoch, by phase and number of workers."""
    dataset = open_dataset(config)
    data = load_training_data(config, dataset, World.single())
    prediction = {}
    for size in sizes:
        sent = predict(config, dataset, data, size)
        most = {purpose: max(worker[purpose] for worker in sent) for purpose in sent[0]}
        works = epoch_work(config, dataset, size, most)
        prediction[str(size)] = {
            "work": {phase: asdict(work) for phase, work in works.items()},
            "seconds": {phase: work.seconds(assumed) for phase, work in works.items()},
        }
    storage.write_json(
        out,
        {
            "command": command(),
            "assumed": asdict(assumed),
            "torch": torch.__version__,
            "config": config.model_dump(mode="json"),
            "gpus": prediction,
        },
    )


def epoch_work(config: Config, dataset: Dataset, size: int, sent_per_step: dict[str, int]) -> dict[str, Work]:
    """Return what each of ``size`` workers does in an epoch, by phase.

    Args:
        config: the run.
        dataset: its data.
        size: W.
        sent_per_step: bytes by purpose that the worker which sends most sends in a step of each phase.
    """
    shards = item_shards(
        config.model, batch_size=config.train.batch_size, num_items=dataset.num_items, num_workers=size
    )
    denoise, rebuild = _diffusion(config, dataset, num_groups=size // shards, num_item_shards=shards)
    steps = -(-dataset.num_users // config.train.batch_size)
    exchanges = _num_modalities(config, dataset) * (3 if shards > 1 else 0) + (size > shards)
    denoise = Work(denoise.flops, denoise.memory_bytes, steps * sent_per_step[DENOISER], steps * exchanges)
    ranking = sum(count for purpose, count in sent_per_step.items() if purpose != DENOISER)
    return {"denoise": denoise, "rebuild": rebuild, "recommend": _recommend(config, dataset, size, ranking)}


def _num_modalities(config: Config, dataset: Dataset) -> int:
    return len(config.data.modalities or dataset.manifest.modalities)


def _diffusion(config: Config, dataset: Dataset, *, num_groups: int, num_item_shards: int) -> tuple[Work, Work]:
    """Return a worker's work of the denoise and of the rebuild phase, without exchanges."""
    first, last = config.model.diffusion.denoiser_hidden_dims[0], config.model.diffusion.denoiser_hidden_dims[-1]
    modalities, dim = _num_modalities(config, dataset), config.model.embedding_dim
    items, users = dataset.num_items / num_item_shards, dataset.num_users / num_groups
    batch = config.train.batch_size / num_groups
    steps = -(-dataset.num_users // config.train.batch_size)
    hidden_noise = config.model.denoiser.noise == "hidden"
    gram = config.model.denoiser.products == "gram" or (
        config.model.denoiser.products == "auto" and gram_pays(round(batch), round(items), last)
    )
    into = input_flop(batch, items, first, hidden_noise=hidden_noise)
    out = output_flop(batch, items, last, dim, gram=gram)
    weights = items * (first + last + 1) * _ADAM_ACCESSES
    noise = 0 if hidden_noise else batch * items * (1 + modalities * _NOISE_READS)
    output = 0 if gram else batch * items * _OUTPUT_ACCESSES
    step_bytes = (noise + modalities * (weights + output)) * _FLOAT
    denoise = Work(steps * modalities * (into + out), steps * step_bytes)
    rebuild = Work(modalities * product_flop(users, items, last), modalities * users * items * 2 * _FLOAT)
    return denoise, rebuild


def _recommend(config: Config, dataset: Dataset, size: int, sent_per_step: int) -> Work:
    """Return a worker's work of the recommend phase."""
    modalities, dim, layers = _num_modalities(config, dataset), config.model.embedding_dim, config.model.num_layers
    interactions = dataset.manifest.num_interactions("train")
    steps = -(-interactions // config.train.batch_size)
    contrasted = config.model.contrast.contrastive_weight > 0
    real, of_each = propagation_products(modalities, layers, contrasted=contrasted)
    generated = modalities * of_each
    edges = interactions * real + dataset.num_users * config.model.diffusion.rebuild_topk * generated
    gathered = 4 * edges / size * dim * _FLOAT  # both directions, forward and backward
    nodes = (dataset.num_users + dataset.num_items) / size
    rows = nodes * dim * _ROW_ACCESSES * _FLOAT
    pairs = modalities if config.model.contrast.contrastive_anchor == "main" else modalities * (modalities - 1) // 2
    pairs *= contrasted
    anchors = min(config.train.batch_size, config.model.contrast.max_nodes or config.train.batch_size)
    compared = 2 * anchors / size if config.model.contrast.negatives == "batch" else nodes
    flops = pairs * contrast_flop(anchors, compared, dim)
    exchanges = (real + generated) * _EXCHANGES_PER_PRODUCT + 2 * pairs * _EXCHANGES_PER_TERM + 8 if size > 1 else 0
    return Work(steps * flops, steps * (gathered + rows), steps * sent_per_step, steps * exchanges)
