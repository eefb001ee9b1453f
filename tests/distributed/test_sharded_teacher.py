"""A teacher on several workers: each has its own rows, the same as one worker would have; refusals reach all."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from diffmm_dist.bundles import files as bundle_files
from diffmm_dist.bundles.bundle import read_bundle
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import shard_of
from diffmm_dist.errors import UserError
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.preparation.partitioning import partition_dataset
from diffmm_dist.training import teacher
from diffmm_dist.training.teacher import load_teacher
from diffmm_dist.training.trained import load_trained
from tests.support import damage
from tests.support.builders import small_config, synthetic_dataset, train_alone
from tests.support.workers import on_workers

MODELS = ["lightgcn", "diffmm", "diffkg"]
SECTIONS = {"train": {"epochs": 1}, "graph": {"kernel": "csr"}, "monitoring": {"tensorboard": False}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one worker of each model, and what it exports."""
    folder = tmp_path_factory.mktemp("teachers")
    source = synthetic_dataset(folder / "source", knowledge=True)
    partition_dataset(source, str(folder / "data"), num_parts=4, method="random", seed=1)
    for model in MODELS:
        train_alone(small_config(folder / "data", folder / model, model={"name": model}, **SECTIONS))
        export_bundle(load_trained(str(folder / model)), str(folder / f"{model}-bundle"))
    return folder


def load(world, folder, address):
    dataset = Dataset.open(f"{folder}/data")
    shard = shard_of(dataset, world)
    return load_teacher(f"{folder}/{address}", dataset, shard, student=f"{folder}/student"), shard


def check_own_rows(world, folder, address):
    """The rows of all workers are those of one."""
    expected = read_bundle(f"{folder}/{address.removesuffix('-bundle')}-bundle")
    users, items = (torch.from_numpy(rows.array()) for rows in (expected.user_rows, expected.item_rows))
    found, shard = load(world, folder, address)
    counts = torch.tensor([len(found.users), len(found.items)])
    assert all_reduce_sum(counts, world).tolist() == [60, 40]
    torch.testing.assert_close(found.users, users[shard.user_ids], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.items, items[shard.own_item_ids], rtol=1e-5, atol=1e-6)
    if address.endswith("-bundle"):
        assert torch.equal(found.users, users[shard.user_ids])


def check_refused(world, folder, address, said):
    """One worker says what is wrong, the others that one has."""
    with pytest.raises(UserError) as error:
        load(world, folder, address)
    sentences = (said, "another worker has found something wrong; its message says what")
    assert any(sentence in str(error.value) for sentence in sentences)
    says = torch.tensor([float(said in str(error.value))])
    assert all_reduce_sum(says, world) >= 1


def check_found_by_one(world, folder):
    """What one worker alone finds: a row that is not finite, and another teacher at the same address."""
    read = bundle_files.read_embeddings

    def wrong(*arguments):
        rows = read(*arguments)
        rows[0] = np.nan
        return rows

    with pytest.MonkeyPatch.context() as patch:
        if not world.is_first:
            patch.setattr(bundle_files, "read_embeddings", wrong)
        check_refused(world, folder, "lightgcn-bundle", "holds NaN")
    address = "lightgcn-bundle" if world.is_first else "diffmm-bundle"
    with pytest.raises(UserError, match="was changed while it was read; let its training end, then start again"):
        load(world, folder, address)
    kind = teacher._kind

    def alone(*arguments):
        if world.is_first:
            return kind(*arguments)
        raise UserError("it is not here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "_kind", alone)
        check_refused(world, folder, "lightgcn", "it is not here")


@pytest.mark.parametrize("size", [2, 3])
def test_on_workers(folder, tmp_path, size):
    (checkpoint,) = (folder / "diffmm" / "checkpoints").iterdir()
    addresses = [f"{model}{form}" for model in MODELS for form in ("", "-bundle")]
    on_workers(
        size, *(partial(check_own_rows, folder=str(folder), address=address) for address in addresses),
        partial(check_found_by_one, folder=str(folder)),
        partial(check_refused, folder=str(folder), address="none", said="is neither a run folder"),
    )  # fmt: skip
    chunk = json.loads((checkpoint / "index.json").read_text())["tensors"]["model/item_embedding"]["chunks"][0]
    place = chunk["start"] + chunk["length"] - 1  # the last row, which the last worker alone reads
    damage.flip(checkpoint / chunk["file"], place)
    on_workers(size, partial(check_refused, folder=str(folder), address="diffmm", said=checkpoint.name))
    damage.flip(checkpoint / chunk["file"], place)
