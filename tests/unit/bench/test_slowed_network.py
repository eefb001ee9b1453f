"""A network that is slowed down: exchanges take as long as their bytes, beside other work or not."""

import pytest
import torch
import torch.distributed as dist

from diffmm_dist.bench import overlap
from diffmm_dist.bench.overlap import slowed


class Clock:
    """A time that passes while somebody sleeps or works."""

    def __init__(self):
        self.now = 10.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Work:
    waited = False

    def wait(self):
        self.waited = True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(overlap, "time", clock)
    monkeypatch.setattr(
        dist, "all_to_all_single", lambda _received, _sent, async_op=False: Work() if async_op else None
    )
    monkeypatch.setattr(dist, "all_reduce", lambda _tensor: None)
    return clock


def exchange(num_bytes, **options):
    return dist.all_to_all_single(torch.zeros(0), torch.zeros(num_bytes, dtype=torch.uint8), **options)


def test_exchanges_go_on_while_the_process_works(clock):
    with slowed(100.0, overlapped=True):
        first, second = exchange(200, async_op=True), exchange(100, async_op=True)
        assert clock.now == 10.0
        clock.now = 12.5
        first.wait()
        assert clock.now == 12.5
        second.wait()  # it began behind the first one
        assert clock.now == 13.0
        assert second._work.waited
        third = exchange(100, async_op=True)  # the network has been free since
        third.wait()
        assert clock.now == 14.0


def test_without_overlap_each_is_waited_for_where_it_begins(clock):
    with slowed(100.0, overlapped=False):
        work = exchange(200, async_op=True)
        assert clock.now == 12.0
        clock.now = 20.0
        work.wait()
        assert clock.now == 20.0


def test_what_is_waited_for_anyway_takes_its_time_too(clock):
    with slowed(100.0, overlapped=True):
        assert exchange(100) is None
        dist.all_reduce(torch.zeros(50, dtype=torch.uint8))
        assert clock.now == 11.5


def test_torch_is_as_it_was_afterwards(clock):
    before = dist.all_to_all_single
    with pytest.raises(KeyError), slowed(1.0, overlapped=True):
        assert dist.all_to_all_single is not before
        raise KeyError
    assert dist.all_to_all_single is before
