"""DiffMM's epoch: denoise (train the denoisers), rebuild (generate graphs), recommend (train the rest)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffmm_dist.graph.propagate import Rows
from diffmm_dist.losses.contrastive import Term, info_nce_of_terms
from diffmm_dist.models.base import Optimization, Phase
from diffmm_dist.models.common.denoising import DenoisePhase, RebuildPhase, Signal
from diffmm_dist.models.common.ranking import RankingPhase
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.models.diffmm.model import DiffMM
from diffmm_dist.parallel.collectives import all_reduce_sum


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

    def signals() -> dict[str, Signal]:
        rows = model.denoising.shard
        items = rows.of_columns(model.item_embedding)
        tables = {name: rows.of_columns(model.projected(name)) for name in model.modalities}
        return {name: Signal("msi", table, lambda rows, _: rows.matmul(items)) for name, table in tables.items()}

    return [
        DenoisePhase(model.denoising, signals, optimization, weights=(1, model.diffusion.signal_weight)),
        GeneratedGraphs(model),
        RankingPhase(model.data, tables, replicas, losses, optimization, in_layout=model, extra=modality_weights),
    ]


class GeneratedGraphs(RebuildPhase):
    """Keep the top-k items of every user per modality as the edges of a generated graph."""

    def __init__(self, model: DiffMM) -> None:
        super().__init__(model.denoising, topk=model.generated_items.shape[2])
        self._model = model

    def keep(self, own_rows: slice, index: int, values: Tensor, ids: Tensor) -> None:
        """Keep the items of some users."""
        self._model.generated_items[own_rows, index] = ids

    def finish(self) -> dict[str, float]:
        """Put the generated graphs in place; report which share of their edges is observed and which is new."""
        super().finish()
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
    in_batch = contrast.negatives == "batch"
    final, views = model(
        reading=batch.reading(model.layout, model.graph),
        with_views=contrast.contrastive_weight > 0,
        whole_views=not in_batch,
    )
    losses = {
        "bpr": batch.bpr_of_local(final, divisor=optimization.batch_size),
        "l2": optimization.l2_weight * model.squared_norm(),
    }
    terms = [
        Term(anchor[side], [target[side] for target in targets], nodes[side])
        for nodes in batch.contrasted_nodes(contrast.max_nodes)
        for anchor, targets in contrasted_views(final, list(views.values()), contrast.contrastive_anchor)
        for side in (0, 1)
    ]
    if terms:  # there are none with a weight of 0, nor between modalities where there is only one
        loss = info_nce_of_terms(terms, temperature=contrast.temperature, world=model.shard.world, in_batch=in_batch)
        losses["contrast"] = contrast.contrastive_weight * loss / batch.num_micro_batches
    return losses


def contrasted_views(final: Rows, views: list[Rows], anchor: Literal["main", "modal"]) -> list[tuple[Rows, list[Rows]]]:
    """Return (anchor view, those it is contrasted with): the main one and all, or each modality and the later ones."""
    if anchor == "main":
        return [(final, views)] if views else []
    return [(view, views[index + 1 :]) for index, view in enumerate(views[:-1])]
