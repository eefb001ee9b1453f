import pytest

from diffmm_dist.parallel.ranges import even_range


@pytest.mark.parametrize("total", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_even_ranges_cover_everything_once(total, size):
    ranges = [even_range(total, rank=rank, size=size) for rank in range(size)]
    assert [row for r in ranges for row in range(r.start, r.stop)] == list(range(total))
    assert max(r.size for r in ranges) - min(r.size for r in ranges) <= 1
