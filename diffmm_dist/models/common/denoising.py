"""The phases of models with denoisers: train them on the rows of a matrix, and find each row's best columns.

Rows are users and columns items, or both are the entities of a knowledge graph.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Adam

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.diffusion.denoiser import TRAFFIC, Denoiser
from diffmm_dist.diffusion.gaussian import DenoisingLosses, ReverseChain, training_losses
from diffmm_dist.diffusion.noise import NoisyRows
from diffmm_dist.diffusion.output import Products
from diffmm_dist.diffusion.schedule import DiffusionSchedule, LossWeights
from diffmm_dist.evaluation.topk import merge_topk
from diffmm_dist.models.base import Optimization, Phase, PhaseContext
from diffmm_dist.models.common.denoising_shard import DenoisingShard
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.replicas import sum_gradients
from diffmm_dist.sparse import CSR

REVERSE_CHAIN = "reverse_chain"  # stream of an epoch's rebuild
REBUILT_ROWS = 2048  # at a time: fewer make small products, more leave narrow blocks of columns


@dataclass(frozen=True)
class DiffusionSettings:
    """Settings of denoisers and of what is generated with them; see the configuration reference."""

    num_timesteps: int
    noise_scale: float
    noise_min: float
    noise_max: float
    sampling_steps: int
    sampling_noise: bool
    denoiser_hidden_dims: Sequence[int]
    time_embedding_dim: int
    input_dropout_prob: float
    normalize_input: bool
    signal_weight: float
    rebuild_topk: int
    edge_keep_prob: float
    products: Products = "auto"
    noise: Literal["exact", "hidden"] = "exact"
    loss_weights: LossWeights = "snr"

    def schedule(self, device: torch.device) -> DiffusionSchedule:
        """Return the noise schedule of rows on a device."""
        return DiffusionSchedule(
            self.num_timesteps,
            noise_scale=self.noise_scale,
            noise_min=self.noise_min,
            noise_max=self.noise_max,
            loss_weights=self.loss_weights,
            device=device,
        )


@dataclass(frozen=True)
class Diffusion:
    """Denoisers and what they denoise.

    Attributes:
        settings: of the diffusion.
        schedule: of the noise.
        shard: what this worker denoises.
        denoisers: by name; an only one may go without, under ``""``.
        unit: what the rows are, such as ``users``.
    """

    settings: DiffusionSettings
    schedule: DiffusionSchedule
    shard: DenoisingShard
    denoisers: Mapping[str, Denoiser]
    unit: str

    def chain(self, name: str) -> ReverseChain:
        """Return the reverse chain of a denoiser as it is now."""
        return ReverseChain(
            self.schedule,
            self.denoisers[name],
            sampling_steps=self.settings.sampling_steps,
            sampling_noise=self.settings.sampling_noise,
        )

    def values_at(self, edges: CSR, name: str, rows: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Return what an epoch's rebuild has found at the edges of a few rows, in the order of ``edges.select(rows)``.

        Args:
            edges: own rows x column ids.
            name: of the denoiser, whose weights are those of that epoch.
            rows: own rows, int64 (n,); their values at all own columns are held at once.
            seed: the run's.
            epoch: which.
        """
        places = rows + self.shard.own.start
        stream = RandomStream.of(seed, REVERSE_CHAIN, epoch, name)
        found = self.chain(name).denoise(self.shard.rows.select(places), self.shard.ids[places], stream)
        of_rows, wanted = torch.cat([values for _, values in found], dim=1), edges.select(rows)
        return of_rows[wanted.row_ids, wanted.indices]


@dataclass(frozen=True)
class Signal:
    """What a denoiser's prediction times a table is to be.

    Attributes:
        name: under which the loss is recorded.
        table_CD: the table at own columns.
        target: from clean rows at own columns and their numbers, this worker's share of the target (B, D).
    """

    name: str
    table_CD: Tensor
    target: Callable[[CSR, Tensor], Tensor]


def new_denoiser(shard: DenoisingShard, settings: DiffusionSettings) -> Denoiser:
    """Return a denoiser without values."""
    return Denoiser(
        shard.columns,
        settings.denoiser_hidden_dims,
        time_embedding_dim=settings.time_embedding_dim,
        normalize_input=settings.normalize_input,
    )


