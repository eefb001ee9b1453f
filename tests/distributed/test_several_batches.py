"""A step for several batches: the mean of their losses, with one propagation, wherever it is interrupted."""

from functools import partial

import pytest
import torch

from diffmm_dist.models.base import PhaseContext
from tests.contracts.toy.training import train_in_pieces
from tests.support.builders import checkpoint_tensors, metrics_of, small_config, synthetic_dataset, train_alone
from tests.support.phases import last_phase
from tests.support.workers import SIZES, exchanges_of, on_workers

EVERY = 3
SETTINGS = {
    "lightgcn": {"model": {"name": "lightgcn"}},
    "lightgcn by columns": {"model": {"name": "lightgcn"}, "graph": {"layout": "columns"}},
    "diffmm": {"model": {"num_layers": 2}},
    "diffmm, sampled nodes": {"model": {"contrast": {"max_nodes": 20, "contrastive_anchor": "main"}}},
    "diffmm by columns": {"model": {"contrast": {"negatives": "batch"}}, "graph": {"layout": "columns"}},
    "diffkg": {"model": {"name": "diffkg", "knowledge": {"message_dropout_prob": 0.0}}},  # one dropout a step
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return synthetic_dataset(folder / "d", users=50, items=30, interactions=700, knowledge=True)


def recommend_phase(config, world):
    """The model and its phase, at the beginning of an epoch."""
    model, phase = last_phase(config, world)
    return model, phase, phase.begin(PhaseContext(world, 5, 0))


def loss_and_gradients(model, phase, index):
    """This worker's share of each term and of the gradients of a step."""
    model.zero_grad(set_to_none=True)
    terms = phase._losses(phase._batches[index])
    torch.stack(list(terms.values())).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: term.detach() for name, term in terms.items()} | found


def check(world, dataset, tmp_path):
    for name, settings in SETTINGS.items():
        steps = {}
        for every in (1, EVERY):
            train = {"batch_size": 58, "propagate_every": every}
            steps[every] = recommend_phase(small_config(dataset, tmp_path, **settings, train=train), world)
        micro_batches, groups = steps[1][2], steps[EVERY][2]
        assert groups == -(-micro_batches // EVERY)
        assert micro_batches % EVERY  # the last step has fewer
        for index in (0, groups - 1):
            of_each = [
                loss_and_gradients(*steps[1][:2], micro)
                for micro in range(index * EVERY, min((index + 1) * EVERY, micro_batches))
            ]
            found = loss_and_gradients(*steps[EVERY][:2], index)
            assert set(found) == set(of_each[0])
            for key, value in found.items():
                mean = torch.stack([each[key] for each in of_each]).mean(dim=0)
                torch.testing.assert_close(
                    value, mean, rtol=1e-4, atol=1e-6, msg=lambda text, at=f"{name}, {key}": f"{at}: {text}"
                )
        check_exchanges(steps, name)


def check_exchanges(steps, name):
    """A step for several batches takes fewer exchanges than they do."""
    counts = {every: exchanges_of(partial(loss_and_gradients, *steps[every][:2], 1))[1] for every in steps}
    by_columns = "columns" in name
    assert counts[EVERY] <= EVERY * counts[1]
    if counts[1]:
        assert counts[EVERY] == counts[1] if by_columns or "lightgcn" in name else counts[EVERY] < EVERY * counts[1]


@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_the_mean_of_its_batches(dataset, tmp_path, size):
    on_workers(size, partial(check, dataset=dataset, tmp_path=tmp_path))


def run_of(dataset, run):
    return small_config(dataset, run, train={"batch_size": 58, "propagate_every": EVERY, "epochs": 2})


def in_pieces(world, dataset, run):
    assert len(train_in_pieces(run_of(dataset, run), world)) > 6


def test_it_is_interrupted_anywhere(dataset, tmp_path):
    train_alone(run_of(dataset, tmp_path / "whole"))
    on_workers(1, partial(in_pieces, dataset=dataset, run=tmp_path / "parts"))
    for record, other in zip(metrics_of(tmp_path / "parts"), metrics_of(tmp_path / "whole"), strict=True):
        assert record == pytest.approx(other, rel=0, abs=0)
    found, expected = (
        checkpoint_tensors(sorted((tmp_path / name / "checkpoints").iterdir())[-1]) for name in ("parts", "whole")
    )
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
