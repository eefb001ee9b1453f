"""How popularity is built."""

from diffmm_dist.models.popularity import costs
from diffmm_dist.models.popularity.model import Popularity
from diffmm_dist.models.popularity.settings import Settings
from diffmm_dist.models.recipe import Ingredients, ModelEntry, Recipe, Stage


def _build(_: Settings, given: Ingredients) -> Recipe:
    return Recipe(Popularity(given.data).to(given.device), [Stage("count", [], epochs=1)])


ENTRY = ModelEntry(_build, lambda _, needs: costs.memory(needs.share), propagates=False)
