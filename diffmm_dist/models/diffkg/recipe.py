"""How DiffKG is built."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffmm_dist.models.common.costs import ModelMemory
from diffmm_dist.models.common.denoising import DiffusionSettings
from diffmm_dist.models.common.denoising_costs import Denoising
from diffmm_dist.models.common.denoising_shard import column_shards
from diffmm_dist.models.common.work import Cuts, Traffic, Work
from diffmm_dist.models.diffkg import costs
from diffmm_dist.models.diffkg.model import DiffKG, KnowledgeSettings
from diffmm_dist.models.diffkg.phases import ContrastSettings, Selection, diffkg_phases
from diffmm_dist.models.diffkg.settings import Settings
from diffmm_dist.models.measures import Measures
from diffmm_dist.models.recipe import Ingredients, ModelEntry, Needs, Recipe


def _build(settings: Settings, given: Ingredients) -> Recipe:
    data = given.data
    assert data.knowledge is not None
    model = DiffKG(
        data,
        given.real_graph(width=settings.embedding_dim),
        seed=given.seed,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        settings=_knowledge(settings),
        diffusion=_diffusion(settings),
        num_column_shards=_column_shards(
            settings,
            batch_size=given.optimization.batch_size,
            num_nodes=data.knowledge.num_nodes,
            num_workers=data.shard.world.size,
        ),
    ).to(given.device)
    selection = Selection(settings.diffusion.candidates, settings.diffusion.min_confidence)
    return Recipe(model, given.only_stage(diffkg_phases(model, given.optimization, _contrast(settings), selection)))


def _knowledge(settings: Settings) -> KnowledgeSettings:
    return KnowledgeSettings(
        **settings.knowledge.model_dump(),
        **settings.views.model_dump(),
        mode=settings.mode,
        rows=settings.diffusion.rows,
    )


def _diffusion(settings: Settings) -> DiffusionSettings:
    of_graph = settings.diffusion.model_dump(exclude={"rows", "candidates", "min_confidence"})
    return DiffusionSettings(**of_graph, products=settings.denoiser.products, noise=settings.denoiser.noise)


def _contrast(settings: Settings) -> ContrastSettings:
    return ContrastSettings(**settings.contrast.model_dump())


def _column_shards(settings: Settings, *, batch_size: int, num_nodes: int, num_workers: int) -> int:
    return column_shards(
        settings.denoiser.sharding,
        settings.diffusion.denoiser_hidden_dims,
        num_columns=num_nodes,
        embedding_dim=settings.embedding_dim,
        batch_size=batch_size,
        num_workers=num_workers,
    )


def _denoising(settings: Settings, needs: Needs) -> Denoising:
    return Denoising(
        count=1,
        item_shards=_column_shards(
            settings,
            batch_size=needs.batch_size,
            num_nodes=costs.num_nodes(needs.share),
            num_workers=needs.share.num_workers,
        ),
        batch_size=needs.batch_size,
        rounded=needs.rounded,
    )


def _memory(settings: Settings, needs: Needs) -> ModelMemory:
    return costs.memory(
        needs.share,
        _denoising(settings, needs),
        _diffusion(settings),
        _knowledge(settings),
        embedding_dim=settings.embedding_dim,
        contrast=_contrast(settings),
        dgl=needs.dgl,
        propagate_every=needs.propagate_every,
    )


def _work(settings: Settings, needs: Needs) -> Mapping[str, Work]:
    return costs.work(
        needs.share,
        _denoising(settings, needs),
        _diffusion(settings),
        _knowledge(settings),
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        contrast=_contrast(settings),
        propagate_every=needs.propagate_every,
    )


def _traffic(settings: Settings, cuts: Cuts) -> Sequence[Traffic]:
    knowledge = cuts.data.knowledge
    assert knowledge is not None
    return costs.traffic(
        cuts,
        _diffusion(settings),
        _knowledge(settings),
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        contrast=_contrast(settings),
        column_shards=_column_shards(
            settings, batch_size=cuts.batch_size, num_nodes=knowledge.num_nodes, num_workers=len(cuts.shards)
        ),
    )


def _smallest(settings: Settings) -> Mapping[str, Any]:
    return {
        "embedding_dim": 1,
        "num_layers": 0,
        "knowledge.max_facts": 1,
        "diffusion.denoiser_hidden_dims": (1,) * len(settings.diffusion.denoiser_hidden_dims),
        "diffusion.rebuild_topk": 1,
        "denoiser.products": "gram",
    }


ENTRY = ModelEntry(
    _build,
    _memory,
    reads_knowledge=True,
    several_batches=True,
    bounds={"diffusion.rebuild_topk": "entities", "contrast.max_nodes": "nodes"},
    smallest=_smallest,
    measures=Measures(
        _work,
        _traffic,
        sizes={"hidden": ("diffusion.denoiser_hidden_dims", lambda width: (width,))},
        losses=("denoise/", "recommend/bpr", "recommend/contrast"),
    ),
)
