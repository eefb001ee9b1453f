import io
import json
import os
import re
import resource
import shutil

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from diffmm_dist import storage
from diffmm_dist.errors import DamagedError, TakenOverError, UserError
from diffmm_dist.runs.checkpoint import Writer
from diffmm_dist.runs.checkpoint_names import NAME_PATTERN, checkpoint_name, complete_checkpoints, remove_incomplete
from diffmm_dist.runs.progress import Best, Cursor, Progress
from tests.support import damage
from tests.support.builders import run_checkpoints
from tests.support.evil import evil_pickle

TENSORS = {
    "model/table": torch.arange(12.0).view(3, 4),
    "model/count": torch.tensor(7),
    "optimizer/denoise/0/step": torch.tensor(3.0),
    "model/generated": torch.randint(9, (2, 3, 1)),
}


def progress(*cursor):
    best = Best(0, {"recall@20": 0.1 + 0.7}, "epoch-00002")
    return Progress(Cursor(*cursor), best, {"elbo": 0.1 + 0.2}, {"a/b": 1e-300}, {})


def save(checkpoints, *cursor, tensors=TENSORS):
    checkpoints.save(tensors, progress(*cursor))


def test_round_trip_is_exact(tmp_path):
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
    loaded = checkpoints.open("epoch-00001").tensors()
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
    assert checkpoints.open("epoch-00001").progress == progress(1)
    assert set(checkpoints.open("epoch-00001").tensors(wanted=lambda n: n.startswith("model/t"))) == {"model/table"}


