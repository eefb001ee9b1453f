"""The estimate of memory beside the peaks of real runs; docs/benchmarks/memory.md has more of them, and larger ones."""

from dataclasses import replace

import pytest

from diffmm_dist.bench.estimate import SHAPES, measure_shape

# One each for denoisers and rows of embeddings, with peaks that differ little from run to run; half a minute each.
CASES = {
    "wide hidden": {"users": 600, "interactions": 20_000},
    "three layers": {"users": 75_000, "interactions": 225_000},
}


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_near_the_measured_peak(name):
    measured = measure_shape(replace(SHAPES[name], **CASES[name]))
    assert 0.9 < measured["ratio"] < 1.35, measured
