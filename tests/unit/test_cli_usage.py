"""Command lines that the parser refuses: one sentence in the form of all others, and status 2."""

import pytest

from tests.support.builders import write_config


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "c.yaml", data={"path": "nowhere"}, run={"path": str(tmp_path / "run")})


def sentence(outcome, *, status):
    found, _, err = outcome
    assert found == status, err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


USAGE = {
    "unknown command": (["trains"], "no such command 'trains'; did you mean 'train'?"),
    "unknown command of a group": (["prepare", "synth"], "did you mean 'synthetic'?"),
    "unknown option": (["train", "--confg", "x"], "there is no option --confg; did you mean '--config'?"),
    "unknown option of a command without settings": (["recommend", "x", "--user", "1"], "did you mean '--users'?"),
    "setting as option": (["train", "--epochs", "5"], "no option --epochs; did you mean train.epochs=5?"),
    "setting as option with its section": (["train", "--train.epochs", "5"], "did you mean train.epochs=5?"),
    "setting as option with an equals sign": (["bench", "epoch", "--lr=0.1"], "did you mean train.learning_rate=0.1?"),
    "setting as short option": (["submit", "-lr", "0.1"], "did you mean train.learning_rate=0.1?"),
    "missing option": (["prepare", "synthetic"], "--out is missing"),
    "missing argument": (["inspect"], "an argument is missing: dataset"),
    "missing value": (["recommend", "x", "--k"], "option '--k' requires an argument"),
    "number out of range": (["recommend", "x", "--all", "--k", "0"], "--k 0: it must be a whole number of at least 1"),
    "no number": (["recommend", "x", "--all", "--k=many"], "--k many: it must be a whole number of at least 1"),
    "no float": (["bench", "gpus", "--out", "x", "--tflops", "fast"], "--tflops fast: it must be a finite number"),
    "too many arguments": (["inspect", "a", "b"], "unexpected extra argument"),
    "no configuration": (["train"], "no configuration is named"),
    "no configuration but settings": (["config", "show", "train.epochs=1"], "no configuration is named"),
}


@pytest.mark.parametrize("case", USAGE)
def test_command_lines_that_cannot_be_read(run_cli, case):
    words, part = USAGE[case]
    line = sentence(run_cli(*words), status=2)
    assert part in line
    assert "Input should" not in line
    assert "--help`" in line


COMMANDS = [["config", "show"], ["train"], ["bench", "epoch", "--out", "o.json"], ["submit", "--address", "http://x:1"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_file_alone_is_the_configuration(run_cli, config, command):
    named = run_cli(*command, "--config", config, "train.epochs=0")
    assert run_cli(*command, config, "train.epochs=0") == named
    assert run_cli(*command, "train.epochs=0", config) == named
    assert run_cli(*command, config, "--config", config, "train.epochs=0") == named
    assert sentence(named, status=1).startswith("error: command line: 'train.epochs' is 0")


def test_a_file_of_any_name_is_the_configuration(run_cli, config, tmp_path, monkeypatch):
    (tmp_path / "lr=1").write_text(open(config).read())
    monkeypatch.chdir(tmp_path)
    assert run_cli("config", "show", "lr=1")[0] == 0
    assert "cannot read the configuration nowhere.yml" in sentence(run_cli("train", "nowhere.yml"), status=1)


def test_two_configurations_are_one_sentence(run_cli, config, tmp_path):
    line = sentence(run_cli("train", config, "--config", tmp_path / "other.yaml"), status=1)
    assert "are both given as configuration" in line
    assert "are both given" in sentence(run_cli("config", "show", config, "other.yaml"), status=1)


def test_help_is_help(run_cli):
    for words in (["--help"], ["train", "--help"], ["prepare", "--help"]):
        status, out, err = run_cli(*words)
        assert (status, err) == (0, "")
        assert "Usage:" in out
    assert run_cli("prepare")[0] == 2


def test_interrupted_commands_say_so(run_cli, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffmm_dist.config.render.reference_markdown", interrupted)
    assert run_cli("config", "reference") == (130, "", "interrupted; nothing is left half-written\n")
