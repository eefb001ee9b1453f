"""AdaGCL's epoch: per batch three steps of the tables, and one of each generator (README.md, "A batch").

Shape suffixes: N own nodes, users then items, A distinct own nodes of a batch, D embedding, V entries of the graph.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.entries import entry_keys, num_entries
from diffmm_dist.graph.hetero import REAL
from diffmm_dist.graph.propagate import Rows
from diffmm_dist.losses.batch_contrastive import Repeats, batch_info_nce
from diffmm_dist.losses.regularization import squared_norm
from diffmm_dist.models.adagcl.model import AdaGCL
from diffmm_dist.models.adagcl.pruning import kl_of_standard_normal
from diffmm_dist.models.base import Optimization, Phase, PhaseContext
from diffmm_dist.models.common.ranking import RankingBatches, take_step
from diffmm_dist.models.common.ranking_batch import TRAFFIC, RankingBatch
from diffmm_dist.parallel.collectives import worker_counts
from diffmm_dist.parallel.halo import extended
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.replicas import sum_gradients
from diffmm_dist.parallel.shard import Shard

_LEAST_NOISE = 1e-7  # of a gate, whose logit is taken
_SMALLEST_STD = 1e-12


@dataclass(frozen=True)
class ViewSettings:
    """Settings of the views and of what they are trained by; see the configuration reference."""

    contrastive_weight: float
    bottleneck_weight: float
    temperature: float
    kl_weight: float
    l0_weight: float
    initial_temperature: float
    temperature_decay: float
    lowest_temperature: float
    adam_eps: float
    contrast_alone: bool = False

    def gate_temperature(self, epoch: int) -> float:
        """Return beta = max(lowest, initial * decay^epoch)."""
        return max(self.lowest_temperature, self.initial_temperature * self.temperature_decay**epoch)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch.

    Attributes:
        view_noise: eps of the z that the first view is made from, (N, D).
        loss_noise: eps of the z that its generator is trained with, (N, D).
        gate_noise: of each layer, float64 (V,), within (0, 1).
    """

    view_noise: Tensor
    loss_noise: Tensor
    gate_noise: list[Tensor]

    @classmethod
    def of(cls, shard: Shard, keys_V: Tensor, stream: RandomStream, *, width: int, num_layers: int) -> "Draws":
        """Draw them, keyed by the ids of nodes and of entries, so that any workers draw the same."""
        nodes = torch.cat([shard.user_ids, shard.own_item_ids + shard.num_users])
        view, loss = (stream.child(purpose).normal_rows(nodes, width) for purpose in ("view", "loss"))
        gates = [stream.child("gates", layer).uniform(keys_V) for layer in range(num_layers)]
        return cls(view, loss, [noise.mul_(1 - 2 * _LEAST_NOISE).add_(_LEAST_NOISE) for noise in gates])


