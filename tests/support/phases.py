"""Phases of models, without the loop around them."""

from diffmm_dist.bench.phases import settle
from diffmm_dist.training.build import build_recipe, load_training_data, open_dataset


def last_phase(config, world):
    """A new model with what its earlier phases would leave, and the phase that comes last."""
    dataset = open_dataset(config)
    recipe = build_recipe(config, load_training_data(config, dataset, world), device=world.device)
    settle(config, recipe.model)
    return recipe.model, recipe.phases[-1]
