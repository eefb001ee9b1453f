"""What several workers' hosts wait for in steps: the plans of exchanges as one's does, and by rows one thing more."""

from dataclasses import replace
from functools import partial

from tests.contracts.test_host_reads import CASES, IN_EVERY_STEP, unexpected
from tests.support.builders import small_config, synthetic_dataset
from tests.support.host import DEVICE, first_steps
from tests.support.workers import on_workers

NAMES = ("diffmm", "diffmm, modal anchor, other sampling", "adagcl", "diffkg", "promptmm", "lightgcn")
COLUMNS = {"layout": "columns", "kernel": "csr"}
BY_COLUMNS = (
    {"model": {"name": "lightgcn", "num_layers": 2}, "graph": COLUMNS},
    {"model": {"name": "diffmm", "contrast": {"negatives": "batch"}}, "graph": COLUMNS},
)
BY_ROWS = IN_EVERY_STEP | {
    "graph/targets.py of": "which of others' items the edges to a batch's rows come from is the size of its halo"
}


def check_steps(world, *, path, folder):
    for sections in (*(CASES[name] for name in NAMES), *BY_COLUMNS):
        reads, _ = first_steps(small_config(path, folder / "run", **sections), replace(world, device=DEVICE))
        found = unexpected(reads, IN_EVERY_STEP if sections in BY_COLUMNS else BY_ROWS)
        assert not found, "\n".join(found)
        assert any(read.within({"parallel/halo.py localize_each"}) for steps in reads.values() for read in steps[0])


def test_two_workers_wait_for_the_plans_of_exchanges_alone(tmp_path):
    path = synthetic_dataset(tmp_path / "d", users=200, items=60, interactions=2400, knowledge=True)
    on_workers(2, partial(check_steps, path=path, folder=tmp_path))
