"""What benchmarks of phases share."""

from diffmm_dist.errors import UserError
from diffmm_dist.models.base import Recommender
from diffmm_dist.runs.config import Config
from diffmm_dist.train.build import model_entry


def check_has_phases(config: Config) -> None:
    """Refuse a model that is ready when it is made.

    Raises:
        UserError: it is one.
    """
    if model_entry(config).measures.work is None:
        raise UserError(f"model.name={config.model.name} has no phases of training to measure; choose another model")


def settle(config: Config, model: Recommender) -> None:
    """Bring a model that was just built to what a phase finds in the middle of a run, in place."""
    model_entry(config).measures.settle(model)