def test_names_sort_as_steps_do():
    name = checkpoint_name
    steps = [(0, 0, 5), (0, 1, 0), (0, 2, 3), (1, 0, 0), (1, 0, 1), (1, 2, 999), (2, 0, 0), (11, 0, 0)]
    names = [name(*step) for step in steps]
    # The second stage begins where the first one has ended; epochs are counted through both.
    names += [name(11, *step, stage=stage) for stage in (1, 9) for step in ((), (0, 1), (1, 0))]
    names.append(name(12, stage=9))
    assert sorted(reversed(names)) == names
    assert all(re.search(NAME_PATTERN, name) for name in names)
    assert name(4, 1, 2, stage=3, writer=7) == "epoch-00004-stage-3-phase-1-step-0000002-writer-00007"
    assert re.search(NAME_PATTERN, name(4, 1, 2, stage=3, writer=7))


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = run_checkpoints(tmp_path, keep=2)
    for epoch in range(1, 6):
        save(checkpoints, epoch)
    assert checkpoints.names() == ["epoch-00002", "epoch-00004", "epoch-00005"]


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path, monkeypatch):
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
    monkeypatch.setattr("diffmm_dist.runs.checkpoint.storage.write_record", lambda *_: os._exit(9))
    if (child := os.fork()) == 0:  # killed between the tensors and the state
        save(checkpoints, 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (tmp_path / "partial-epoch-00002").exists()
    assert checkpoints.names() == ["epoch-00001"]
    monkeypatch.undo()
    save(checkpoints, 2)
    assert checkpoints.names() == ["epoch-00002"]
    assert not list(tmp_path.glob("partial-*"))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))  # no file may grow beyond 2 KiB
    try:
        with pytest.raises(UserError) as error:
            save(checkpoints, 2, tensors={"model/big": torch.zeros(4096)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in str(error.value)
    assert "the last complete checkpoint is epoch-00001" in str(error.value)
    assert checkpoints.names() == ["epoch-00001"]
    assert torch.equal(checkpoints.open("epoch-00001").tensors()["model/table"], TENSORS["model/table"])
    assert not list(tmp_path.glob("partial-*"))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        save(run_checkpoints(tmp_path / "file" / "checkpoints"), 1)


FILES = ["__0_0.distcp", "index.json", "state.json"]


def read(checkpoints, name):
    return read_all(checkpoints.open(name))


def read_all(checkpoint):
    return checkpoint.progress, {key: value.tolist() for key, value in checkpoint.tensors().items()}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", damage.WHOLE)
def test_a_damaged_checkpoint_is_named(tmp_path, file, change):
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
    before = read(checkpoints, "epoch-00001")
    damage.WHOLE[change](tmp_path / "epoch-00001" / file)
    if change == "longer" and file == "__0_0.distcp":  # what lies behind the last chunk belongs to none
        assert read(checkpoints, "epoch-00001") == before
        return
    with pytest.raises(DamagedError, match=f"epoch-00001/{file}") as error:
        read(checkpoints, "epoch-00001")
    assert "restore it, or let `train` go on without" in str(error.value)


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_bit_is_refused_or_changes_nothing(tmp_path, file):
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
    before, place = read(checkpoints, "epoch-00001"), tmp_path / "epoch-00001" / file
    intact = place.read_bytes()
    unseen = 0
    for index in range(0, len(intact), max(1, len(intact) // 150)):
        damage.flip(place, index, index % 8)
        sentence = sentence_or_equal(checkpoints, before)
        unseen += sentence is None
        assert sentence is None or "epoch-00001/" in sentence
        place.write_bytes(intact)
    assert unseen == 0 or file == "state.json"  # its white space


def sentence_or_equal(checkpoints, before):
    """The error with which a checkpoint is refused, or None where it is read and is what it was before."""
    try:
        assert read(checkpoints, "epoch-00001") == before
    except DamagedError as error:
        return str(error)
    return None


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_another_checkpoint_is_refused(tmp_path, file):
    """Each of them is intact by itself."""
    checkpoints = run_checkpoints(tmp_path, keep=2)
    save(checkpoints, 1)
    save(checkpoints, 2, tensors={name: value + 1 for name, value in TENSORS.items()})
    shutil.copy(tmp_path / "epoch-00001" / file, tmp_path / "epoch-00002" / file)
    with pytest.raises(DamagedError, match="epoch-00002.* (its checksum is not the one in|under another's name)"):
        read(checkpoints, "epoch-00002")


class TestNewest:
    @pytest.fixture
    def checkpoints(self, tmp_path):
        checkpoints = run_checkpoints(tmp_path, keep=3)
        for epoch in (1, 2, 3):
            save(checkpoints, epoch)
        return checkpoints

    @pytest.mark.parametrize("file", FILES)
    @pytest.mark.parametrize("num_damaged", [0, 1, 2])
    def test_damaged_ones_are_named_and_passed_over(self, checkpoints, tmp_path, caplog, file, num_damaged):
        damaged = ["epoch-00003", "epoch-00002"][:num_damaged]
        for name in damaged:
            damage.truncate(tmp_path / name / file)
        name, _ = checkpoints.newest(read_all)
        assert name == f"epoch-0000{3 - num_damaged}"
        assert checkpoints.damaged == damaged
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(said) == num_damaged
        assert all(f"{name}/{file}" in sentence for name, sentence in zip(damaged, said, strict=True))

    def test_they_do_not_count_any_more_and_go_with_the_next_save(self, checkpoints, tmp_path):
        damage.truncate(tmp_path / "epoch-00003" / "__0_0.distcp")
        checkpoints.newest(read_all)
        assert checkpoints.names() == ["epoch-00001", "epoch-00002"]
        save(checkpoints, 2, 1, 4)
        left = ["epoch-00001", "epoch-00002", "epoch-00002-phase-1-step-0000004"]
        assert sorted(path.name for path in tmp_path.iterdir()) == left

    def test_one_is_written_anew_under_its_name(self, checkpoints, tmp_path):
        damage.truncate(tmp_path / "epoch-00003" / "__0_0.distcp")
        checkpoints.newest(read_all)
        save(checkpoints, 3)
        assert checkpoints.names()[-1] == "epoch-00003"
        read(checkpoints, "epoch-00003")

    def test_none_is_good(self, checkpoints, tmp_path):
        for path in tmp_path.iterdir():
            damage.empty(path / "state.json")
        with pytest.raises(
            UserError, match="no checkpoint in .* can be read; restore one of them, or remove that folder"
        ):
            checkpoints.newest(read_all)

    def test_there_is_none(self, tmp_path):
        assert run_checkpoints(tmp_path / "no").newest(lambda name: 1 / 0) is None

    @pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), TimeoutError("no answer")])
    def test_a_storage_that_cannot_be_reached_is_no_damage(self, checkpoints, monkeypatch, error):
        def refuse(*_, **__):
            raise error

        monkeypatch.setattr("diffmm_dist.runs.checkpoint_storage.open_regular", refuse)
        with pytest.raises(UserError, match="epoch-00003 cannot be read: (Permission denied|no answer)") as raised:
            checkpoints.newest(read_all)
        assert not isinstance(raised.value, DamagedError)


def test_the_only_pickles_of_a_checkpoint_are_those_of_its_tensors(tmp_path):
    """Everything else is JSON, which every interpreter and every torch reads alike."""
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
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
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
    folder = tmp_path / "epoch-00001"
    evil = evil_pickle(tmp_path / "was-here")
    (folder / "__0_0.distcp").write_bytes(evil)
    index = json.loads((folder / "index.json").read_text())
    for entry in index["tensors"].values():
        entry["chunks"][0] |= {"start": 0, "length": len(evil)}
    del index["tensors"]["model/table"], index["tensors"]["model/generated"]  # larger than the pickle
    (folder / "index.json").write_text(json.dumps(index))
    damage.forge_checkpoint(folder)
    with pytest.raises(UserError, match="epoch-00001 cannot be read"):
        checkpoints.open("epoch-00001").tensors()
    assert not (tmp_path / "was-here").exists()


def test_a_checkpoint_of_an_earlier_version_is_called_that(tmp_path):
    """Earlier versions left torch's own index, a pickle; nothing of it is loaded."""
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
    (tmp_path / "epoch-00001" / "index.json").unlink()
    (tmp_path / "epoch-00001" / ".metadata").write_bytes(evil_pickle(tmp_path / "was-here"))
    with pytest.raises(UserError, match=r"epoch-00001 was written by an earlier version of this program, .* train"):
        checkpoints.open("epoch-00001").tensors()
    assert not (tmp_path / "was-here").exists()


class TakenOverFrom:
    """A writer that finds at its n-th look that another process writes now."""

    def __init__(self, looks):
        self.looks = looks

    def __call__(self):
        self.looks -= 1
        if self.looks < 0:
            raise TakenOverError("was taken over")


@pytest.mark.parametrize("looks", [0, 1])
def test_one_that_was_taken_over_completes_no_checkpoint_and_removes_none(tmp_path, looks):
    """Neither before the tensors are written nor after."""
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)
    late = run_checkpoints(tmp_path, writer=Writer(3, TakenOverFrom(looks)))
    with pytest.raises(TakenOverError):
        save(late, 2)
    assert checkpoints.names() == ["epoch-00001"]
    remove_incomplete(str(tmp_path), writer=4)
    assert os.listdir(tmp_path) == ["epoch-00001"]


