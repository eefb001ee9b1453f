"""The estimate of memory beside the peaks of real runs; docs/benchmarks/memory.md has more of them."""

import pytest

from diffmm_dist.bench.estimate import SHAPES, measure_shape

# One each for denoisers and rows of embeddings, with peaks that differ little from run to run; seconds each.
NAMES = ("wide hidden", "three layers")


@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_is_near_the_measured_peak(name):
    measured = measure_shape(SHAPES[name])
    assert 0.9 < measured["ratio"] < 1.35, measured
