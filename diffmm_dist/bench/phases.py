"""What benchmarks of phases share."""

from diffmm_dist.errors import UserError
from diffmm_dist.models.base import Recommender
from diffmm_dist.models.recipe import Recipe
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import model_entry


def check_has_phases(config: Config) -> None:
    """Refuse a model that is ready when it is made.

    Raises:
        UserError: it is one.
    """
    if model_entry(config).measures.work is None:
        raise UserError(f"model.name={config.model.name} has no phases of training to measure; choose another model")


def begin_stages(recipe: Recipe) -> None:
    """Begin every stage after the other, so that the phases of each find what it starts with."""
    for stage in recipe.stages:
        recipe.model.stage = stage.name
        if stage.begin is not None:
            stage.begin()


def settle(config: Config, model: Recommender) -> None:
    """Bring a model that was just built to what a phase finds in the middle of a run, in place."""
    model_entry(config).measures.settle(model)
