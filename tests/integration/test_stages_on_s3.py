"""A run of three stages whose folder is on S3: stopped again and again, it ends with the numbers of one on a disk."""

import re

import pytest
import torch

from diffmm_dist import storage
from diffmm_dist.data.training import shard_of
from diffmm_dist.errors import UserError
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.models.registry import FOLDERS
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.training.teacher import load_teacher
from diffmm_dist.training.trained import load_trained
from tests.contracts.toy.training import config_of, register, stopped
from tests.support.builders import train_alone


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(FOLDERS, "toy", "")
    register()


def test_stages_on_s3(dataset, place, tmp_path):
    sections = {"train": {"batch_size": 3200}}
    whole = train_alone(config_of(dataset, tmp_path / "whole", **sections))
    config, polls, names = config_of(dataset, f"{place}/run", **sections), 11, set()
    while stopped(config, polls) is not None:
        names |= set(storage.list_names(f"{place}/run/checkpoints"))
        polls = 18 - polls  # not always at the same place
    result = RunFolder.existing(f"{place}/run").result()
    for key in ("valid", "test", "best_epoch", "epochs", "notes"):
        assert result[key] == whole[key]
    found, expected = ([{**stage, "seconds_per_epoch": 0} for stage in one["stages"]] for one in (result, whole))
    assert found == expected
    assert any(re.fullmatch(r"epoch-\d{5}-stage-2-phase-0-step-\d{7}-writer-\d{5}", name) for name in names)
    trained = load_trained(f"{place}/run")
    assert trained.model.stage == "student"
    assert trained.evaluation([5, 20]).measure(trained.model, "test") == whole["test"]
    # Run and bundle are teachers from there too.
    export_bundle(trained, f"{place}/bundle")
    shard = shard_of(trained.dataset, World.single())
    for name in ("run", "bundle"):
        tables = load_teacher(f"{place}/{name}", trained.dataset, shard, student=f"{place}/student")
        assert all(map(torch.equal, (tables.users, tables.items), trained.model.embeddings()))
    with pytest.raises(UserError, match="is the student's own run folder"):
        load_teacher(f"{place}/run/", trained.dataset, shard, student=f"{place}/run")