class DenoisePhase(Phase):
    """One pass over all rows in shuffled batches; every denoiser takes one Adam step per batch.

    Timesteps, noise and dropout are keyed by (row, epoch) and shared by the denoisers: no gradient joins these, so
    each is trained with exactly the published distribution. Tables and targets stay as they are: only the denoisers
    are trained here.

    Args:
        diffusion: the denoisers.
        signals: of each denoiser, by its name; asked for when an epoch begins.
        optimization: how to optimise.
        weights: of the squared error, and of the signal.
    """

    name = "denoise"

    def __init__(
        self,
        diffusion: Diffusion,
        signals: Callable[[], Mapping[str, Signal]],
        optimization: Optimization,
        *,
        weights: tuple[float, float],
    ) -> None:
        self.unit = diffusion.unit
        self.num_examples = diffusion.shard.groups.total
        self._diffusion = diffusion
        self._signals_of = signals
        self._weights = weights
        self._batch_size = optimization.batch_size
        # One Adam over all denoisers steps each as one of its own would: they all step at every batch.
        self._parameters = [weight for denoiser in diffusion.denoisers.values() for weight in denoiser.parameters()]
        self._adam = Adam(self._parameters, lr=optimization.learning_rate, fused=True)
        self.optimizers = {"adam": self._adam}

    def begin(self, context: PhaseContext) -> int:
        """Shuffle the rows; fetch what the signals need, since nothing here changes it."""
        shard = self._diffusion.shard
        self._context = context
        self._batches = EpochBatches(
            shard.ids,
            total=self.num_examples,
            batch_size=self._batch_size,
            stream=context.stream(self.unit),
        )
        self._num_entries = self._batches.sums(shard.rows.row_counts)
        with torch.no_grad():
            self._signals = self._signals_of()
        return self._batches.num_batches

    def step(self, index: int) -> dict[str, Tensor]:
        """Train every denoiser on one batch of rows; the host never waits for the device."""
        total, rows = self._batches.size(index), self._batches[index]
        mesh = self._diffusion.shard.mesh
        self._adam.zero_grad(set_to_none=True)
        values: dict[str, Tensor] = {}
        noisy = self._noisy_rows(index, rows)
        for name in self._diffusion.denoisers:  # one after the other: only one's activations live at a time
            signal = self._signals[name]
            losses = self._losses(name, noisy, rows)
            elbo, error = losses.elbo.sum() / total, losses.signal.sum() / total
            (self._weights[0] * elbo + self._weights[1] * error).backward()
            # Every worker of a row has the whole signal, and is to report a share of it.
            values |= {tag("elbo", name): elbo.detach(), tag(signal.name, name): error.detach() / mesh.items.size}
        sum_gradients(self._parameters, mesh.data, purpose=TRAFFIC)
        self._adam.step()
        return values

    def finish(self) -> dict[str, float]:
        """Forget the signals."""
        del self._signals
        return {}

    def _noisy_rows(self, index: int, rows: Tensor) -> NoisyRows:
        """Return what this worker's row of the mesh denoises of a batch."""
        shard, settings = self._diffusion.shard, self._diffusion.settings
        ids = shard.ids[rows]
        return NoisyRows(
            self._diffusion.schedule,
            shard.rows.select(rows, num_entries=self._num_entries[index]),
            self._context.stream("timestep").integers(ids, settings.num_timesteps),
            ids,
            shard.columns,
            noise=self._context.stream("noise"),
            keep_prob=1 - settings.input_dropout_prob,
            normalized=settings.normalize_input,
        )

    def _losses(self, name: str, noisy: NoisyRows, rows: Tensor) -> DenoisingLosses:
        settings, signal = self._diffusion.settings, self._signals[name]
        return training_losses(
            self._diffusion.denoisers[name],
            noisy,
            table_CD=signal.table_CD,
            target_BD=signal.target(noisy.rows, rows),
            products=settings.products,
            noise=settings.noise,
        )


