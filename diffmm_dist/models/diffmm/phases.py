"""DiffMM's epoch: denoise (train the denoisers), rebuild (generate graphs), recommend (train the rest)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Adam

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.diffusion.denoiser import TRAFFIC
from diffmm_dist.diffusion.gaussian import DenoisingLosses, ReverseChain, training_losses
from diffmm_dist.diffusion.noise import NoisyRows
from diffmm_dist.evaluation.topk import merge_topk
from diffmm_dist.graph.propagate import Rows
from diffmm_dist.losses.contrastive import info_nce
from diffmm_dist.models.base import Optimization, Phase, PhaseContext
from diffmm_dist.models.common.ranking import RankingBatch, RankingPhase
from diffmm_dist.models.diffmm.model import DiffMM
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.replicas import sum_gradients

REBUILT_USERS = 2048  # at a time: fewer make small products, more leave narrow blocks of items


@dataclass(frozen=True)
class ContrastSettings:
    """Settings of the contrastive loss; see the configuration reference."""

    contrastive_weight: float
    temperature: float
    contrastive_anchor: Literal["main", "modal"]
    negatives: Literal["all", "batch"] = "all"
    max_nodes: int | None = None


def diffmm_phases(model: DiffMM, optimization: Optimization, contrast: ContrastSettings) -> list[Phase]:
    """Return denoise, rebuild and recommend."""
    tables = [model.user_embedding, model.item_embedding]
    replicas = [model.modality_logits, *model.projections.parameters()]

    def losses(batch: RankingBatch) -> dict[str, Tensor]:
        return recommend_losses(model, batch, optimization, contrast)

    def modality_weights() -> dict[str, float]:
        weights = model.modality_weights().tolist()
        return {f"weight_{name}": weight for name, weight in zip(model.modalities, weights, strict=True)}

    return [
        DenoisePhase(model, optimization),
        RebuildPhase(model),
        RankingPhase(model.data, tables, replicas, losses, optimization, extra=modality_weights),
    ]


class DenoisePhase(Phase):
    """One pass over all users in shuffled batches; every denoiser takes one Adam step per batch.

    Timesteps, noise and dropout are keyed by (user, epoch) and shared by the denoisers: no gradient joins these, so
    each is trained with exactly the published distribution. Projected features and item embeddings stay as they are:
    only the denoisers are trained here.
    """

    name = "denoise"
    unit = "users"

    def __init__(self, model: DiffMM, optimization: Optimization) -> None:
        self.num_examples = model.shard.num_users
        self._model = model
        self._batch_size = optimization.batch_size
        # One Adam over all denoisers steps each as one of its own would: they all step at every batch.
        self._adam = Adam(model.denoisers.parameters(), lr=optimization.learning_rate, fused=True)
        self.optimizers = {"adam": self._adam}

    def begin(self, context: PhaseContext) -> int:
        """Shuffle the users; fetch what the modality signal needs of the items, since nothing here changes it."""
        denoising = self._model.denoising
        self._context = context
        self._batches = EpochBatches(
            denoising.user_ids,
            total=self.num_examples,
            batch_size=self._batch_size,
            stream=context.stream("users"),
        )
        self._num_entries = self._batches.sums(denoising.rows.row_counts)
        with torch.no_grad():
            self._modal_items = {
                name: denoising.of_items(self._model.projected(name)) for name in self._model.modalities
            }
            self._item_table = denoising.of_items(self._model.item_embedding)
        return self._batches.num_batches

    def step(self, index: int) -> dict[str, Tensor]:
        """Train every denoiser on one batch of users; with exact noise the host never waits for the device."""
        total = self._batches.size(index)
        mesh = self._model.denoising.mesh
        self._adam.zero_grad(set_to_none=True)
        values: dict[str, Tensor] = {}
        noisy = self._noisy_rows(index)
        for name in self._model.modalities:  # one after the other: only one modality's activations live at a time
            losses = self._losses(name, noisy)
            elbo, msi = losses.elbo.sum() / total, losses.msi.sum() / total
            (elbo + self._model.diffusion.signal_weight * msi).backward()
            # Every worker of a row has the whole modality signal, and is to report a share of it.
            values |= {f"elbo_{name}": elbo.detach(), f"msi_{name}": msi.detach() / mesh.items.size}
        sum_gradients(list(self._model.denoisers.parameters()), mesh.data, purpose=TRAFFIC)
        self._adam.step()
        return values

    def finish(self) -> dict[str, float]:
        """Forget the items."""
        del self._modal_items, self._item_table
        return {}

    def _noisy_rows(self, index: int) -> NoisyRows:
        """Return what this worker's row of the mesh denoises of a batch."""
        model, settings, rows = self._model, self._model.diffusion, self._batches[index]
        users = model.denoising.user_ids[rows]
        return NoisyRows(
            model.schedule,
            model.denoising.rows.select(rows, num_entries=self._num_entries[index]),
            self._context.stream("timestep").integers(users, settings.num_timesteps),
            users,
            model.denoising.columns,
            noise=self._context.stream("noise"),
            keep_prob=1 - settings.input_dropout_prob,
            normalized=settings.normalize_input,
        )

    def _losses(self, modality: str, noisy: NoisyRows) -> DenoisingLosses:
        settings = self._model.diffusion
        return training_losses(
            self._model.denoiser(modality),
            noisy,
            modal_items_CD=self._modal_items[modality],
            item_table_CD=self._item_table,
            products=settings.products,
            noise=settings.noise,
        )


