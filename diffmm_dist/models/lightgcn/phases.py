"""LightGCN's epoch: recommend."""

from torch import Tensor

from diffmm_dist.data.training import TrainingData
from diffmm_dist.models.base import Optimization, Phase
from diffmm_dist.models.common.ranking import RankingPhase
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.models.lightgcn.model import LightGCN


def lightgcn_phases(model: LightGCN, data: TrainingData, optimization: Optimization) -> list[Phase]:
    """Return the one phase: BPR and L2 of the ID tables over the interactions."""

    def losses(batch: RankingBatch) -> dict[str, Tensor]:
        final = model(reading=batch.reading(model.layout, model.graph).local)
        bpr = batch.bpr_of_local(final, divisor=optimization.batch_size)
        return {"bpr": bpr, "l2": optimization.l2_weight * model.squared_norm()}

    return [RankingPhase(data, list(model.parameters()), [], losses, optimization, in_layout=model)]
