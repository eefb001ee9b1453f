"""`doctor`: whatever is wrong is told, all at once, and nothing is left behind."""

import json
import os
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from diffmm_dist import storage
from diffmm_dist.doctor import configured, declared, machine, packages, pairs, places, report
from diffmm_dist.doctor.declared import Declared
from diffmm_dist.errors import TryAgainError, UserError
from tests.support.builders import ROOT, synthetic_dataset, write_config
from tests.support.processes import free_port

PAGE = ROOT / "docs" / "doctor.md"
LINE = re.compile(r"(ok  |note|FAIL)  ([\w.]+) +(\S.*)")


@pytest.fixture(autouse=True)
def healthy(monkeypatch):
    """A machine on which all is well; what takes seconds to import is not imported."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("diffmm_dist.launch.ray_package.ray_version", lambda: "2.60.0")
    monkeypatch.setattr("diffmm_dist.graph.dgl_package.import_dgl", lambda: SimpleNamespace(__version__="2.1.0"))
    monkeypatch.setattr("diffmm_dist.graph.metis.library", lambda: "METIS of DGL 2.1.0")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    needs = {name: Requirement(f"{name}{bounds}") for name, bounds in BOUNDS.items()}
    found = Declared(">=3.10", needs, {"none": [Requirement("no-such-package")], "all": [Requirement("pydantic")]})
    monkeypatch.setattr(report, "declared", lambda: found)


BOUNDS = {"torch": ">=2.11,<2.16", "ray": "", "dgl": "==2.1.0", "typer": ">=0.21"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture
def config(tmp_path, dataset):
    return write_config(tmp_path / "c.yaml", data={"path": dataset}, run={"path": str(tmp_path / "runs" / "one")})


@pytest.fixture
def doctor(run_cli):
    """Run the command; returns its status, and what the lines say by their names, those of a name together."""

    def run(*arguments):
        status, out, err = run_cli("doctor", *arguments)
        assert err == ""
        found = {}
        for line in out.splitlines():
            mark, name, text = LINE.fullmatch(line).groups()
            found[name] = f"{found[name]}\n{mark} {text}" if name in found else f"{mark} {text}"
        return status, found

    return run


def failed(found):
    return {name for name, text in found.items() if "FAIL" in text}


def test_all_is_well(doctor, config, tmp_path):
    status, found = doctor("--config", config, "--storage", tmp_path)
    assert (status, failed(found)) == (0, set())
    assert found["torch"].startswith("ok   2.13.0+cpu, built for")
    assert found["dgl"] == "ok   2.1.0, graph.kernel=dgl can be used"
    assert found["extras"] == "ok   present: all; absent: none"
    assert "RAY_ADDRESS is not set: training runs on this machine" in found["cluster"]
    assert "60 users and 40 items" in found["data.path"]
    assert "a worker is estimated to need" in found["estimate"]
    assert sorted(os.listdir(tmp_path)) == ["c.yaml"]  # neither the probe nor the folder of the run


def test_without_a_configuration(doctor):
    status, found = doctor()
    assert status == 0
    assert {"data.path", "run.path", "estimate", "storage", "config"} & found.keys() == set()


def test_the_page_shows_these_lines(doctor, config, tmp_path):
    shown = re.search(r"^\$ python launch.py doctor .*\n((?:.+\n)+?)```", PAGE.read_text(), re.M)[1].splitlines()
    address = f"127.0.0.1:{free_port()}"
    status, found = doctor("--config", config, "--storage", tmp_path, "--address", address)
    names = [LINE.fullmatch(line)[2] for line in shown]
    assert list(dict.fromkeys(names)) == list(found)
    assert status == 75
    in_page = next(line for line in shown if " cluster " in line)
    assert LINE.fullmatch(in_page)[3].replace("127.0.0.1:6379", address) == found["cluster"][5:]


def test_everything_that_is_wrong_is_told_at_once(doctor, config, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, found = doctor("--config", config, "train.epoch=3", "--storage", tmp_path / "none")
    assert status == 1
    assert failed(found) == {"torch", "pyarrow", "config", "storage"}
    assert "2.9.1 is not <2.16,>=2.11" in found["torch"]
    assert "did you mean 'epochs'?" in found["config"]
    assert "it does not exist" in found["storage"]


def test_an_import_that_raises_anything_is_a_line(doctor, monkeypatch):
    def broken(name):
        raise {"torch": OSError("libtorch.so: no such file\nand a second line"), "numpy": SystemExit("ended")}[name]

    monkeypatch.setattr(packages, "import_module", broken)
    monkeypatch.setattr(packages, "_plain", lambda name: lambda: broken("numpy"))
    status, found = doctor()
    assert status == 1
    assert found["torch"] == "FAIL OSError: libtorch.so: no such file"
    assert found["numpy"] == "FAIL SystemExit: ended"


def test_without_the_large_packages():
    """Where nothing of them is installed, in a process of its own: each has its line, and so has the rest."""
    gone = ["torch", "ray", "dgl", "pyarrow", "numpy", "packaging"]
    code = f"import sys; sys.modules.update(dict.fromkeys({gone})); sys.argv[1:] = ['doctor', '--json']; "
    code += "from diffmm_dist.start import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    marks = {check["name"]: check["mark"] for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert {name for name, mark in marks.items() if mark == "FAIL"} == {"packaging", "torch", "ray", "pyarrow", "numpy"}
    assert (marks["cores"], marks["memory"], marks["cluster"]) == ("ok", "ok", "ok")


def test_dgl_is_needed_only_where_it_is_asked_for(doctor, config, monkeypatch):
    def missing():
        raise UserError("DGL cannot be imported")

    monkeypatch.setattr("diffmm_dist.graph.dgl_package.import_dgl", missing)
    status, found = doctor("--config", config)
    assert (status, found["dgl"][:4]) == (0, "note")
    assert "the kernel csr trains without it" in found["dgl"]
    status, found = doctor("--config", config, "graph.kernel=dgl")
    assert (status, found["dgl"]) == (1, "FAIL DGL cannot be imported")


def test_a_cluster_that_does_not_answer(doctor, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{free_port()}")
    status, found = doctor()
    assert status == 75
    assert "does not answer (Connection refused)" in found["cluster"]
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert doctor()[1]["cluster"] == "note auto is no HOST:PORT, so whether it answers is not known"
    status, found = doctor("--address", "nonsense")
    assert (status, found["cluster"][:41]) == (1, "FAIL --address nonsense is no HOST:PORT; ")


def test_a_cluster_that_answers(doctor, config):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        status, found = doctor("--address", address, "--config", config, "cluster.num_workers=2")
    assert (status, found["cluster"]) == (0, f"ok   {address} answers")
    assert found["estimate"].startswith("note a worker is estimated to need")


def test_credentials_are_not_printed(run_cli, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"ray://me:hunter2@127.0.0.1:{free_port()}")
    for words in ([], ["--json"]):
        status, out, err = run_cli("doctor", *words)
        assert status in (1, 75)
        assert "hunter2" not in out + err


@pytest.mark.parametrize("place", ["folder", "memory://doctor/there"])
@pytest.mark.parametrize("step", ["write", "read", "compare"])
def test_nothing_is_left_behind_when_a_step_fails(doctor, monkeypatch, tmp_path, place, step):
    def wrote_and_failed(uri, data):
        write(uri, data)
        raise UserError("cannot write it all")

    def failing(uri):
        raise UserError("cannot read it")

    write = storage.write_bytes
    if step == "write":
        monkeypatch.setattr(storage, "write_bytes", wrote_and_failed)
    monkeypatch.setattr(storage, "read_bytes", failing if step == "read" else lambda uri: b"other")
    (tmp_path / "folder").mkdir()
    where = place if "://" in place else str(tmp_path / place)
    status, found = doctor("--storage", where)
    assert (status, failed(found)) == (1, {"storage"})
    assert storage.list_names(where) == []


def test_places_that_cannot_be_used(doctor, tmp_path):
    (tmp_path / "file").write_text("")
    status, found = doctor("--storage", tmp_path / "file", "--storage", tmp_path / "none", "--storage", "/proc")
    lines = found["storage"].splitlines()
    assert status == 1
    assert [line[:4] for line in lines] == ["FAIL"] * 3
    assert ["it is no folder" in lines[0], "it does not exist" in lines[1]] == [True, True]
    assert os.listdir(tmp_path) == ["file"]


def test_a_store_that_does_not_answer(doctor, monkeypatch):
    def silent(uri):
        raise TryAgainError(f"cannot list {uri}: no answer")

    monkeypatch.setattr(storage, "list_names", silent)
    status, found = doctor("--storage", "memory://doctor/silent")
    assert (status, found["storage"]) == (75, "FAIL cannot list memory://doctor/silent: no answer")


def test_what_can_only_be_read_is_not_written(monkeypatch):
    monkeypatch.setattr(storage, "exists", lambda uri: uri.endswith("there"))
    monkeypatch.setattr(places, "write_and_read", None)
    assert [one.mark for one in places.probe("storage", "https://host/there")] == ["ok"]
    with pytest.raises(UserError, match="does not exist, or may not be seen"):
        list(places.probe("storage", "https://host/none"))


def test_a_run_that_does_not_fit(doctor, config, monkeypatch):
    monkeypatch.setattr(configured, "available_on", lambda device: 1 << 20)
    status, found = doctor("--config", config)
    assert (status, failed(found)) == (1, {"estimate"})
    assert "1 on this machine do not fit" in found["estimate"]


def test_a_dataset_that_is_not_there_is_told_once(doctor, config, tmp_path):
    status, found = doctor("--config", config, f"data.path={tmp_path / 'none'}")
    assert (status, failed(found)) == (1, {"data.path"})
    assert "estimate" not in found


def test_json_says_the_same(run_cli, doctor):
    status, out, _ = run_cli("doctor", "--json")
    read = json.loads(out)
    assert (status, read["status"]) == (0, 0)
    lines = [LINE.fullmatch(line) for line in run_cli("doctor")[1].splitlines()]
    assert [(one["name"], one["mark"]) for one in read["checks"]] == [(line[2], line[1].strip()) for line in lines]


def test_a_container_limits_the_memory(tmp_path):
    files = {
        "proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
        "proc/meminfo": f"MemAvailable: {16 << 20} kB\n", "cg/job/memory.max": f"{3 << 30}\n",
        "cg/job/memory.current": f"{1 << 30}\n",
    }  # fmt: skip
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (line,) = machine.memory(root=tmp_path)
    assert line.text == "2.00 GiB available; the container may use 3.00 GiB"
    (tmp_path / "cg/job/memory.max").write_text("max\n")
    assert machine.memory_limit(root=tmp_path) is None


def test_what_is_declared_is_compared_with_what_is_here(monkeypatch, tmp_path):
    def distribution(name):
        if name not in versions:
            raise declared.PackageNotFoundError(name)
        return SimpleNamespace(version=versions[name], requires=requires.get(name, []))

    versions = {"ours": "2.0", "big": "3.1"}
    requires = {"big": ['below; extra == "more"', "always"]}
    monkeypatch.setattr(declared, "distribution", distribution)
    found = [declared.lacking(Requirement(text)) for text in ("ours>=1", "ours<2", "none", "big", "big[more]")]
    assert found == [[], ["ours 2.0 is not <2"], ["none is missing"], [], ["below is missing"]]
    assert "not installed" in declared.declared().unknown
    versions["diffmm-dist"] = "0.0.0"
    assert "install it again" in declared.declared().unknown


def test_pairs(monkeypatch):
    versions = {"dgl": "2.1.0", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(pairs, "installed", versions.get)
    assert any("dgl.graphbolt" in one.text for one in pairs.known())
    versions["torch"] = "2.2.1"
    assert not any("dgl.graphbolt" in one.text for one in pairs.known())
    monkeypatch.setattr(pairs, "find_spec", lambda name: None)
    assert any("pandas" in one.text for one in pairs.known())
    versions.clear()
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    assert [one.text for one in pairs.known()] == ["nothing is here that is known not to go together"]
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert next(one.mark for one in pairs.known()) == "note"
