"""What is sent to a cluster, without one."""

import os

import pytest

from diffmm_dist.errors import TryAgainError, UserError
from diffmm_dist.launch import submit as submit_module
from diffmm_dist.launch.submit import check_size, installed_command, job_command, submit
from diffmm_dist.runs.config import load_config
from tests.support.builders import write_config

SHARED = {"data": {"path": "s3://b/d"}, "run": {"path": "/shared/run"}, "cluster": {"num_workers": 2}}


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    (folder / "configs").mkdir(parents=True)
    (folder / "diffmm_dist").mkdir()
    for name in ("launch.py", "diffmm_dist/start.py"):
        (folder / name).write_text("")
    return folder


def config(project, **sections):
    return write_config(project / "configs" / "c.yaml", **{**SHARED, **sections})


def test_the_job_runs_the_same_command_inside_the_uploaded_folder(project):
    assert job_command(project, config(project), ["train.epochs=3", "run.path=s3://b/a run"]) == (
        "python launch.py train --config configs/c.yaml train.epochs=3 'run.path=s3://b/a run'"
    )


def test_a_teacher_in_the_home_folder_is_that_of_here(project, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    command = job_command(project, config(project, model={"name": "promptmm"}), ["model.teacher=~/runs/t"])
    assert command.endswith(" model.teacher=/home/me/runs/t")


@pytest.mark.parametrize("address", ["", "foo", "local", "ftp://x", "http://", "http://[::1", "http://x:0", "x:8265"])
def test_an_address_that_is_none_is_refused_before_anything_is_sent(project, address):
    with pytest.raises(UserError, match=r"^--address '.*' is not the address of a dashboard; write http://HEAD:8265$"):
        submit(address, config(project), [])


def test_what_could_not_work_there_is_refused_here(project, tmp_path):
    with pytest.raises(UserError, match=r"runs/x would be looked for inside the uploaded folder; give s3://"):
        job_command(project, config(project), ["run.path=runs/x"])
    with pytest.raises(UserError, match=r"^runs/t would be looked for inside the uploaded folder; give s3://"):
        job_command(project, config(project, model={"name": "promptmm"}), ["model.teacher=runs/t"])
    with pytest.raises(UserError, match=r"num_workers=0 would train in one process on the head node"):
        job_command(project, config(project), ["cluster.num_workers=0"])
    with pytest.raises(UserError, match=r"lies outside"):
        job_command(project, write_config(tmp_path / "c.yaml", **SHARED), [])
    with pytest.raises(UserError, match=r"train\.epoch"):
        job_command(project, config(project), ["train.epoch=3"])
    (project / "launch.py").unlink()
    with pytest.raises(UserError, match=r"is no clone of the project; leave --working-dir out"):
        job_command(project, config(project), [])


def test_the_size_leaves_out_data_runs_and_history(project, monkeypatch):
    for name in (".git", "datasets", "runs/a", "configs/__pycache__"):
        (project / name).mkdir(parents=True)
        (project / name / "large").write_bytes(bytes(3 << 20))
    (project / "notes").write_bytes(bytes(1 << 20))
    assert check_size(project) == pytest.approx(1, abs=0.01)
    monkeypatch.setattr(submit_module, "LARGEST_MIB", 0.5)
    with pytest.raises(UserError, match=r"holds 1 MiB besides .* the largest elsewhere: notes 1 MiB"):
        check_size(project)


def test_without_a_clone_the_configuration_alone_is_sent_and_the_installed_program_runs(tmp_path, monkeypatch):
    """All of it, in one file: what it extends and what the command line said, home folders spelt out."""
    monkeypatch.setenv("HOME", "/home/me")
    write_config(tmp_path / "base.yaml", **SHARED, train={"epochs": 7})
    (tmp_path / "mine.yml").write_text("extends: base.yaml\n")
    words = ["run.path=~/runs/a", "train.batch_size=64"]
    sent = []

    def send(_, folder, entrypoint):
        sent.append((entrypoint, {path.name: load_config(str(path), []) for path in folder.iterdir()}))
        return None, "job"

    monkeypatch.setattr(submit_module, "_sent", send)
    monkeypatch.chdir(tmp_path)
    assert submit("http://head:8265", "mine.yml", words, follow=False) == 0
    ((entrypoint, files),) = sent
    assert entrypoint == "diffmm-dist train --config mine.yaml"
    assert files == {"mine.yaml": load_config("mine.yml", words)}
    assert files["mine.yaml"].run.path == "/home/me/runs/a"
    with pytest.raises(UserError, match="give the number of workers"):
        installed_command(tmp_path, "mine.yml", ["cluster.num_workers=0"])


def test_in_a_clone_the_clone_is_sent(project, monkeypatch):
    sent = []
    monkeypatch.setattr(submit_module, "_sent", lambda *what: sent.append(what) or (None, "job"))
    monkeypatch.chdir(project)
    submit("http://head:8265", config(project), [], follow=False)
    assert sent == [("http://head:8265", project, "python launch.py train --config configs/c.yaml")]


def test_a_cluster_that_does_not_answer_is_one_sentence(project, monkeypatch):
    """... about the cluster that was named, whatever RAY_ADDRESS says: Ray's client would prefer that."""
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(TryAgainError, match=r"the cluster at http://127\.0\.0\.1:9 does not take the job: ") as raised:
        submit("http://127.0.0.1:9", config(project), [], working_dir=str(project))
    assert "http://127.0.0.1:9" in str(raised.value.__cause__)
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


def test_a_token_that_cannot_be_read_is_one_sentence(project, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"the cluster's token .* cannot be read \(Is a directory\); give read access"):
        submit("http://127.0.0.1:9", config(project), [], working_dir=str(project))
