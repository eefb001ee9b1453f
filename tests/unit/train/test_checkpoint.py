import io
import json
import os
import resource

import pytest
import torch

from diffmm_dist.errors import UserError
from diffmm_dist.parallel.world import World
from diffmm_dist.train.checkpoint import Checkpoints
from diffmm_dist.train.state import Best, Cursor, Progress
from tests.support.evil import evil_pickle

TENSORS = {
    "model/table": torch.arange(12.0).view(3, 4),
    "model/count": torch.tensor(7),
    "optimizer/denoise/0/step": torch.tensor(3.0),
    "model/generated": torch.randint(9, (2, 3, 1)),
}
PROGRESS = Progress(
    Cursor(epoch=1), Best(0, {"recall@20": 0.1 + 0.7}, "epoch-00002"), {"elbo": 0.1 + 0.2}, {"a/b": 1e-300}, {}
)


def save(checkpoints, name):
    checkpoints.save(name, TENSORS, PROGRESS, {})


def test_round_trip_is_exact(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=1, world=World.single())
    save(checkpoints, "epoch-00001")
    loaded = checkpoints.tensors("epoch-00001", {})
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
    assert checkpoints.progress("epoch-00001") == PROGRESS
    assert set(checkpoints.tensors("epoch-00001", {}, wanted=lambda n: n.startswith("model/t"))) == {"model/table"}


def test_names_sort_as_steps_do():
    name = Checkpoints.name
    steps = [(0, 0, 5), (0, 1, 0), (0, 2, 3), (1, 0, 0), (1, 0, 1), (1, 2, 999), (2, 0, 0), (11, 0, 0)]
    assert sorted(name(*step) for step in reversed(steps)) == [name(*step) for step in steps]


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=2, world=World.single())
    for epoch in range(1, 6):
        save(checkpoints, Checkpoints.name(epoch))
    assert checkpoints.names() == ["epoch-00002", "epoch-00004", "epoch-00005"]


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path), keep=1, world=World.single())
    save(checkpoints, "epoch-00001")
    monkeypatch.setattr("diffmm_dist.train.checkpoint.storage.write_json", lambda *_: os._exit(9))
    if (child := os.fork()) == 0:  # killed between the tensors and the state
        save(checkpoints, "epoch-00002")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (tmp_path / "partial-epoch-00002").exists()
    assert checkpoints.names() == ["epoch-00001"]
    monkeypatch.undo()
    save(checkpoints, "epoch-00002")
    assert checkpoints.names() == ["epoch-00002"]
    assert not list(tmp_path.glob("partial-*"))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=1, world=World.single())
    save(checkpoints, "epoch-00001")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))  # no file may grow beyond 2 KiB
    try:
        with pytest.raises(UserError) as error:
            checkpoints.save("epoch-00002", {"model/big": torch.zeros(4096)}, PROGRESS, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in str(error.value)
    assert "the last complete checkpoint is epoch-00001" in str(error.value)
    assert checkpoints.names() == ["epoch-00001"]
    assert torch.equal(checkpoints.tensors("epoch-00001", {})["model/table"], TENSORS["model/table"])
    assert not list(tmp_path.glob("partial-*"))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        save(Checkpoints(str(tmp_path / "file" / "checkpoints"), keep=1, world=World.single()), "epoch-00001")


@pytest.mark.parametrize("file", ["__0_0.distcp", "index.json", "state.json"])
@pytest.mark.parametrize("change", ["missing", "truncated"])
def test_a_damaged_checkpoint_is_named(tmp_path, file, change):
    checkpoints = Checkpoints(str(tmp_path), keep=1, world=World.single())
    save(checkpoints, "epoch-00001")
    path = tmp_path / "epoch-00001" / file
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(UserError, match="epoch-00001"):
        checkpoints.progress("epoch-00001")
        checkpoints.tensors("epoch-00001", {})


def test_the_only_pickles_of_a_checkpoint_are_those_of_its_tensors(tmp_path):
    """Everything else is JSON, which every interpreter and every torch reads alike."""
    checkpoints = Checkpoints(str(tmp_path), keep=1, world=World.single())
    save(checkpoints, "epoch-00001")
    files = {path.name: path for path in (tmp_path / "epoch-00001").iterdir()}
    assert set(files) == {"__0_0.distcp", "index.json", "state.json"}
    index = json.loads(files["index.json"].read_text())
    assert index["tensors"]["model/table"]["size"] == [3, 4]
    data = files["__0_0.distcp"].read_bytes()
    for entry in index["tensors"].values():
        (chunk,) = entry["chunks"]
        archive = io.BytesIO(data[chunk["start"] : chunk["start"] + chunk["length"]])
        assert list(torch.load(archive, weights_only=True).shape) == chunk["size"]


def test_tensors_that_would_run_code_are_refused(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=1, world=World.single())
    save(checkpoints, "epoch-00001")
    folder = tmp_path / "epoch-00001"
    evil = evil_pickle(tmp_path / "was-here")
    (folder / "__0_0.distcp").write_bytes(evil)
    index = json.loads((folder / "index.json").read_text())
    for entry in index["tensors"].values():
        entry["chunks"][0] |= {"start": 0, "length": len(evil)}
    del index["tensors"]["model/table"], index["tensors"]["model/generated"]  # larger than the pickle
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="epoch-00001 cannot be read"):
        checkpoints.tensors("epoch-00001", {})
    assert not (tmp_path / "was-here").exists()


def test_a_checkpoint_of_an_earlier_version_is_called_that(tmp_path):
    """Earlier versions left torch's own index, a pickle; nothing of it is loaded."""
    checkpoints = Checkpoints(str(tmp_path), keep=1, world=World.single())
    save(checkpoints, "epoch-00001")
    (tmp_path / "epoch-00001" / "index.json").unlink()
    (tmp_path / "epoch-00001" / ".metadata").write_bytes(evil_pickle(tmp_path / "was-here"))
    with pytest.raises(UserError, match=r"epoch-00001 was written by an earlier version of this program, .* train"):
        checkpoints.tensors("epoch-00001", {})
    assert not (tmp_path / "was-here").exists()
