from pathlib import Path

import pytest

from diffmm_dist import __version__, example_files
from diffmm_dist.example_files import write_examples
from tests.support.builders import ROOT


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_all_files_come(run_cli, tmp_path):
    status, out, err = run_cli("init", tmp_path / "new")
    assert (status, err) == (0, "")
    expected = {
        f"{name}/{path}": data for name in ("configs", "cluster") for path, data in files_below(ROOT / name).items()
    }
    assert files_below(tmp_path / "new") == expected
    assert out.startswith(f"{len(expected)} files in ")
    shown, _, _ = run_cli("config", "show", tmp_path / "new" / "configs" / "demo.yaml")
    assert shown == 0


def test_what_is_there_is_kept_unless_forced(run_cli, tmp_path):
    write_examples(str(tmp_path), force=False)
    (tmp_path / "mine.txt").write_text("mine")
    demo, other = tmp_path / "configs" / "demo.yaml", tmp_path / "configs" / "diffmm" / "tiktok.yaml"
    whole = demo.read_bytes()
    demo.write_text("mine")
    other.unlink()
    status, _, err = run_cli("init", tmp_path)
    assert status == 1
    sentence = f"configs/demo.yaml in {tmp_path} would be replaced; choose another folder, or pass --force for files"
    assert err == f"error: {sentence}\n"
    assert demo.read_text() == "mine"
    assert not other.exists()
    assert run_cli("init", tmp_path, "--force")[0] == 0
    assert demo.read_bytes() == whole
    assert other.exists()
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(("folder", "words"), [("s3://bucket/x", "local disk"), ("file", "should be folders")])
def test_places_where_nothing_can_be_written(run_cli, tmp_path, folder, words):
    (tmp_path / "file").write_text("")
    status, _, err = run_cli("init", folder if "://" in folder else tmp_path / folder)
    assert status == 1
    assert words in err


def test_nothing_is_written_where_a_folder_has_something_else_in_its_place(run_cli, tmp_path):
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "cluster").write_text("mine")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "cluster").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder" / "configs" / "demo.yaml").mkdir(parents=True)
    for name, words in (("file", "should be folders"), ("link", "should be folders"), ("folder", "would be replaced")):
        for force in ([], ["--force"]):
            status, _, err = run_cli("init", tmp_path / name, *force)
            assert status == 1
            assert words in err
    names = {path.name for path in tmp_path.rglob("*")}
    assert names == {"file", "link", "folder", "cluster", "configs", "demo.yaml"}


def test_an_installed_package_holds_them(monkeypatch, tmp_path):
    """The wheel has them inside the package: there is no clone beside it."""
    (tmp_path / "diffmm_dist" / "examples" / "configs").mkdir(parents=True)
    (tmp_path / "diffmm_dist" / "examples" / "cluster").mkdir()
    (tmp_path / "diffmm_dist" / "examples" / "configs" / "a.yaml").write_text("a: 1\n")
    monkeypatch.setattr(example_files, "PACKAGE", tmp_path / "diffmm_dist")
    assert write_examples(str(tmp_path / "out"), force=False) == ["configs/a.yaml"]


@pytest.mark.parametrize("words", [["--version"], ["--version", "train"]])
def test_version(run_cli, words):
    assert run_cli(*words) == (0, f"diffmm-dist {__version__}\n", "")
