"""What several workers' hosts wait for in steps: in the same functions as one's, when exchanges are planned."""

from dataclasses import replace
from functools import partial

from tests.contracts.test_host_reads import CASES, unexpected
from tests.support.builders import small_config, synthetic_dataset
from tests.support.host import DEVICE, first_steps
from tests.support.workers import on_workers

NAMES = ("diffmm", "diffmm, modal anchor, other sampling", "adagcl", "diffkg", "promptmm", "lightgcn")
BY_COLUMNS = {"model": {"name": "lightgcn", "num_layers": 2}, "graph": {"layout": "columns", "kernel": "csr"}}


def check_steps(world, *, path, folder):
    for sections in [*(CASES[name] for name in NAMES), BY_COLUMNS]:
        reads, _ = first_steps(small_config(path, folder / "run", **sections), replace(world, device=DEVICE))
        found = unexpected(reads)
        assert not found, "\n".join(found)
        assert any(read.within({"parallel/halo.py localize_each"}) for steps in reads.values() for read in steps[0])


def test_two_workers_wait_for_the_plans_of_exchanges_alone(tmp_path):
    path = synthetic_dataset(tmp_path / "d", users=200, items=60, interactions=2400, knowledge=True)
    on_workers(2, partial(check_steps, path=path, folder=tmp_path))
