"""The page of one run and of several: what it says is what was measured, and nobody's names are markup."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from diffmm_dist import storage
from diffmm_dist.config.render import flatten
from diffmm_dist.places import settle
from diffmm_dist.report.again import command_again
from diffmm_dist.report.write import write_report
from diffmm_dist.runs.config import load_config
from diffmm_dist.runs.run_folder import RunFolder
from tests.support.builders import ROOT, small_config, synthetic_dataset, train_alone
from tests.support.damage import reseal
from tests.support.names import EVIL, with_evil_names


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.heads = set(), set(), [], []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self._inside = tag
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, text):
        self.words.append(text)
        self.heads += [text] if self._inside in ("h1", "h2") and text.strip() else []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a dataset with strange names, in a folder with a strange name."""
    folder = tmp_path_factory.mktemp("runs") / "<b onclick=x>'"
    data = with_evil_names(synthetic_dataset(folder / "d"), folder / "evil")
    for name, model, seed in (("diffmm", "diffmm", 1), ("popular", "popularity", 1), ("a", "lightgcn", 1),
                              ("b", "lightgcn", 2)):  # fmt: skip
        cutoffs = [7, 20] if name == "b" else [5, 20]
        settings = {"run": {"seed": seed}, "train": {"epochs": 2}, "eval": {"k": cutoffs}}
        train_alone(small_config(data, folder / name, model={"name": model}, **settings))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run of another dataset, which has nothing to test with."""
    folder = tmp_path_factory.mktemp("other")
    train_alone(small_config(synthetic_dataset(folder / "d", seed=2), folder / "r", model={"name": "popularity"}))
    return folder / "r"


@pytest.fixture
def written(run_cli, tmp_path):
    """Write a page of runs; return it read, and its text."""

    def write(*arguments, name="r.html"):
        status, out, err = run_cli("report", *arguments, "--out", tmp_path / name)
        assert status == 0, err
        assert str(tmp_path / name) in out
        text = (tmp_path / name).read_text()
        return Page(text), text

    return write


@pytest.fixture(scope="module")
def one(runs, tmp_path_factory):
    """The page of one run, and its text."""
    place = tmp_path_factory.mktemp("page") / "r.html"
    write_report([str(runs / "diffmm")], str(place), k=5)
    return Page(place.read_text()), place.read_text()


def test_a_page_of_one_run_has_its_parts_and_nothing_of_elsewhere(one):
    page, text = one
    assert page.heads == [
        "diffmm on evil", "Figures", "For whom, and of what", "Generated graphs", "Modality weights", "Curves",
        "Time and memory", "Environment, and the command that repeats the run",
    ]  # fmt: skip
    assert page.tags.isdisjoint({"script", "img", "link", "iframe", "object", "b onclick"})
    assert not {name for name in page.attributes if name.startswith("on") or name in ("src", "href")}
    assert "default-src 'none'" in text
    assert "\u202e" not in text
    assert any("<script>" in word for word in page.words)  # as words, where the neighbourhood is drawn
    assert f"user {EVIL[0]}" not in text
    words = "".join(page.words)
    for tag in (
        "denoise / elbo",
        "recommend / bpr",
        "rebuild / observed share",
        "valid / recall",
        "recommend / weight",
    ):
        assert tag in words
    assert "chosen on validation" in words
    assert re.search(r"best epoch: [01]", words)
    for line in ("Python", "torch", "processor", "threads of a worker"):
        assert line in words


def test_figures_are_those_of_the_result_and_of_the_baseline_that_is_trained(runs, one):
    words = one[0].words
    result, popular = (json.loads((runs / name / "result.json").read_text()) for name in ("diffmm", "popular"))
    for split in ("test", "valid"):
        for metric in ("recall@5", "ndcg@20", "mrr@5", "coverage@20"):
            expected = [f"{one[split][metric]:.4f}" for one in (result, popular)]
            rows = [words[place + 1 : place + 6] for place, word in enumerate(words) if word == metric]
            assert expected in [[word for word in row if re.fullmatch(r"[01]\.\d{4}", word)] for row in rows]
    assert "when measured now" not in "".join(words)


def test_a_figure_that_is_not_the_run_s_own_is_said(runs, written, tmp_path):
    shutil.copytree(runs / "popular", tmp_path / "changed")
    test = json.loads((runs / "popular" / "result.json").read_text())["test"]
    reseal(tmp_path / "changed" / "result.json", test={**test, "recall@5": test["recall@5"] + 0.01})
    page, _ = written(tmp_path / "changed")
    told = f"test recall@5 is {test['recall@5']:.4f} when measured now and {test['recall@5'] + 0.01:.4f} in result.json"
    assert told in page.words


def test_records_that_are_lost_are_said(runs, written, tmp_path, caplog):
    shutil.copytree(runs / "diffmm", tmp_path / "cut")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:100])
    page, _ = written(tmp_path / "cut")
    assert any("metrics.jsonl has lost the records of" in word for word in page.words)


def test_a_page_of_several_runs_names_them_and_compares_them(runs, written):
    page, _ = written(runs / "a", runs / "b", runs / "popular", runs / "a")
    words = "".join(page.words)
    assert page.heads[:5] == ["3 runs on evil", "Side by side", "Pair by pair, for the same users",
                              "For whom, and of what", "Each run"]  # fmt: skip
    for name in ("lightgcn, seed=1", "lightgcn, seed=2", "popularity"):
        assert name in page.words
    assert "The 6 p values are corrected by Holm's method" in words
    assert words.count(" less ") == 3


def test_the_same_runs_have_the_same_page(runs, written):
    assert written(runs / "popular")[1] == written(runs / "popular", name="again.html")[1]


def test_what_cannot_be_compared_is_one_sentence_and_no_file(runs, other, run_cli, tmp_path):
    out = ("--out", tmp_path / "r.html")
    shutil.copytree(runs / "a", tmp_path / "stopped")
    (tmp_path / "stopped" / "result.json").unlink()
    shutil.copytree(runs / "a", tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone" / "checkpoints")
    cases = [
        ((runs / "a", other), "of different datasets, so their users cannot be compared"),
        ((runs / "a", tmp_path / "stopped"), "has not finished; run its `train` command again"),
        ((tmp_path / "gone",), "best epoch"),
        ((runs / "diffmm", "--user", "nobody"), "--user 'nobody' is no user of dataset"),
        ((runs / "nowhere",), "is not a run folder"),
    ]
    for arguments, words in cases:
        status, _, err = run_cli("report", *arguments, *out)
        assert (status, len(err.splitlines())) == (1, 1), err
        assert words in err
        assert not (tmp_path / "r.html").exists()
    status, _, err = run_cli("report", runs / "a", "--out", runs / "a" / "r.html")
    assert (status, "lies inside" in err) == (1, True)
    assert "must end in .html" in run_cli("report", runs / "a", "--out", tmp_path / "r.pdf")[2]


def test_the_published_protocol_is_stamped(runs, written, run_cli, tmp_path):
    published = {"model": {"name": "popularity"}, "eval": {"protocol": "published"}}
    train_alone(small_config(runs / "evil", tmp_path / "p", **published))
    page, text = written(tmp_path / "p")
    assert "PUBLISHED PROTOCOL: chosen on test, so these are no honest test figures" in page.words
    assert 'class="stamp"' in text
    assert "result.json" not in "".join(page.words[:40])  # its own masks, so its own figures
    _, _, err = run_cli("report", tmp_path / "p", runs / "popular", "--out", tmp_path / "x.html")
    assert "are of different protocols" in err


def test_a_run_of_an_earlier_version_does_not_say_what_it_was_trained_with(runs, written, tmp_path):
    shutil.copytree(runs / "popular", tmp_path / "old")
    place = tmp_path / "old" / "run.json"
    identity = RunFolder.existing(str(tmp_path / "old")).identity()
    assert identity["environment"]["workers"] == "1"
    del identity["environment"]
    storage.write_record(str(place), identity)
    page, _ = written(tmp_path / "old")
    assert any("does not say what it was trained with" in word for word in page.words)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash is here")
def test_the_command_repeats_the_run(runs, tmp_path):
    """The shell that runs it has the program as `python launch.py`, as a clone has."""
    folder = RunFolder.existing(str(runs / "diffmm"))
    text = command_again(folder.config(), folder.uri)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "print()"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", text], cwd=tmp_path, check=True, env=environment)
    again = load_config(str(tmp_path / "again.yaml"))
    expected = {**flatten(folder.config()), "run.path": f"{folder.uri}-again"}
    assert flatten(again) == expected
    assert text.splitlines()[-1] == "python launch.py train --config again.yaml"
    assert (ROOT / "launch.py").exists()
    assert len((tmp_path / "again.yaml").read_text().splitlines()) < len(expected)  # defaults are left out


def test_a_page_goes_to_a_store(runs, run_cli, monkeypatch):
    monkeypatch.setattr("diffmm_dist.cli_options.settle_to_keep", settle)  # here it is read by the same process
    status, _, err = run_cli("report", runs / "popular", "--out", "memory://pages/r.html")
    assert status == 0, err
    assert b"<h1>" in storage.read_bytes("memory://pages/r.html")


def test_the_user_who_is_asked_for_is_drawn(runs, written):
    page, _ = written(runs / "diffmm", "--user", f"7{EVIL}")
    assert any(word.startswith("Before and after: user 7<script>") for word in page.words)


def test_pages_are_small_however_many_epochs(runs, written, tmp_path):
    """Ten thousand records of what a run records."""
    from diffmm_dist.monitoring.jsonl import JsonlRecorder

    shutil.copytree(runs / "popular", tmp_path / "long")
    folder = RunFolder.existing(str(tmp_path / "long"))
    recorder = JsonlRecorder(Path(folder.metrics), run=folder.run)
    for epoch in range(10_000):
        recorder.scalars({"recommend/bpr": 1 / (1 + epoch), "valid/recall@20": epoch % 7 / 10}, epoch=epoch)
    recorder.close()
    page, text = written(tmp_path / "long")
    assert "recommend / bpr" in page.words
    assert len(text) < 200_000
