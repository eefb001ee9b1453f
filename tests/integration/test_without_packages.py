"""Every command that does not need DGL, pymetis or Ray, where none is installed."""

import json

import pytest

from tests.support.builders import synthetic_dataset, write_config
from tests.support.hidden import program_without


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a dataset, a configuration, and a finished run, and the program without the packages."""
    folder = tmp_path_factory.mktemp("without")
    dataset = synthetic_dataset(folder / "d")
    write_config(
        folder / "c.yaml", data={"path": dataset}, run={"path": str(folder / "run")}, train={"epochs": 1},
        graph={"kernel": "auto"},
    )  # fmt: skip
    with program_without(folder, "dgl", "pymetis", "ray") as program:
        done = program.launch("train", "--config", folder / "c.yaml")
        assert "propagation kernel: csr (DGL cannot be imported" in done.stderr
        yield folder, program


CONFIG = ["--config", "c.yaml"]
SIZE = "users=40,items=30"
COMMANDS = {
    "evaluate": ["evaluate", "run"],
    "export and recommend": ["export", "run", "--out", "bundle"],
    "compare": ["compare", "run", "run"],
    "bench train": ["bench", "train", *CONFIG, "--seeds", "1", "run.path=bench"],
    "bench epoch": ["bench", "epoch", *CONFIG, "--repeats", "1"],
    "bench profile": ["bench", "profile", *CONFIG, "--steps", "1"],
    "bench scaling": ["bench", "scaling", *CONFIG, "--workers", "1", "--steps", "1", "--repeats", "1"],
    "bench comm": ["bench", "comm", *CONFIG, "--measure", "2"],
    "bench gpus": ["bench", "gpus", *CONFIG],
    "bench stream": ["bench", "stream", "d", "--repeats", "1"],
    "bench denoise": ["bench", "denoise", "--size", "batch=8,items=20,hidden=8,dim=4,per_user=3", "--repeats", "1"],
    "bench rebuild": ["bench", "rebuild", "--size", f"{SIZE},hidden=8,batch=8,per_user=3", "--repeats", "1"],
    "bench contrast": ["bench", "contrast", "--size", "nodes=40,batch=8,dim=4", "--repeats", "1"],
    "bench evaluate": ["bench", "evaluate", "--size", f"{SIZE},dim=4,batch=8,per_user=3", "--repeats", "1"],
    "bench propagate": ["bench", "propagate", "--size", f"{SIZE},draws=99,dim=4", "--repeats", "1"],
    "bench propagate on a dataset": ["bench", "propagate", "d"],
    "partition": ["partition", "d", "--method", "random", "--num-parts", "2"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs(name, place):
    folder, program = place
    command = COMMANDS[name]
    out = ["--out", f"{name}.json"] if name.startswith("bench") else ["--out", name] if name == "partition" else []
    done = program.launch(*command, *out, check=False)
    assert done.returncode == 0, done.stderr
    if name.startswith("bench") and name != "bench profile":
        machine = json.loads((folder / f"{name}.json").read_text()).get("machine", {})
        assert machine.get("dgl") is None
        assert machine or name == "bench gpus"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["partition", "d", "--method", "metis", "--num-parts", "2", "--out", "metis"], "--method random"),
        (["train", *CONFIG, "graph.kernel=dgl", "run.path=other"], "graph.kernel=csr"),
        (["train", *CONFIG, "cluster.num_workers=1", "run.path=another"], "cluster.num_workers=0"),
    ],
    ids=["metis", "DGL's kernel asked for", "Ray"],
)
def test_what_needs_them_says_so_in_one_sentence(command, words, place):
    _, program = place
    done = program.launch(*command, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in done.stderr
