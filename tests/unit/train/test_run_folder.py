import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.train.run_folder import RunFolder
from tests.support.builders import small_config


def config(tmp_path, **sections):
    return small_config("data", tmp_path / "run", **sections)


def claim(tmp_path, fingerprint="abc", **sections):
    folder = RunFolder(str(tmp_path / "run"))
    folder.claim(config(tmp_path, **sections), fingerprint=fingerprint)
    return folder


def test_the_same_run_may_go_on(tmp_path):
    claim(tmp_path).release()
    claim(tmp_path, train={"epochs": 9}, data={"path": "moved"}).release()
    assert RunFolder.existing(str(tmp_path / "run"))[1].train.epochs == 9


def test_another_run_is_refused_with_what_differs(tmp_path):
    claim(tmp_path).release()
    with pytest.raises(UserError) as error:
        claim(tmp_path, "other", run={"seed": 7}, model={"num_layers": 3})
    for part in ("run.seed is 7 but the run has 421", "model.num_layers is 3 but the run has 1", "dataset's contents"):
        assert part in str(error.value)


def test_two_processes_do_not_share_a_folder(tmp_path):
    folder = claim(tmp_path)
    with pytest.raises(UserError, match="another process is training in"):
        claim(tmp_path)
    folder.release()
    claim(tmp_path).release()


def test_what_is_remembered_stays(tmp_path):
    folder = claim(tmp_path)
    folder.remember({"kernel": {"auto": "csr"}})
    folder.release()
    assert claim(tmp_path).identity() == {"dataset": "abc", "version": "0.1.0", "kernel": {"auto": "csr"}}


def test_no_result_before_the_end(tmp_path):
    folder = claim(tmp_path)
    assert folder.result() is None
    folder.write_result({"test": {"recall@20": 0.5}})
    assert folder.result() == {"test": {"recall@20": 0.5}}


@pytest.mark.parametrize("path", ["/proc/no/run", "file/run"])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: .*; choose another run.path or give write access"):
        RunFolder(path).claim(config(tmp_path), fingerprint="abc")


def test_a_remote_folder_and_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"run\.path s3://bucket/run is an s3:// address"):
        RunFolder("s3://bucket/run")
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.existing(str(tmp_path))
