"""Checkpoints that are not what their place says: of other runs, under other names, links, pipes and devices."""

import json
import os

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from diffmm_dist.errors import DamagedError, StoppedEarlyError, UserError
from diffmm_dist.records import unsealed
from diffmm_dist.runs.checkpoint import Writer
from tests.support.builders import RUN_ID, progress_at, run_checkpoints

FILES = ["__0_0.distcp", "index.json", "state.json"]


def save(checkpoints, *cursor):
    checkpoints.save({"model/table": torch.arange(12.0).view(3, 4)}, progress_at(*cursor))


def read_all(checkpoint):
    return checkpoint.progress, checkpoint.tensors()


@pytest.mark.parametrize("change", ["another run", "another name", "without its checksum"])
def test_an_intact_checkpoint_that_is_not_what_its_place_says(tmp_path, change):
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
    expected = {
        "another run": "epoch-00002 belongs to another run",
        "another name": "epoch-00002 is the checkpoint epoch-00001 under another's name",
        "without its checksum": "epoch-00002/state.json is damaged: it has no checksum",
    }[change]
    if change == "another name":
        os.rename(tmp_path / "epoch-00001", tmp_path / "epoch-00002")
    else:
        save(run_checkpoints(tmp_path, run="f" * 32 if change == "another run" else RUN_ID), 2)
    state = tmp_path / "epoch-00002" / "state.json"
    if change == "without its checksum":
        state.write_text(json.dumps(unsealed(json.loads(state.read_text()))))
    with pytest.raises(DamagedError, match=f"{expected}.*; restore it, or let `train` go on without this checkpoint"):
        checkpoints.open("epoch-00002")


def test_a_checkpoint_copied_from_s3_to_a_disk_keeps_its_name(tmp_path):
    checkpoints = run_checkpoints(tmp_path, writer=Writer(7))
    save(checkpoints, 1)
    os.rename(tmp_path / "epoch-00001", tmp_path / "epoch-00001-writer-00007")
    assert checkpoints.open("epoch-00001-writer-00007").progress == progress_at(1)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_never_ends_is_not_read(tmp_path, file, make):
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
    (tmp_path / "epoch-00001" / file).unlink()
    make(tmp_path / "epoch-00001" / file)
    with pytest.raises(UserError, match=rf"epoch-00001/{file} is no regular file"):
        read_all(checkpoints.open("epoch-00001"))


@pytest.mark.parametrize("name", ["partial-epoch-00001", "epoch-00001"])
@pytest.mark.parametrize("target", ["outside", "not there"])
def test_a_link_in_the_way_of_a_save_is_removed_and_not_followed(tmp_path, name, target):
    outside, folder = tmp_path / "outside", tmp_path / "checkpoints"
    outside.mkdir()
    folder.mkdir()
    (outside / "state.json").write_text("mine")
    (folder / name).symlink_to(tmp_path / target)
    checkpoints = run_checkpoints(folder)
    save(checkpoints, 1)
    read_all(checkpoints.open("epoch-00001"))
    assert [path.name for path in folder.iterdir() if not path.is_symlink()] == ["epoch-00001"] == os.listdir(folder)
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("state.json", "mine")]
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "outside"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StoppedEarlyError("stopped")])
def test_a_signal_while_reading_is_no_damage(tmp_path, monkeypatch, error):
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)

    def interrupted(*_, **__):
        raise error

    monkeypatch.setattr(FileSystemReader, "read_data", interrupted)
    with pytest.raises(type(error)):
        checkpoints.newest(read_all)
    assert checkpoints.damaged == []
