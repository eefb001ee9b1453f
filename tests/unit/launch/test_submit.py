"""What is sent to a cluster, without one."""

import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.launch import submit as submit_module
from diffmm_dist.launch.submit import check_size, job_command, submit
from tests.support.builders import write_config

SHARED = {"data": {"path": "s3://b/d"}, "run": {"path": "/shared/run"}, "cluster": {"num_workers": 2}}


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    (folder / "configs").mkdir(parents=True)
    (folder / "launch.py").write_text("")
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
    with pytest.raises(UserError, match=r"has no launch\.py; run `submit` in the project's folder"):
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


def test_a_cluster_that_does_not_answer_is_one_sentence(project):
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(UserError, match=r"the cluster at http://127\.0\.0\.1:9 does not take the job: "):
        submit("http://127.0.0.1:9", config(project), [], working_dir=str(project))


def test_a_token_that_cannot_be_read_is_one_sentence(project, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"the cluster's token .* cannot be read \(Is a directory\); give read access"):
        submit("http://127.0.0.1:9", config(project), [], working_dir=str(project))
