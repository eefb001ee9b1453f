"""DiffKG's epoch: denoise (train the denoiser), rebuild (generate a graph), recommend (train the rest)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmm_dist.losses.contrastive import Term, info_nce_of_terms
from diffmm_dist.models.base import Optimization, Phase
from diffmm_dist.models.common.denoising import DenoisePhase, RebuildPhase, Signal
from diffmm_dist.models.common.ranking import RankingPhase
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.models.diffkg.model import DiffKG, Dropout
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.sparse import CSR


@dataclass(frozen=True)
class ContrastSettings:
    """Settings of the contrastive loss; see the configuration reference."""

    contrastive_weight: float
    temperature: float
    negatives: Literal["all", "batch"] = "all"
    max_nodes: int | None = None


@dataclass(frozen=True)
class Selection:
    """How the tails of the generated graph are chosen; see the configuration reference."""

    candidates: Literal["all", "neighbors"]
    min_confidence: float | None


def diffkg_phases(
    model: DiffKG, optimization: Optimization, contrast: ContrastSettings, selection: Selection
) -> list[Phase]:
    """Return denoise, rebuild and recommend; without the first two where the generated graph has no effect."""

    def losses(batch: RankingBatch) -> dict[str, Tensor]:
        return recommend_losses(model, batch, optimization, contrast)

    recommend = RankingPhase(model.data, model.tables, model.replicas, losses, optimization)
    if not model.settings.reads_generated:
        return [recommend]
    weight = model.denoising.settings.signal_weight
    denoise = DenoisePhase(
        model.denoising, lambda: {"": collaborative_signal(model)}, optimization, weights=(1 - weight, weight)
    )
    return [denoise, GeneratedGraph(model, selection), recommend]


def collaborative_signal(model: DiffKG) -> Signal:
    """Return CKGC: the prediction's item columns times R^T E_u are to be the row of E_e.

    The workers of a row of the mesh share its rows, and each gives the targets of those that it owns.
    """
    shard = model.denoising.shard
    count = shard.own.stop - shard.own.start
    own = F.pad(model.node_rows().detach()[:count], (0, 0, 0, 1))  # zeros behind them, for the rows of other workers

    def target(_: CSR, rows: Tensor) -> Tensor:
        places = rows - shard.own.start
        return own.index_select(0, torch.where((places >= 0) & (places < count), places, count))

    return Signal("ckgc", shard.of_columns(model.collaborative_rows()), target)


class GeneratedGraph(RebuildPhase):
    """Choose the best tails of every row, and make those that are facts the generated graph."""

    def __init__(self, model: DiffKG, selection: Selection) -> None:
        super().__init__(model.denoising, topk=model.item_tails.shape[1], among=selection.candidates)
        self._model = model
        self._min_confidence = selection.min_confidence

    def keep(self, own_rows: slice, index: int, values: Tensor, ids: Tensor) -> None:
        """Keep the tails of some rows."""
        chosen = torch.isfinite(values)
        if self._min_confidence is not None:
            chosen &= values >= self._min_confidence
        self._model.keep_tails(own_rows, torch.where(chosen, ids, -1))

    def finish(self) -> dict[str, float]:
        """Put the generated graph in place; report what share of the rows chose a fact, and how many facts are kept."""
        super().finish()
        model = self._model
        chosen, kept = model.use_generated(self._context.epoch)
        tails = torch.cat([model.item_tails, model.entity_tails])
        heads = torch.arange(tails.shape[0], device=tails.device)[:, None].expand_as(tails)
        known = model.knowledge.facts.pairs.contains(heads, tails.clamp(min=0)) & (tails >= 0)
        counts = torch.tensor(
            [int(known.any(dim=1).sum()), tails.shape[0], chosen.pairs.num_entries, kept.pairs.num_entries],
            device=tails.device,
        )
        rows_with_facts, rows, num_chosen, num_kept = all_reduce_sum(counts, model.shard.world).tolist()
        return {
            "fact_share": rows_with_facts / max(rows, 1),
            "chosen_facts": float(num_chosen),
            "kept_facts": float(num_kept),
        }


def message_dropout(model: DiffKG, stream: RandomStream, view: str) -> Dropout | None:
    """Return the dropout of a view in one batch, keyed by the ids of nodes; None where there is none."""
    probability, own = model.settings.message_dropout_prob, model.knowledge.own_ids
    if probability == 0:
        return None
    width = model.user_embedding.shape[1]
    of_view = stream.child("message_dropout", view)

    def factors(hop: int, count: int) -> Tensor:
        return of_view.child(hop).dropout_rows(own[:count], width, keep_prob=1 - probability)

    return factors


def recommend_losses(
    model: DiffKG,
    batch: RankingBatch,
    optimization: Optimization,
    contrast: ContrastSettings,
    *,
    dropout: Callable[[DiffKG, RandomStream, str], Dropout | None] = message_dropout,
) -> dict[str, Tensor]:
    """Return this worker's shares of the weighted terms of the recommendation loss (README.md, "recommend").

    Args:
        model: the model.
        batch: the batch.
        optimization: how to optimise.
        contrast: of the views.
        dropout: of a view, ``main`` or ``auxiliary``, in a batch with this stream.
    """
    main, auxiliary = model.settings.trained_views
    final = model(main, dropout=dropout(model, batch.stream, "main"))
    losses = {
        "bpr": batch.bpr(final, divisor=optimization.batch_size),
        "l2": optimization.l2_weight * model.squared_norm(),
    }
    if contrast.contrastive_weight > 0:
        other = model(auxiliary, dropout=dropout(model, batch.stream, "auxiliary"))
        terms = [
            Term(anchor, [target], of_side)
            for nodes in batch.contrasted_nodes(contrast.max_nodes)
            for anchor, target, of_side in zip(other, final, nodes, strict=True)
        ]
        in_batch = contrast.negatives == "batch"
        loss = info_nce_of_terms(terms, temperature=contrast.temperature, world=model.shard.world, in_batch=in_batch)
        losses["contrast"] = contrast.contrastive_weight * loss / batch.num_micro_batches
    return losses
