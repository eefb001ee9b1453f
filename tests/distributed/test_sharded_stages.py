"""A model of three stages on two workers: the curves of one, and the same bits wherever it is interrupted."""

from functools import partial

import pytest
import torch

from tests.contracts.toy.training import config_of, register, train_in_pieces
from tests.support.builders import checkpoint_tensors, metrics_of, synthetic_dataset, train_alone
from tests.support.workers import on_workers


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", users=150, items=60, interactions=2400)


def train(world, dataset, run):
    register()
    train_alone(config_of(dataset, run))


def train_interrupted(world, dataset, run):
    register()
    assert len(train_in_pieces(config_of(dataset, run), world)) > 14


def same(run, expected, **tolerance):
    for record, other in zip(metrics_of(run), metrics_of(expected), strict=True):
        assert record == pytest.approx(other, **tolerance)
    newest = [sorted((path / "checkpoints").iterdir())[-1] for path in (run, expected)]
    assert newest[0].name == newest[1].name
    found, tensors = (checkpoint_tensors(path) for path in newest)
    assert set(found) == set(tensors)
    return found, tensors


def test_two_workers_are_interrupted_anywhere(dataset, tmp_path):
    on_workers(1, partial(train, dataset=dataset, run=tmp_path / "one"))
    on_workers(
        2,
        partial(train, dataset=dataset, run=tmp_path / "whole"),
        partial(train_interrupted, dataset=dataset, run=tmp_path / "parts"),
    )
    found, tensors = same(tmp_path / "parts", tmp_path / "whole", rel=0, abs=0)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
    found, tensors = same(tmp_path / "whole", tmp_path / "one", rel=1e-4, abs=1e-6)
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, key=name: f"{key}: {text}"
        )
