"""How LightGCN is built."""

from collections.abc import Mapping, Sequence

from diffmm_dist.models.common.costs import ModelMemory
from diffmm_dist.models.common.work import Cuts, Traffic, Work
from diffmm_dist.models.lightgcn import costs
from diffmm_dist.models.lightgcn.model import LightGCN
from diffmm_dist.models.lightgcn.phases import lightgcn_phases
from diffmm_dist.models.lightgcn.settings import Settings
from diffmm_dist.models.measures import Measures
from diffmm_dist.models.recipe import Ingredients, ModelEntry, Needs, Recipe


def _build(settings: Settings, given: Ingredients) -> Recipe:
    layout = given.layout(width=settings.embedding_dim)
    model = LightGCN(
        given.data.shard,
        given.real_graph(width=settings.embedding_dim, layout=layout),
        seed=given.seed,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        layout=layout,
    ).to(given.device)
    return Recipe(model, given.only_stage(lightgcn_phases(model, given.data, given.optimization)))


def _memory(settings: Settings, needs: Needs) -> ModelMemory:
    return costs.memory(
        needs.share,
        needs.graph,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        step_size=needs.step_size,
        dgl=needs.dgl,
    )


def _work(settings: Settings, needs: Needs) -> Mapping[str, Work]:
    return costs.work(
        needs.share,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        step_size=needs.step_size,
        by_columns=needs.by_columns,
        read_edges=needs.read_edges,
    )


def _traffic(settings: Settings, cuts: Cuts) -> Sequence[Traffic]:
    return costs.traffic(cuts, embedding_dim=settings.embedding_dim, num_layers=settings.num_layers)


ENTRY = ModelEntry(
    _build,
    _memory,
    by_columns=True,
    several_batches=True,
    smallest=lambda _: {"embedding_dim": 1, "num_layers": 0},
    measures=Measures(_work, _traffic),
)
