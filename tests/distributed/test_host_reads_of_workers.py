"""What several workers' hosts wait for in steps: what one's does, and the plans of exchanges, nothing in the models."""

from dataclasses import replace
from functools import partial

import pytest

from tests.contracts.test_host_reads import ALLOWED, CASES
from tests.support.builders import small_config, synthetic_dataset
from tests.support.host import DEVICE, first_steps
from tests.support.workers import on_workers

WITH_WORKERS = {
    "models/common/ranking_batch.py __init__": "which rows of a batch are others', and how many each worker gives and gets",
}
BY_COLUMNS = {"model": {"name": "lightgcn", "num_layers": 2}, "graph": {"layout": "columns", "kernel": "csr"}}
NAMES = ("diffmm", "diffmm, modal anchor, other sampling", "adagcl", "diffkg", "promptmm", "lightgcn")


def check_steps(world, *, path, folder):
    asked = set()
    for sections in [*(CASES[name] for name in NAMES), BY_COLUMNS]:
        reads, _ = first_steps(small_config(path, folder / "run", **sections), replace(world, device=DEVICE))
        for read in (read for of_phase in reads.values() for read in of_phase):
            within = read.within({**ALLOWED, **WITH_WORKERS})
            assert within, str(read)
            asked.update(within)
    assert asked >= set(WITH_WORKERS)


@pytest.fixture
def path(tmp_path):
    return synthetic_dataset(tmp_path / "d", users=200, items=60, interactions=2400, knowledge=True)


def test_two_workers_wait_for_the_plans_of_exchanges_alone(path, tmp_path):
    on_workers(2, partial(check_steps, path=path, folder=tmp_path))