class RebuildPhase(Phase):
    """Denoise every user's row and keep the top-k items per modality as the edges of a generated graph.

    Items that a user has interacted with are candidates too, as published; ties go to the lower item.
    """

    name = "rebuild"
    unit = "users"

    def __init__(self, model: DiffMM) -> None:
        self.num_examples = model.shard.num_users
        self._model = model

    def begin(self, context: PhaseContext) -> int:
        """Prepare the reverse chains."""
        settings = self._model.diffusion
        self._context = context
        self._chains = {
            name: ReverseChain(
                self._model.schedule,
                self._model.denoiser(name),
                sampling_steps=settings.sampling_steps,
                sampling_noise=settings.sampling_noise,
            )
            for name in self._model.modalities
        }
        most_users = max(self._model.denoising.users.sizes)  # of any worker, so that all take as many steps
        return -(-most_users // REBUILT_USERS)

    def step(self, index: int) -> dict[str, Tensor]:
        """Generate the edges of one batch of the users of this worker's row of the mesh."""
        denoising, generated = self._model.denoising, self._model.generated_items
        topk = generated.shape[2]
        start, stop = (min(edge * REBUILT_USERS, denoising.users.own.size) for edge in (index, index + 1))
        rows = torch.arange(start, stop, device=generated.device)
        selected = denoising.rows.select(rows)
        own = denoising.own_users
        first, last = (min(max(edge, own.start), own.stop) for edge in (start, stop))  # the batch's own users
        for modality, (name, chain) in enumerate(self._chains.items()):
            stream = self._context.stream("reverse_chain", name)
            best = merge_topk(chain.denoise(selected, denoising.user_ids[rows], stream), topk)
            items = denoising.best_of_all(*best, topk)
            generated[first - own.start : last - own.start, modality] = items[first - start : last - start]
        return {}

    def finish(self) -> dict[str, float]:
        """Put the generated graphs in place; report which share of their edges is observed and which is new."""
        self._chains.clear()
        self._model.use_generated_items(self._context.epoch)
        values: dict[str, float] = {}
        for index, name in enumerate(self._model.modalities):
            edges = self._model.generated_edges(index)
            observed = self._model.data.interactions.contains(edges.row_ids, edges.indices)
            counts = torch.tensor([int(observed.sum()), observed.numel()], device=observed.device)
            num_observed, num_edges = all_reduce_sum(counts, self._model.shard.world).tolist()
            share = num_observed / num_edges
            values |= {f"observed_share_{name}": share, f"new_share_{name}": 1 - share}
        return values


def recommend_losses(
    model: DiffMM, batch: RankingBatch, optimization: Optimization, contrast: ContrastSettings
) -> dict[str, Tensor]:
    """Return this worker's shares of the weighted terms of the recommendation loss (README.md, "recommend")."""
    final, views = model(read_rows=batch.read_rows, with_views=contrast.contrastive_weight > 0)
    losses = {
        "bpr": batch.bpr(final, divisor=optimization.batch_size),
        "l2": optimization.l2_weight * model.squared_norm(),
    }
    nodes = batch.nodes if contrast.max_nodes is None else batch.sampled_nodes(contrast.max_nodes)
    terms = [
        info_nce(
            anchor[side],
            [target[side] for target in targets],
            nodes[side],
            temperature=contrast.temperature,
            world=model.shard.world,
            in_batch=contrast.negatives == "batch",
        )
        for anchor, targets in contrasted_views(final, list(views.values()), contrast.contrastive_anchor)
        for side in (0, 1)
    ]
    if terms:  # there are none with a weight of 0, nor between modalities where there is only one
        losses["contrast"] = contrast.contrastive_weight * torch.stack(terms).sum()
    return losses


def contrasted_views(final: Rows, views: list[Rows], anchor: Literal["main", "modal"]) -> list[tuple[Rows, list[Rows]]]:
    """Return (anchor view, those it is contrasted with): the main one and all, or each modality and the later ones."""
    if anchor == "main":
        return [(final, views)] if views else []
    return [(view, views[index + 1 :]) for index, view in enumerate(views[:-1])]
