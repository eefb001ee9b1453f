"""How AdaGCL is built."""

from collections.abc import Mapping, Sequence

from diffmm_dist.models.adagcl import costs
from diffmm_dist.models.adagcl.gates import HardConcrete
from diffmm_dist.models.adagcl.model import AdaGCL
from diffmm_dist.models.adagcl.phases import AdaptivePhase, ViewSettings
from diffmm_dist.models.adagcl.settings import Settings
from diffmm_dist.models.common.costs import ModelMemory
from diffmm_dist.models.common.work import Cuts, Traffic, Work
from diffmm_dist.models.measures import Measures
from diffmm_dist.models.recipe import Ingredients, ModelEntry, Needs, Recipe


def _build(settings: Settings, given: Ingredients) -> Recipe:
    model = AdaGCL(
        given.data.shard,
        given.real_graph(width=settings.embedding_dim),
        seed=given.seed,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        gates=HardConcrete(settings.gates.gamma, settings.gates.zeta),
        mode=settings.mode,
    ).to(given.device)
    phases = [AdaptivePhase(model, given.data, given.optimization, _views(settings))]
    return Recipe(model, given.only_stage(phases))


def _views(settings: Settings) -> ViewSettings:
    contrast, gates = settings.contrast, settings.gates
    return ViewSettings(
        contrastive_weight=contrast.contrastive_weight,
        bottleneck_weight=contrast.bottleneck_weight,
        temperature=contrast.temperature,
        contrast_alone=contrast.negatives == "worker",
        kl_weight=settings.pruning.kl_weight,
        l0_weight=gates.l0_weight,
        initial_temperature=gates.initial_temperature,
        temperature_decay=gates.temperature_decay,
        lowest_temperature=gates.lowest_temperature,
        adam_eps=gates.adam_eps,
    )


def _memory(settings: Settings, needs: Needs) -> ModelMemory:
    return costs.memory(
        needs.share,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        batch_size=needs.batch_size,
        snapshot=settings.mode == "reference",
        dgl=needs.dgl,
    )


def _work(settings: Settings, needs: Needs) -> Mapping[str, Work]:
    return costs.work(
        needs.share,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        batch_size=needs.batch_size,
        alone=settings.contrast.negatives == "worker",
    )


def _traffic(settings: Settings, cuts: Cuts) -> Sequence[Traffic]:
    return costs.traffic(
        cuts,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        alone=settings.contrast.negatives == "worker",
    )


ENTRY = ModelEntry(
    _build,
    _memory,
    smallest=lambda _: {"embedding_dim": 1, "num_layers": 1},
    measures=Measures(
        _work,
        _traffic,
        losses=(
            "recommend/contrast",
            "recommend/bottleneck",
            "recommend/bpr",
            "recommend/pruning_",
            "recommend/gates_",
        ),
    ),
)
