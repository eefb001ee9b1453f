"""Completion in shells: the candidates, and bash as it is."""

import os
import shutil
import subprocess
import sys

import pytest

from diffmm_dist import cli
from diffmm_dist.cli_completion import ASKED, LINE, SCRIPTS, VARIABLE
from diffmm_dist.models.registry import FOLDERS
from tests.support.builders import ROOT


@pytest.fixture
def candidates(capsys, monkeypatch, tmp_path):
    """The candidates for the last word of a line, by what the scripts hand over."""
    monkeypatch.chdir(tmp_path)
    for path in ("one.yaml", "one.txt", "other.yml", "onward/inner.yaml", "-odd.yaml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")

    def ask(line):
        monkeypatch.setattr(cli, "tell_libraries", lambda: None)
        for name, value in {**ASKED, LINE: f"diffmm-dist {line}"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (0, "")
        return [found.partition("\t")[0] for found in out.splitlines() if found]

    return ask


CASES = {
    "doc": ["doctor"],
    "prepare pub": ["published"],
    "train --con": ["--config"],
    "train o": ["one.yaml", "other.yml", "onward/"],
    "train onward/": ["onward/inner.yaml"],
    "train --config on": ["one.yaml", "onward/"],
    "train che": ["checkpoint."],
    "train checkpoint.": ["checkpoint.every_epochs=", "checkpoint.every_steps=", "checkpoint.keep="],
    "train one.yaml train.epochs=3 graph.": ["graph.kernel=", "graph.layout=", "graph.messages="],
    "train graph.kernel=": ["graph.kernel=auto", "graph.kernel=dgl", "graph.kernel=csr"],
    "train graph.kernel=c": ["graph.kernel=csr"],
    "train data.verify=": ["data.verify=true", "data.verify=false"],
    "train train.patience=": [],
    "train nothing.": [],
    "train model.name=lightgcn model.num": ["model.num_layers="],
    "train model.name=promptmm model.mode=": ["model.mode=paper", "model.mode=release"],
    "config show cluster.dev": ["cluster.device="],
    "bench epoch cluster.dev": ["cluster.device="],
    "doctor eval.pro": ["eval.protocol="],
    "inspect graph.": [],
    "recommend x --out y --us": ["--users", "--users-from"],
    "--show-completion ": ["bash", "zsh", "fish"],
    "--version tr": ["train"],
    "--show-completion bash tr": ["train"],
}


@pytest.mark.parametrize("line", CASES)
def test_candidates(candidates, line):
    assert candidates(line) == CASES[line]


def test_models_and_sections(candidates):
    assert candidates("train model.name=") == [f"model.name={name}" for name in FOLDERS]
    assert {"model.", "train.", "one.yaml"} <= set(candidates("train "))


def test_no_file_is_made_or_looked_for(candidates, monkeypatch):
    monkeypatch.setattr("diffmm_dist.storage.check_file", None)  # which would ask a store
    assert candidates("recommend x --out s3://bucket/file.csv --raw") == ["--raw-ids"]


def test_the_scripts_are_printed(run_cli):
    for shell, script in SCRIPTS.items():
        assert run_cli("--show-completion", shell) == (0, script, "")
    status, out, err = run_cli("--show-completion", "fsh")
    assert (status, out) == (1, "")
    assert "none of bash, zsh, fish; did you mean 'fish'?" in err


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes(tmp_path):
    """The function of the script, called as bash calls it; ``=`` ends a word of bash's, so what is before it stays."""
    program = tmp_path / "bin" / "diffmm-dist"
    program.parent.mkdir()
    # Completion must not wait for torch.
    code = "import sys; sys.modules.update(torch=None, pyarrow=None); from diffmm_dist.start import main; main()"
    program.write_text(f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' -c '{code}' \"$@\"\n")
    program.chmod(0o755)
    (tmp_path / "demo.yaml").write_text("")
    script = """
        source <(diffmm-dist --show-completion bash)
        complete -p diffmm-dist > /dev/null || echo "not registered"
        try() { COMP_LINE="$1" COMP_POINT=${#1}; _diffmm_dist_completion diffmm-dist; echo "${COMPREPLY[*]}"; }
        try "diffmm-dist train de"
        try "diffmm-dist train demo.yaml graph.kernel="
        COMP_WORDBREAKS=" "
        try "diffmm-dist train demo.yaml graph.kernel=c"
    """
    # A number of threads that is none is warned of; the warning must not reach the terminal.
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "many"}
    environment.pop(VARIABLE, None)
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["demo.yaml", "auto dgl csr", "graph.kernel=csr"]
    assert [line for line in done.stderr.splitlines() if "OMP_NUM_THREADS" not in line] == []
