"""No step of any model makes a GPU's host wait, but for what is allowed here and why; no GPU is needed to see it."""

from functools import cache

import pytest
import torch

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
    "promptmm, embeddings of another width": {
        "model": {"name": "promptmm", "student": {"embedding_dim": 4}, "distillation": _FROZEN},
        "train": {"batch_size": 100},
    },
}  # fmt: skip
# Functions that ask for what the host waits for, and why they may.
ALLOWED = {
    "models/common/ranking_batch.py reads": "how many rows batches read is the size of what is computed for them",
    "models/common/ranking_batch.py nodes": "how many nodes batches have is the size of what is contrasted",
    "models/common/ranking_batch.py sampled_nodes": "how many of them are drawn likewise",
    "models/common/ranking.py _users": "which users of a batch are own ones, and where the permutation ends",
    "graph/targets.py of": "how many edges lead to the rows that a batch reads is the size of its products",
}


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Everything that is done in blocks is done in several."""
    monkeypatch.setitem(FOLDERS, "toy", "tests.contracts.toy")
    monkeypatch.setattr(denoising, "REBUILT_ROWS", 64)
    monkeypatch.setattr(noise, "BLOCK_ELEMENTS", 2000)


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
    reads, _ = trained(case)
    unexpected = {f"{phase}: {read}" for phase, found in reads.items() for read in found if not read.within(ALLOWED)}
    assert not unexpected, "\n".join(unexpected)


@pytest.mark.parametrize("case", CASES)
def test_the_device_of_straw_computes_what_the_processor_does(trained, case):
    assert trained(case)[1] == trained(case, torch.device("cpu"))[1]


def test_what_is_allowed_is_asked_for(trained):
    """What is not asked for any more is not allowed any more."""
    reads = [read for case in CASES for of_phase in trained(case)[0].values() for read in of_phase]
    assert {function for read in reads for function in read.within(ALLOWED)} == set(ALLOWED)
