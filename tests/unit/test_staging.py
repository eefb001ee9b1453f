"""What killed commands leave beside the folders that they make, and how one folder takes another's place."""

import os

import pytest

from diffmm_dist import staging, storage
from diffmm_dist.errors import UserError

LEFT = ".d.partial-0123abcd"


def write(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "m.json").write_text(text)


def build(place, text, force=True):
    with storage.staged_folder(str(place), marker="m.json", force=force) as aside:
        storage.write_bytes(storage.join(aside, "m.json"), text.encode())


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def renaming(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(staging, "_exchange", lambda first, second: False)


def test_a_folder_takes_the_place_of_another(tmp_path, renaming):
    for text in ("first", "second"):
        build(tmp_path / "d", text)
        assert (tmp_path / "d" / "m.json").read_text() == text
        assert os.listdir(tmp_path) == ["d"]


def test_what_the_dead_have_left_is_removed_and_what_the_living_do_is_not(tmp_path):
    write(tmp_path / LEFT, "half")
    (tmp_path / ".other.partial-0123abcd").mkdir()
    (tmp_path / ".d.partial-notours").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / ".d.partial-00000000").symlink_to(tmp_path / "kept")
    with storage.staged_folder(str(tmp_path / "d"), marker="m.json", force=False) as aside:
        build(tmp_path / "d", "of another command meanwhile")
        assert os.path.isdir(aside)
        assert not (tmp_path / LEFT).exists()
        (tmp_path / "d" / "m.json").unlink()
        (tmp_path / "d").rmdir()
        storage.write_bytes(storage.join(aside, "m.json"), b"this one")
    left = {".other.partial-0123abcd", ".d.partial-notours", ".d.partial-00000000"}
    assert set(os.listdir(tmp_path)) == {"d", "kept", *left}


def test_killed_between_two_renames_the_former_folder_comes_back(tmp_path):
    write(tmp_path / LEFT, "new")
    write(tmp_path / f"{LEFT}-old", "old")
    with pytest.raises(UserError, match="already exists"):
        storage.check_place(str(tmp_path / "d"), marker="m.json", force=False)
    assert (tmp_path / "d" / "m.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["d"]


def test_killed_after_the_renames_the_new_folder_stays(tmp_path):
    write(tmp_path / "d", "new")
    write(tmp_path / f"{LEFT}-old", "old")
    storage.check_place(str(tmp_path / "d"), marker="m.json", force=True)
    assert (tmp_path / "d" / "m.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["d"]


def test_a_relative_place(tmp_path, monkeypatch, renaming):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / LEFT, "half")
    for text in ("first", "second"):
        build("d", text)
    assert os.listdir(tmp_path) == ["d"]


def test_temporary_files_of_the_dead_go_and_those_of_the_living_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("of-us-abc_1234", "of-us-abc_12345", "of-others-abc_1234"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "database").write_text("left")
    (tmp_path / "of-us-link_234").symlink_to(tmp_path / "of-others-abc_1234")
    kept = {"of-us-abc_12345", "of-others-abc_1234", "of-us-link_234"}
    with staging.scratch_folder("of-us-") as first, staging.scratch_folder("of-us-") as second:
        assert {path.name for path in tmp_path.iterdir()} == kept | {os.path.basename(first), os.path.basename(second)}
    assert {path.name for path in tmp_path.iterdir()} == kept