def test_what_fails_since_another_process_has_the_run_is_said_so(tmp_path, monkeypatch):
    """Taken over after its last look, and what it has written is gone: the other one removes what is half-written."""
    late = run_checkpoints(tmp_path, writer=Writer(3, TakenOverFrom(2)))
    monkeypatch.setattr(storage, "write_record", lambda uri, _: storage.read_bytes(f"{uri} is gone"))
    with pytest.raises(TakenOverError):
        save(late, 2)


def test_a_save_that_fails_says_why_though_nobody_can_tell_who_has_the_run(tmp_path, monkeypatch):
    reachable = True

    def check():
        if not reachable:
            raise UserError("the lock cannot be read")

    def cut_off(*_):
        nonlocal reachable
        reachable = False
        return 1 / 0

    checkpoints = run_checkpoints(tmp_path, writer=Writer(3, check))
    monkeypatch.setattr(storage, "write_record", cut_off)
    with pytest.raises(UserError, match="cannot write the checkpoint .*epoch-00002.*division by zero"):
        save(checkpoints, 2)


def test_old_checkpoints_that_cannot_be_listed_fail_no_save(tmp_path, monkeypatch):
    checkpoints = run_checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    with monkeypatch.context() as patch:
        patch.setattr("diffmm_dist.runs.checkpoint.complete_checkpoints", lambda _: storage.read_bytes("nothing here"))
        save(checkpoints, 2)
    assert checkpoints.names() == ["epoch-00001", "epoch-00002"]
    save(checkpoints, 3)
    assert checkpoints.names() == ["epoch-00002", "epoch-00003"]  # that of the best epoch stays


def test_a_second_signal_while_saving_is_no_failure_of_the_disk(tmp_path, monkeypatch):
    checkpoints = run_checkpoints(tmp_path)
    save(checkpoints, 1)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(FileSystemWriter, "write_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoints, 2)
    assert checkpoints.names() == ["epoch-00001"]


def on_s3(monkeypatch, folders):
    """A folder on S3 that holds checkpoints with files; returns what is removed."""
    removed = []
    monkeypatch.setattr(storage, "list_names", lambda uri: folders.get(uri.rpartition("/checkpoints/")[2], folders))
    monkeypatch.setattr(storage, "remove_folder", lambda uri, **_: removed.append(uri.rpartition("/")[2]))
    return removed


def test_on_s3_the_newest_is_that_of_the_last_writer(monkeypatch):
    """What an earlier writer completed too late, of a later step, does not count as newer."""
    complete = ["index.json", "state.json"]
    folders = {
        "epoch-00009-writer-00002": complete,
        "epoch-00003-writer-00010": complete,
        "epoch-00002": [".metadata", "state.json"],  # of an earlier version
        "epoch-00003-phase-1-step-0000004-writer-00010": complete,
    }
    on_s3(monkeypatch, folders)
    assert complete_checkpoints("s3://bucket/run/checkpoints") == [
        "epoch-00002", "epoch-00009-writer-00002", "epoch-00003-writer-00010",
        "epoch-00003-phase-1-step-0000004-writer-00010",
    ]  # fmt: skip


def test_on_s3_a_writer_removes_the_halves_of_earlier_ones_alone(monkeypatch):
    folders = {
        "epoch-00001-writer-00001": ["index.json", "state.json"],
        "epoch-00002-writer-00001": ["state.json"],  # completed when its tensors were removed already
        "epoch-00003-writer-00002": ["__0_0.distcp", "index.json"],
        "epoch-00004-writer-00003": ["__0_0.distcp"],  # of one that has taken over
    }
    removed = on_s3(monkeypatch, folders)
    remove_incomplete("s3://bucket/run/checkpoints", writer=3)
    assert removed == ["epoch-00002-writer-00001", "epoch-00003-writer-00002"]
    assert complete_checkpoints("s3://bucket/run/checkpoints") == ["epoch-00001-writer-00001"]
