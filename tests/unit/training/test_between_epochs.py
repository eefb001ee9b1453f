"""Whoever looks at a run between its epochs sees it saved, and can end it before test is measured."""

import pytest

from diffmm_dist.errors import StoppedError
from diffmm_dist.training.selection import Evaluation
from diffmm_dist.training.worker import run_worker
from tests.support.builders import small_config, synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d")


def run(config, look):
    return run_worker(config, stop_requested=lambda: False, show_progress=False, between_epochs=look)


class Looking:
    """Takes down where a run stands; ends it after some epochs, or where it would end."""

    def __init__(self, epochs):
        self.epochs = epochs
        self.seen = []

    def __call__(self, standing):
        self.seen.append((standing.epochs, standing.best.epoch, standing.ended))
        if standing.ended or standing.epochs == self.epochs:
            raise StoppedError("here")


@pytest.fixture
def splits(monkeypatch):
    """Which splits are measured."""
    measured, measure = [], Evaluation.measure
    monkeypatch.setattr(
        Evaluation, "measure",
        lambda self, model, split, **rest: (measured.append(split), measure(self, model, split, **rest))[1],
    )  # fmt: skip
    return measured


def test_it_goes_on_from_where_it_was_ended_and_nothing_but_validation_is_measured(dataset, tmp_path, splits):
    config = small_config(dataset, tmp_path / "r", model={"name": "lightgcn"}, train={"epochs": 4})
    first, second = Looking(2), Looking(99)
    for look in (first, second):
        with pytest.raises(StoppedError):
            run(config, look)
    assert [epochs for epochs, _, _ in first.seen] == [1, 2]
    assert [epochs for epochs, _, _ in second.seen] == [2, 3, 4]
    assert [ended for *_, ended in second.seen] == [False, False, True]
    assert second.seen[0] == first.seen[-1]
    assert splits == ["valid"] * 4
    assert not (tmp_path / "r" / "result.json").exists()
    run(config, lambda standing: None)  # its `train` command ends it, and measures test
    assert "test" in splits
    assert (tmp_path / "r" / "result.json").exists()


def test_it_hears_that_patience_ends_a_run(dataset, tmp_path):
    settings = {"epochs": 50, "patience": 1, "learning_rate": 1e-9}
    look = Looking(99)
    with pytest.raises(StoppedError):
        run(small_config(dataset, tmp_path / "r", model={"name": "lightgcn"}, train=settings), look)
    assert look.seen[-1][2]
    assert look.seen[-1][0] < 50


def test_of_a_model_with_several_stages_the_last_one_counts(dataset, tmp_path):
    model = {"name": "promptmm", "student": {"embedding_dim": 8, "num_layers": 0}}
    look = Looking(99)
    with pytest.raises(StoppedError):
        run(small_config(dataset, tmp_path / "r", model=model, train={"epochs": 2}), look)
    assert [(epochs, ended) for epochs, _, ended in look.seen] == [(1, False), (2, True)]
    assert all(best >= 2 for _, best, _ in look.seen)
