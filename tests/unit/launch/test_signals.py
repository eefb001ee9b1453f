"""Ctrl-C and SIGTERM, sent to this very process while it does something."""

import importlib
import os
import signal
import time
import uuid
from contextlib import suppress

import pytest

from diffmm_dist.bundles import ranking
from diffmm_dist.errors import StoppedEarlyError, StoppedError, UserError
from diffmm_dist.evaluation import evaluator
from diffmm_dist.exports import bundle
from diffmm_dist.exports import knowledge as bundled_knowledge
from diffmm_dist.launch.signals import StopSignals, at_once
from diffmm_dist.preparation import partitioning
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.training import trained
from diffmm_dist.training.selection import Evaluation
from diffmm_dist.training.worker import run_worker
from tests.support.builders import metrics_of, small_config, synthetic_dataset

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def ended(number=signal.SIGTERM):
    """What is called in the middle of something: the signal comes, and is heard at the latest a moment later."""

    def end(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(60)

    return end


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run and its bundle."""
    folder = tmp_path_factory.mktemp("run")
    data = synthetic_dataset(folder / "d")
    settings = small_config(data, folder / "run", model={"name": "lightgcn"}, train={"epochs": 2})
    run_worker(settings, stop_requested=lambda: False)
    bundle.export_bundle(trained.load_trained(str(folder / "run")), str(folder / "bundle"))
    return folder


COMMANDS = {
    "evaluate": (["evaluate", "{run}/run"], evaluator, "merge_topk"),
    "export": (["export", "{run}/run", "--out", "{run}/bundle", "--force"], bundle, "write_table"),
    "recommend": (["recommend", "{run}/bundle", "--all", "--out", "{run}/recs.parquet"], ranking, "topk"),
    "partition": (["partition", "{run}/d", "--num-parts", "2", "--out", "{run}/parts"], partitioning, "metis_parts"),
    "explain": (["explain", "{run}/bundle", "--user", "user_1", "--item", "item_1"], bundled_knowledge, "read_marker"),
    "inspect": (["inspect", "{run}/d"], partitioning.Dataset, "interactions"),
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_but_train_ends_at_once(name, number, run, run_cli, monkeypatch):
    words, place, function = COMMANDS[name]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(place, function, ended(number))
    status, _, err = run_cli(*(word.format(run=run) for word in words))
    assert (status, err) == (130, "interrupted; nothing is left half-written\n")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_library_that_makes_another_error_of_it_does_not_hide_it():
    with pytest.raises(StoppedEarlyError, match="at once"), at_once(StoppedEarlyError("at once")):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except StoppedEarlyError:
            raise RuntimeError("interrupted") from None


def module_that(folder, monkeypatch, *lines):
    """The name of a new module, in whose import the signal comes and would be passed over."""
    name = f"signalled_{uuid.uuid4().hex}"  # folders of tests that have passed are removed, and their names used again
    body = ["import os, signal, time", "try:", *(f"    {line}" for line in lines), "except BaseException:", "    pass"]
    (folder / f"{name}.py").write_text("\n".join(body))
    monkeypatch.syspath_prepend(folder)
    return name


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("after_s", [0, 5])
@pytest.mark.parametrize(
    ("block", "kind"),
    [(lambda: at_once(StoppedEarlyError("at once")), StoppedEarlyError), (StopSignals, KeyboardInterrupt)],
)
def test_a_signal_in_the_middle_of_an_import_is_heard_after_it(tmp_path, monkeypatch, number, block, kind, after_s):
    name = module_that(
        tmp_path, monkeypatch, f"os.kill(os.getpid(), {int(number)})", "time.sleep(0.05)", "whole = True"
    )
    begun, outer = time.monotonic(), at_once(StoppedEarlyError("by the outer one"))
    with pytest.raises((kind, StoppedEarlyError)), outer, block():
        module = importlib.import_module(name)
        for _ in range(int(after_s / 0.1)):
            time.sleep(0.1)  # what comes just before a sleep Python hears when that is over
    assert module.whole
    assert time.monotonic() < begun + 4


@pytest.mark.parametrize("number", SIGNALS)
def test_a_library_that_makes_another_error_of_an_interrupt_does_not_hide_it(number):
    with pytest.raises(KeyboardInterrupt), StopSignals():
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise UserError("the checkpoint cannot be written") from None
    with pytest.raises(UserError), StopSignals():
        raise UserError("nobody has interrupted")
    with pytest.raises(StoppedError), StopSignals():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        raise StoppedError("what is saved is saved")


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_run_looks_for_it_a_signal_ends_it_and_then_it_is_a_request(number):
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert not signals.requested()
        os.kill(os.getpid(), number)
        assert signals.requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("where", ["epoch 1, evaluation", "the final measurement"])
def test_evaluation_and_the_final_measurement_are_left_at_once(where, run, tmp_path, monkeypatch):
    """And the run ends the same when it goes on."""
    measure, asked = Evaluation.measure, []

    def asked_meanwhile(self, model, split, *, poll):
        if split == ("valid" if "evaluation" in where else "test") and (len(asked) == 1 or split == "test"):
            asked.append("stop")
        asked.append(split)
        return measure(self, model, split, poll=poll)

    settings = small_config(run / "d", tmp_path / "run", model={"name": "lightgcn"}, train={"epochs": 2})
    monkeypatch.setattr(Evaluation, "measure", asked_meanwhile)
    with pytest.raises(StoppedError, match=f"^{where}$"):
        run_worker(settings, stop_requested=lambda: "stop" in asked)
    monkeypatch.undo()
    run_worker(settings, stop_requested=lambda: False)
    assert metrics_of(tmp_path / "run") == metrics_of(run / "run")
    results = [RunFolder(str(folder / "run")).result() for folder in (tmp_path, run)]
    for split in ("valid", "test"):
        assert results[0][split] == results[1][split]
