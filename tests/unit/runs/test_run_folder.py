import json
import os
import shutil
import signal
import time
from multiprocessing import get_context

import pytest

from diffmm_dist import __version__
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.graph.kernels import KernelChoice
from diffmm_dist.models import recipe
from diffmm_dist.records import sealed, unsealed
from diffmm_dist.runs.run_folder import RunFolder, blocking_differences
from diffmm_dist.runs.run_records import FORMAT
from diffmm_dist.training.worker import run_worker
from tests.support import damage
from tests.support.builders import small_config, synthetic_dataset


def config(tmp_path, **sections):
    return small_config("data", tmp_path / "run", **sections)


def claim(tmp_path, fingerprint="abc", **sections):
    folder = RunFolder(str(tmp_path / "run"))
    folder.claim(config(tmp_path, **sections), fingerprint=fingerprint)
    return folder


def test_the_same_run_may_go_on(tmp_path):
    claim(tmp_path).release()
    claim(tmp_path, train={"epochs": 9}, data={"path": "moved"}).release()
    assert RunFolder.existing(str(tmp_path / "run")).config().train.epochs == 9


def test_which_changes_let_a_run_go_on(tmp_path):
    old = config(tmp_path)
    same = config(
        tmp_path, run={"path": "moved"}, data={"path": "moved"}, train={"epochs": 99}, checkpoint={"keep": 3},
        cluster={"num_workers": 1}, graph={"kernel": "auto"},
    )  # fmt: skip
    assert blocking_differences(old, same) == []
    other = config(tmp_path, run={"seed": 1}, train={"learning_rate": 0.5})
    assert blocking_differences(old, other) == [
        "run.seed is 1 but the run has 421",
        "train.learning_rate is 0.5 but the run has 0.01",
    ]


def test_a_teacher_may_move_but_not_come_or_go(tmp_path):
    of = [config(tmp_path, model={"name": "promptmm", "teacher": teacher}) for teacher in ("a", "b", None)]
    assert blocking_differences(of[0], of[1]) == []
    assert blocking_differences(of[0], of[2]) == ["model.teacher is None but the run has 'a'"]
    assert blocking_differences(of[2], of[0]) == ["model.teacher is 'a' but the run has None"]


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


def test_what_it_was_started_with_stays(tmp_path):
    claim(tmp_path).release()
    folder = claim(tmp_path, graph={"kernel": "auto"})
    folder.remember_writer()
    started_with = {"format": FORMAT, "run": folder.run, "dataset": "abc", "version": __version__}
    assert folder.identity() == {**started_with, "writer": 2}


def test_a_folder_of_an_earlier_format_is_read_and_becomes_one_of_the_present(tmp_path):
    claim(tmp_path).release()
    place = tmp_path / "run" / "run.json"
    earlier = unsealed(json.loads(place.read_text()))
    del earlier["format"]
    place.write_text(json.dumps(sealed(earlier)))
    folder = RunFolder.existing(str(tmp_path / "run"))
    assert folder.config().train.epochs == 3
    assert "format" not in json.loads(place.read_text())
    folder = claim(tmp_path)
    folder.remember_writer()
    assert folder.identity()["format"] == FORMAT


@pytest.mark.parametrize("more", [{}, {"dataset": ["of", "another", "form"]}])
def test_a_folder_of_a_later_format_is_refused(tmp_path, more):
    """However its other files look."""
    claim(tmp_path).release()
    damage.reseal(tmp_path / "run" / "run.json", format=FORMAT + 1, **more)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    said = rf"a run folder of format {FORMAT + 1}, .* reads formats 1 to {FORMAT}; go on with the version that wrote it"
    for read in (lambda: claim(tmp_path), lambda: RunFolder.existing(str(tmp_path / "run")).config()):
        with pytest.raises(UserError, match=said):
            read()
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_the_kernel_that_was_chosen_stays(tmp_path, monkeypatch):
    dataset = synthetic_dataset(tmp_path / "d")
    asked = []

    def choose(requested, real, *, width, world):
        asked.append(requested)
        return KernelChoice("csr", "by the test")

    monkeypatch.setattr(recipe, "choose_kernel", choose)
    for epochs in (1, 2):
        settings = small_config(dataset, tmp_path / "run", train={"epochs": epochs}, graph={"kernel": "auto"})
        run_worker(settings, stop_requested=lambda: False)
    assert asked == ["auto", "csr"]
    assert RunFolder.existing(str(tmp_path / "run")).identity()["kernel"] == "csr"


