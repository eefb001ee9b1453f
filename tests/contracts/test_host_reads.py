"""No step of any model makes a GPU's host wait, but for what is allowed here and why; no GPU is needed to see it."""

from functools import cache

import pytest
import torch

from diffmm_dist import host_rows
from diffmm_dist.diffusion import noise
from diffmm_dist.models.common import denoising
from diffmm_dist.models.registry import FOLDERS
from diffmm_dist.parallel.world import World
from tests.contracts.test_models import CASES as OF_MODELS
from tests.support.builders import small_config, synthetic_dataset
from tests.support.host import DEVICE, first_steps

_FROZEN = {"train_prompt": False, "views": "final"}
CASES = {name: sections for name, sections in OF_MODELS.items() if name != "popularity"} | {
    "diffmm, rows normalised, contrast of few nodes, bfloat16": {
        "model": {
            "name": "diffmm", "diffusion": {"normalize_input": True},
            "contrast": {"negatives": "batch", "max_nodes": 20},
        },
        "train": {"precision": "bfloat16", "batch_size": 64},
    },
    "diffmm, hidden noise": {
        "model": {"name": "diffmm", "diffusion": {"denoiser_hidden_dims": [16]}, "denoiser": {"noise": "hidden"}},
    },
    "diffmm, features in main memory": {
        "model": {"name": "diffmm", "modality_projection": {"visual": "matrix", "textual": "affine"}},
        "data": {"features_on": "host"},
    },
    "promptmm, features in main memory": {"model": {"name": "promptmm"}, "data": {"features_on": "host"}},
    "promptmm, embeddings of another width": {
        "model": {"name": "promptmm", "student": {"embedding_dim": 4}, "distillation": _FROZEN},
        "train": {"batch_size": 100},
    },
}  # fmt: skip
# Functions that may ask for what the host waits for, and why: when many batches are planned, and in each step.
PLANNING = {
    "models/common/ranking.py __getitem__": "who is drawn, and how many rows each worker sends, of the batches to come",
    "models/common/ranking_batch.py readings": "how many rows each reads, and edges lead to, are sizes of what follows",
    "models/common/ranking_batch.py nodes": "how many distinct nodes each has is the size of what is contrasted",
    "models/common/ranking_batch.py sampled_nodes": "how many of them are drawn likewise",
}
IN_EVERY_STEP = {"host_rows.py fetch": "a GPU copies from pinned memory by itself, so the host waits for nothing here"}


def unexpected(reads, in_every_step=IN_EVERY_STEP):
    """What of each phase's first step, and of its later ones, has no reason."""
    allowed = {**PLANNING, **in_every_step}, in_every_step
    return {
        f"{phase}, step {index}: {read}"
        for phase, steps in reads.items()
        for index, of_step in enumerate(steps)
        for read in of_step
        if not read.within(allowed[index])
    }


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Everything that is done in blocks is done in several."""
    monkeypatch.setitem(FOLDERS, "toy", "tests.contracts.toy")
    monkeypatch.setattr(denoising, "REBUILT_ROWS", 64)
    monkeypatch.setattr(noise, "BLOCK_ELEMENTS", 2000)
    monkeypatch.setattr(host_rows, "_BLOCK_ELEMENTS", 100)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a few steps of a case on a device; return what the host read in them, by phase, and what they returned."""
    folder = tmp_path_factory.mktemp("data")
    path = synthetic_dataset(folder / "d", users=200, items=60, interactions=2400, knowledge=True)

    @cache
    def of(case, device=DEVICE):
        config = small_config(path, folder / "run", **CASES[case])
        return first_steps(config, World.single(device))

    return of


@pytest.mark.parametrize("case", CASES)
def test_no_step_makes_the_host_wait(trained, case):
    """Nothing that is done next depends on a value that is still being computed."""
    found = unexpected(trained(case)[0])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("case", CASES)
def test_the_stand_in_computes_what_the_processor_does(trained, case):
    assert trained(case)[1] == trained(case, torch.device("cpu"))[1]


def test_what_is_allowed_is_asked_for(trained):
    """What is not asked for any more is not allowed any more."""
    allowed = {**PLANNING, **IN_EVERY_STEP}
    steps = [of_step for case in CASES for of_phase in trained(case)[0].values() for of_step in of_phase]
    assert {function for of_step in steps for read in of_step for function in read.within(allowed)} == set(allowed)
