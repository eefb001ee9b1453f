"""ID tables that stay by columns while a phase trains them: the same numbers as if they went there in every step."""

from functools import partial

import pytest
import torch

from diffmm_dist.models.base import PhaseContext
from diffmm_dist.training.worker import run_worker
from tests.contracts.toy.training import train_in_pieces
from tests.support.builders import checkpoint_tensors, metrics_of, small_config, synthetic_dataset
from tests.support.phases import last_phase
from tests.support.workers import SIZES, exchanges_of, on_workers

COLUMNS = {"graph": {"layout": "columns"}}
ROUNDED = {"graph": {"layout": "columns", "messages": "bfloat16"}}
MODELS = {
    "lightgcn": {"model": {"name": "lightgcn"}},
    "diffmm": {"model": {"num_layers": 2, "contrast": {"negatives": "batch"}}},
}
STEPS = 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", users=50, items=30, interactions=700)


def trained(config, world, *, kept=True, saved_after=()):
    """Tables and moments after some steps, and the steps' values; ``saved_after`` some, they are rows in between."""
    model, phase = last_phase(config, world)
    if not kept:
        phase._in_layout = None
    tables = model.user_embedding, model.item_embedding
    rows = [table.shape for table in tables]
    phase.begin(PhaseContext(world, 5, 0))
    values = []
    for index in range(STEPS):
        values.append(torch.stack(list(phase.step(index).values())))
        by_columns = world.size > 1 and kept
        assert all((table.shape[0] > form[0]) == by_columns for table, form in zip(tables, rows, strict=True))
        if index in saved_after:
            phase.settle()
            assert [table.shape for table in tables] == rows
            phase.settle()  # nothing is left to do
    phase.finish()
    assert [table.shape for table in tables] == rows
    remembered = [phase.optimizers["adam"].state[table] for table in tables]
    assert all(state["exp_avg"].shape == form for state, form in zip(remembered, rows, strict=True))
    moments = [value for state in remembered for value in state.values()]
    return [*(table.detach() for table in tables), *moments], values


def check(world, dataset, tmp_path):
    for model, layout in ((model, layout) for model in MODELS.values() for layout in (COLUMNS, ROUNDED)):
        config = small_config(dataset, tmp_path, **model, **layout, train={"batch_size": 58})
        tensors, values = trained(config, world)
        for saved_after in ((1,), range(STEPS)):
            others, found = trained(config, world, saved_after=saved_after)
            assert all(map(torch.equal, others, tensors))
            assert all(map(torch.equal, found, values))
        if layout is COLUMNS:  # otherwise the tables would be rounded on their way
            others, _ = trained(config, world, kept=False)
            for other, tensor in zip(others, tensors, strict=True):
                torch.testing.assert_close(other, tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", SIZES)
def test_it_makes_no_difference(dataset, tmp_path, size):
    on_workers(size, partial(check, dataset=dataset, tmp_path=tmp_path))


def check_exchanges(world, dataset, tmp_path):
    """ID tables are all that LightGCN propagates, so its steps bring nothing to columns."""
    config = small_config(dataset, tmp_path, **MODELS["lightgcn"], **COLUMNS, train={"batch_size": 58})
    counts = {}
    for kept in (True, False):
        _, phase = last_phase(config, world)
        if not kept:
            phase._in_layout = None
        phase.begin(PhaseContext(world, 5, 0))
        phase.step(0)
        counts[kept] = exchanges_of(partial(phase.step, 1))[1]
    assert counts[True] == counts[False] - 2


def test_a_step_brings_no_id_tables(dataset, tmp_path):
    on_workers(2, partial(check_exchanges, dataset=dataset, tmp_path=tmp_path))


def run_of(dataset, run, model):
    return small_config(dataset, run, **MODELS[model], **COLUMNS, train={"batch_size": 150, "epochs": 2})


def whole_and_in_pieces(world, dataset, folder):
    for model in MODELS:
        run_worker(run_of(dataset, folder / model / "whole", model), stop_requested=lambda: False)
        assert len(train_in_pieces(run_of(dataset, folder / model / "parts", model), world)) > 6


def test_interrupted_anywhere_a_run_ends_with_the_same_bits(dataset, tmp_path):
    on_workers(2, partial(whole_and_in_pieces, dataset=dataset, folder=tmp_path))
    for model in MODELS:
        runs = [tmp_path / model / name for name in ("parts", "whole")]
        assert metrics_of(runs[0]) == metrics_of(runs[1])
        found, expected = (checkpoint_tensors(sorted((run / "checkpoints").iterdir())[-1]) for run in runs)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