def test_without_its_identity_a_run_is_refused(tmp_path):
    folder = claim(tmp_path)
    folder.release()
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "run.json").unlink()
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"its config\.yaml or run\.json is gone"):
        claim(tmp_path, run={"seed": 9})
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


RESULT = {
    "protocol": "validation", "seed": 1, "best_epoch": 0, "epochs": 1, "valid": {}, "test": {"recall@20": 0.5},
    "seconds_per_epoch": 1.5, "seconds_per_phase": {}, "peak_rss_gib": 0.25, "config": {},
}  # fmt: skip


def test_no_result_before_the_end(tmp_path):
    folder = claim(tmp_path)
    assert folder.result() is None
    folder.write_result({"run": folder.run, **RESULT})
    assert folder.result() == {"run": folder.run, **RESULT}


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
def test_a_file_of_another_run_is_refused(tmp_path, name):
    """Each is intact by itself."""
    folders = [claim(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        folder.write_result({"run": folder.run, **RESULT})
    shutil.copy(tmp_path / "a" / "run" / name, tmp_path / "b" / "run" / name)
    with pytest.raises(DamagedError, match=rf"{name} belongs to another run than .+run\.json; "):
        folders[1].result() if name == "result.json" else folders[1].config()


def test_with_the_identity_of_another_run_nothing_fits(tmp_path):
    for name in ("a", "b"):
        folder = claim(tmp_path / name)
        folder.write_result({"run": folder.run, **RESULT})
    shutil.copy(tmp_path / "a" / "run" / "run.json", tmp_path / "b" / "run" / "run.json")
    folder = RunFolder(str(tmp_path / "b" / "run"))
    for read in (folder.config, folder.result):
        with pytest.raises(DamagedError, match="belongs to another run"):
            read()


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense", '{"epochs": "many"}'])
def test_damaged_files_are_named(tmp_path, content):
    folder = claim(tmp_path)
    for name, read in (("result.json", folder.result), ("run.json", folder.identity)):
        (tmp_path / "run" / name).write_text(content)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            read()


@pytest.mark.parametrize("path", ["/proc/no/run", "file/run"])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: .*; choose another run.path or give write access"):
        RunFolder(path).claim(config(tmp_path), fingerprint="abc")


def test_a_refused_claim_keeps_nobody_out(tmp_path):
    claim(tmp_path).release()
    with pytest.raises(UserError, match="holds another run"):
        claim(tmp_path, "other")
    claim(tmp_path).release()


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.existing(str(tmp_path))


def record_and_wait():
    folder = RunFolder("s3://bucket/run")
    folder.metrics.write_text("recorded")
    signal.pause()


def test_the_scratch_of_a_killed_run_on_s3_goes_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed = get_context("fork").Process(target=record_and_wait)
    killed.start()
    while not list(tmp_path.glob("*/metrics.jsonl")):
        assert killed.is_alive()
        time.sleep(0.01)
    living = RunFolder("s3://bucket/other")
    assert living.local.exists()
    assert len(os.listdir(tmp_path)) == 2
    killed.kill()
    killed.join()
    following = RunFolder("s3://bucket/run")
    assert {following.local, living.local} == set(tmp_path.iterdir())
    del living, following
    assert os.listdir(tmp_path) == []