class AdaptivePhase(Phase):
    """One pass over the training interactions; every batch trains the tables three times and each generator once.

    Args:
        model: the model.
        data: the training data.
        optimization: how to optimise.
        settings: of the views.

    Raises:
        UserError: a user has interacted with every item.
    """

    name = "recommend"
    unit = "interactions"

    def __init__(self, model: AdaGCL, data: TrainingData, optimization: Optimization, settings: ViewSettings) -> None:
        self.num_examples = data.num_interactions
        self._model = model
        self._shard = data.shard
        self._optimization = optimization
        self._settings = settings
        self._batches = RankingBatches(data, batch_size=optimization.batch_size)
        self._relation = model.graph.relations[REAL]
        self._num_entries = sum(worker_counts(num_entries(self._relation), data.shard.world))
        rate = optimization.learning_rate
        self.optimizers = {
            "tables": Adam(model.tables, lr=rate, fused=True),
            "pruning": Adam(model.pruning.parameters(), lr=rate, fused=True),
            "gates": Adam(model.gating.parameters(), lr=rate, eps=settings.adam_eps, fused=True),
        }

    def begin(self, context: PhaseContext) -> int:
        """Draw the epoch's negatives and batches."""
        self._gate_temperature = self._settings.gate_temperature(context.epoch)
        self._keys_V = entry_keys(self._relation)
        return self._batches.begin(context)

    def step(self, index: int) -> dict[str, Tensor]:
        """Take the five steps of a batch."""
        batch = self._batches[index]
        width, num_layers = self._model.user_embedding.shape[1], len(self._model.gating.layers)
        draws = Draws.of(self._shard, self._keys_V, batch.stream, width=width, num_layers=num_layers)
        return self.update(batch, draws, gate_temperature=self._gate_temperature)

    def update(self, batch: RankingBatch, draws: Draws, *, gate_temperature: float) -> dict[str, Tensor]:
        """Take the five steps of a batch with given random numbers; return this worker's shares of what to record."""
        model, world = self._model, self._shard.world
        # E' moves at the end of a batch alone, so both draws of z have the same mean and deviation.
        mean_ND, std_ND = model.pruning.encode(model.graph)
        latents = self._split(mean_ND.detach() + std_ND.detach() * draws.view_noise)
        view_V, kept_share = model.pruning.prune(model.graph, latents)
        values = {"kept_share": (kept_share / world.size).to(mean_ND.dtype), **self._contrast(batch, view_V)}

        ranking = {
            "bpr": batch.bpr(model(), divisor=self._optimization.batch_size),
            "l2": self._optimization.l2_weight * model.squared_norm(),
        }
        self._backward(ranking, "tables")
        pruning = self._pruning_losses(batch, mean_ND, std_ND, self._split(mean_ND + std_ND * draws.loss_noise))
        self._backward(pruning, "pruning")
        gating = self._gating_losses(batch, draws.gate_noise, gate_temperature)
        self._backward(gating, "gates")
        sum_gradients([*model.pruning.replicas(), *model.gating.parameters()], world, purpose=TRAFFIC)
        for optimizer in self.optimizers.values():
            optimizer.step()
        for generator, terms in (("pruning", pruning), ("gates", gating)):
            ranking |= {f"{generator}_{name}": term for name, term in terms.items()}
        return values | {name: term.detach() for name, term in ranking.items()}

    def _contrast(self, batch: RankingBatch, view_V: Tensor) -> dict[str, Tensor]:
        """Take the steps that contrast the views: with one another, then each with itself before that.

        A weight of 0 leaves out its step.
        """
        settings, world = self._settings, self._shard.world
        (nodes,) = batch.nodes
        repeats = Repeats.of(nodes, batch_size=batch.size, world=world, alone=settings.contrast_alone)

        def views() -> list[Tensor]:
            both = self._model.pruned_view(view_V), self._model.gated_view()
            return [torch.cat([rows[side.nodes] for rows, side in zip(view, nodes, strict=True)]) for view in both]

        def contrast(anchor_AD: Tensor, target_AD: Tensor) -> Tensor:
            return batch_info_nce(anchor_AD, target_AD, repeats, temperature=settings.temperature)

        values: dict[str, Tensor] = {}
        if settings.contrastive_weight > 0 or settings.bottleneck_weight > 0:
            old = views()
        if settings.contrastive_weight > 0:
            values["contrast"] = settings.contrastive_weight * contrast(*old)
            self._step_of_tables(values["contrast"])
        if settings.bottleneck_weight > 0:
            terms = [contrast(new_AD, old_AD.detach()) for new_AD, old_AD in zip(views(), old, strict=True)]
            values["bottleneck"] = settings.bottleneck_weight * torch.stack(terms).sum()
            self._step_of_tables(values["bottleneck"])
        return {name: term.detach() for name, term in values.items()}

    def _step_of_tables(self, loss: Tensor) -> None:
        take_step(loss, self.optimizers["tables"], [], self._shard.world)

    def _pruning_losses(self, batch: RankingBatch, mean_ND: Tensor, std_ND: Tensor, latents: Rows) -> dict[str, Tensor]:
        """Return this worker's shares of the terms that train the first generator, from z of own nodes."""
        model, settings = self._model, self._settings
        shard, released = self._shard, model.mode == "reference"
        users = latents[0].index_select(0, batch.user_rows)
        items_LD = extended(latents[1], batch.item_halo)
        joined, unjoined = (
            model.pruning.decode(users, items_LD.index_select(0, rows)) for rows in (batch.pos_items, batch.neg_items)
        )
        edges = joined_loss(joined, unjoined, released=released) / batch.size
        kl = kl_of_standard_normal(mean_ND, std_ND, smallest_std=0.0 if released else _SMALLEST_STD)
        norm = model.pruning.encoder_norm(with_replicas=shard.world.is_first)
        return {
            "bce": edges,
            "kl": settings.kl_weight * kl / (shard.num_users + shard.num_items),
            "bpr": batch.bpr(latents, divisor=self._optimization.batch_size),
            "l2": self._optimization.l2_weight * norm,
        }

    def _gating_losses(self, batch: RankingBatch, noise: list[Tensor], temperature: float) -> dict[str, Tensor]:
        """Return this worker's shares of the terms that train the second generator."""
        gating = self._model.gating
        gated = gating.train_pass(self._model.graph, self._model.gate_input(), noise, temperature)
        bpr = batch.bpr(gated.rows, divisor=self._optimization.batch_size)
        open_gates = [gating.distribution.open_prob(log_a, temperature).sum() for log_a in gated.log_a]
        losses = {"bpr": bpr, "l0": self._settings.l0_weight * torch.stack(open_gates).sum() / self._num_entries}
        if self._shard.world.is_first:  # every worker has these parameters whole, and one counts them
            losses["l2"] = self._optimization.l2_weight * squared_norm(*gating.parameters())
        else:
            losses["l2"] = torch.zeros_like(bpr)
        return losses

    def _split(self, rows_ND: Tensor) -> Rows:
        """Return the rows of own users and of own items."""
        users, items = rows_ND.split([self._shard.users.own.size, self._shard.items.own.size])
        return users, items

    def _backward(self, losses: dict[str, Tensor], optimizer: str) -> None:
        """Replace the gradients of an optimiser's parameters by those of a sum of losses."""
        self.optimizers[optimizer].zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()


def joined_loss(joined: Tensor, unjoined: Tensor, *, released: bool) -> Tensor:
    """Return the sum of the binary cross-entropies of pairs that are joined and of pairs that are not, from logits.

    Args:
        joined: logits of pairs that are, (b,).
        unjoined: of pairs that are not, (b,).
        released: take logarithms of float32 probabilities, floored at -100, as the released program does.
    """
    if not released:
        return (F.softplus(-joined) + F.softplus(unjoined)).sum()
    sides = (joined, torch.ones_like(joined)), (unjoined, torch.zeros_like(unjoined))
    terms = [F.binary_cross_entropy(torch.sigmoid(logits), target, reduction="sum") for logits, target in sides]
    return torch.stack(terms).sum()
