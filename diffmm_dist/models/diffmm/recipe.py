"""How DiffMM is built."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffmm_dist.models.common.costs import ModelMemory
from diffmm_dist.models.common.denoising import DiffusionSettings
from diffmm_dist.models.common.denoising_costs import Denoising
from diffmm_dist.models.common.denoising_shard import column_shards
from diffmm_dist.models.common.work import Cuts, Traffic, Work
from diffmm_dist.models.diffmm.costs.memory import Features, memory
from diffmm_dist.models.diffmm.costs.traffic import settle, traffic
from diffmm_dist.models.diffmm.costs.work import work
from diffmm_dist.models.diffmm.model import DiffMM
from diffmm_dist.models.diffmm.phases import ContrastSettings, diffmm_phases
from diffmm_dist.models.diffmm.settings import Settings
from diffmm_dist.models.measures import Measures
from diffmm_dist.models.recipe import Ingredients, ModelEntry, Needs, Recipe


def _build(settings: Settings, given: Ingredients) -> Recipe:
    shard = given.data.shard
    layout = given.layout(width=settings.embedding_dim)
    model = DiffMM(
        given.data,
        given.real_graph(width=settings.embedding_dim, layout=layout),
        seed=given.seed,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        modality_projection=settings.modality_projection,
        residual_weight=settings.residual_weight,
        modal_graph_weight=settings.modal_graph_weight,
        diffusion=diffusion_of(settings),
        num_item_shards=item_shards(
            settings,
            batch_size=given.optimization.batch_size,
            num_items=shard.num_items,
            num_workers=shard.world.size,
        ),
        layout=layout,
    ).to(given.device)
    phases = diffmm_phases(model, given.optimization, contrast_of(settings))
    return Recipe(model, given.only_stage(phases))


def diffusion_of(settings: Settings) -> DiffusionSettings:
    """Return what the model is told of its denoisers."""
    denoiser = settings.denoiser
    return DiffusionSettings(**settings.diffusion.model_dump(), products=denoiser.products, noise=denoiser.noise)


def contrast_of(settings: Settings) -> ContrastSettings:
    """Return what the phases are told of the contrast."""
    return ContrastSettings(**settings.contrast.model_dump())


def item_shards(settings: Settings, *, batch_size: int, num_items: int, num_workers: int) -> int:
    """Return over how many workers each denoiser is spread."""
    return column_shards(
        settings.denoiser.sharding,
        settings.diffusion.denoiser_hidden_dims,
        num_columns=num_items,
        embedding_dim=settings.embedding_dim,
        batch_size=batch_size,
        num_workers=num_workers,
    )


def _denoising(settings: Settings, needs: Needs) -> Denoising:
    share = needs.share
    return Denoising(
        count=len(needs.widths),
        item_shards=item_shards(
            settings, batch_size=needs.batch_size, num_items=share.num_items, num_workers=share.num_workers
        ),
        batch_size=needs.batch_size,
        rounded=needs.rounded,
    )


def _memory(settings: Settings, needs: Needs) -> ModelMemory:
    projection = settings.modality_projection
    kinds = [projection if isinstance(projection, str) else projection.get(name, "affine") for name in needs.widths]
    return memory(
        needs.share,
        needs.graph,
        _denoising(settings, needs),
        diffusion_of(settings),
        contrast_of(settings),
        Features(list(needs.widths.values()), kinds.count("matrix")),
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        dgl=needs.dgl,
        propagate_every=needs.propagate_every,
    )


def _work(settings: Settings, needs: Needs) -> Mapping[str, Work]:
    return work(
        needs.share,
        _denoising(settings, needs),
        diffusion_of(settings),
        contrast_of(settings),
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        by_columns=needs.by_columns,
        read_edges=needs.read_edges,
        propagate_every=needs.propagate_every,
    )


def _traffic(settings: Settings, cuts: Cuts) -> Sequence[Traffic]:
    shards = item_shards(
        settings,
        batch_size=cuts.batch_size,
        num_items=cuts.data.shard.num_items,
        num_workers=len(cuts.shards),
    )
    return traffic(
        cuts,
        diffusion_of(settings),
        contrast_of(settings),
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        item_shards=shards,
    )


def _smallest(settings: Settings) -> Mapping[str, Any]:
    return {
        "embedding_dim": 1,
        "num_layers": 0,
        "diffusion.denoiser_hidden_dims": (1,) * len(settings.diffusion.denoiser_hidden_dims),
        "diffusion.rebuild_topk": 1,
        "denoiser.products": "gram",
        "contrast.negatives": "batch",
    }


ENTRY = ModelEntry(
    _build,
    _memory,
    reads_features=True,
    by_columns=True,
    several_batches=True,
    bounds={"diffusion.rebuild_topk": "items", "contrast.max_nodes": "nodes"},
    smallest=_smallest,
    measures=Measures(
        _work,
        _traffic,
        settle=settle,
        sizes={"hidden": ("diffusion.denoiser_hidden_dims", lambda width: (width,))},
        losses=("denoise/elbo_", "denoise/msi_", "recommend/bpr", "recommend/contrast"),
    ),
)
