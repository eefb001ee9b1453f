"""Runs of the toy model that end in the middle."""

from diffmm_dist.errors import StoppedError
from diffmm_dist.models.registry import FOLDERS
from diffmm_dist.training.worker import run_worker
from tests.support.builders import small_config

TOY = {
    "model": {"name": "toy", "refine_epochs": 2}, "train": {"epochs": 3, "batch_size": 960},
    "monitoring": {"tensorboard": False}, "checkpoint": {"every_epochs": 2}, "eval": {"batch_size": 256},
}  # fmt: skip


def register(registry=FOLDERS):
    registry["toy"] = "tests.contracts.toy"


def config_of(dataset, run, **sections):
    """A run of a few seconds; sections override single keys."""
    merged = {key: {**TOY.get(key, {}), **sections.get(key, {})} for key in {**TOY, **sections}}
    return small_config(dataset, run, **merged)


def stopped(config, polls, world=None):
    """Train until it was asked that often whether to stop; return where it stopped, None at the end."""
    asked = 0

    def stop_requested():
        nonlocal asked
        asked += 1
        return asked == polls and (world is None or world.is_first)

    try:
        run_worker(config, stop_requested=stop_requested, show_progress=False)
    except StoppedError as error:
        return str(error)
    return None


def train_in_pieces(config, world=None):
    """Stop after every step, and wherever else it is asked whether to stop; return where."""
    places, polls = [], 1
    while (place := stopped(config, polls, world)) is not None:
        polls = polls + 1 if places and places[-1] == place else 1  # what an evaluation has done is not kept
        places.append(place)
    return places