class RebuildPhase(Phase):
    """Denoise every row and find its best columns, of which a model makes edges.

    Columns that a row has already are candidates too, as published; ties go to the lower id.

    Args:
        diffusion: the denoisers.
        topk: columns to find for each row.
        among: ``all`` columns, or those alone that the row has already, its ``neighbors``.
    """

    name = "rebuild"

    def __init__(self, diffusion: Diffusion, *, topk: int, among: Literal["all", "neighbors"] = "all") -> None:
        self.unit = diffusion.unit
        self.num_examples = diffusion.shard.groups.total
        self._diffusion = diffusion
        self._topk = topk
        self._among = among

    @abstractmethod
    def keep(self, own_rows: slice, index: int, values: Tensor, ids: Tensor) -> None:
        """Take the best columns of some own rows.

        Args:
            own_rows: which rows.
            index: of the denoiser.
            values: denoised ones, (rows, k), falling; minus infinity where there is no column.
            ids: of the columns, int64 (rows, k).
        """

    def begin(self, context: PhaseContext) -> int:
        """Prepare the reverse chains."""
        self._context = context
        self._chains = {name: self._diffusion.chain(name) for name in self._diffusion.denoisers}
        shard = self._diffusion.shard
        most_rows = max(shard.groups.sizes)  # of any worker, so that all take as many steps
        num_steps = -(-most_rows // REBUILT_ROWS)
        edges = (torch.arange(num_steps + 1, device=shard.ids.device) * REBUILT_ROWS).clamp_(max=shard.groups.own.size)
        self._num_entries: list[int] = shard.rows.indptr[edges].diff().tolist()
        return num_steps

    def step(self, index: int) -> dict[str, Tensor]:
        """Find the best columns of one batch of the rows of this worker's row of the mesh."""
        shard = self._diffusion.shard
        start, stop = (min(edge * REBUILT_ROWS, shard.groups.own.size) for edge in (index, index + 1))
        rows = torch.arange(start, stop, device=shard.ids.device)
        selected = shard.rows.select(rows, num_entries=self._num_entries[index])
        own = shard.own
        first, last = (min(max(edge, own.start), own.stop) for edge in (start, stop))  # the batch's own rows
        for number, (name, chain) in enumerate(self._chains.items()):
            stream = self._context.stream(REVERSE_CHAIN, name)
            best = self._best(chain, selected, shard.ids[rows], stream)
            values, ids = shard.best_of_all(*best, self._topk)
            batch = slice(first - start, last - start)
            self.keep(slice(first - own.start, last - own.start), number, values[batch], ids[batch])
        return {}

    def _best(self, chain: ReverseChain, rows: CSR, ids: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        """Return the values of each row's best own columns, and which they are in ascending order of ids: (B, k)."""
        if self._among == "all":
            return merge_topk(chain.denoise(rows, ids, stream), self._topk)
        return best_entries(rows, chain.denoised_at(rows, ids, stream), self._diffusion.shard.columns, self._topk)

    def finish(self) -> dict[str, float]:
        """Forget the chains."""
        self._chains.clear()
        return {}


def best_entries(rows: CSR, values: Tensor, columns: Columns, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row's entries, and their columns in ascending order of ids: (B, k) each.

    Rows with fewer entries get minus infinity at column 0. Ties go to the lower id.
    """
    k = min(k, max(columns.size, 1))
    place_of = torch.argsort(torch.argsort(columns.ids))  # of each column in ascending order of ids
    places = place_of[rows.indices]
    order = torch.argsort(places, stable=True)
    order = order[torch.argsort(values[order], descending=True, stable=True)]
    order = order[torch.argsort(rows.row_ids[order], stable=True)]
    ranks = torch.arange(order.numel(), device=order.device) - rows.indptr[rows.row_ids[order]]
    # What is not among the best goes to one more column, which is left out: choosing would make a GPU's host wait.
    of_entries = rows.row_ids[order], ranks.clamp_(max=k)
    best = values.new_full((rows.num_rows, k + 1), -torch.inf)
    found = torch.zeros(rows.num_rows, k + 1, dtype=torch.int64, device=order.device)
    best[of_entries], found[of_entries] = values[order], places[order]
    return best[:, :k], found[:, :k]


def tag(term: str, name: str) -> str:
    """Return what a term of a named denoiser is recorded under."""
    return f"{term}_{name}" if name else term
