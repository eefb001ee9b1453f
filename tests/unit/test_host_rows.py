"""Tables in main memory: products as with a table on the device, and a GPU's queues wait for one another rightly."""

from contextlib import contextmanager

import pytest
import torch

from diffmm_dist import host_rows
from diffmm_dist.host_rows import HostRows, blocks_of, product, transposed_product
from tests.support.host import DEVICE, HostReads

SHAPES = [(11, 6), (8, 4), (1, 30), (0, 5), (3, 0)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(host_rows, "_BLOCK_ELEMENTS", 16)


def results(table, left, weight):
    """A product, the gradient of its matrix, the transposed product, and the rows."""
    weight = weight.detach().requires_grad_()
    found = product(table, weight)
    found.sin().sum().backward()
    rows = torch.cat([left.new_zeros(0, table.shape[1]), *(block.clone() for block in blocks_of(table))])
    return [found.detach(), weight.grad, transposed_product(left, table), rows]


@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_a_table_on_the_device(shape):
    rows, left, weight = (torch.randn(size) for size in (shape, (shape[0], 3), (shape[1], 4)))
    for found, expected in zip(
        results(HostRows.of(rows, torch.device("cpu")), left, weight), results(rows, left, weight), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_on_another_device_nothing_makes_the_host_wait(shape):
    rows, left, weight = (torch.randn(size) for size in (shape, (shape[0], 3), (shape[1], 4)))
    expected = results(rows, left, weight)
    with HostReads() as host:
        there = [tensor.to(DEVICE) for tensor in (left, weight)]
        with host.watched() as reads:
            found = results(HostRows(rows, DEVICE), *there)
        assert all(tensor.device == DEVICE for tensor in found)
        found = [tensor.cpu() for tensor in found]
    assert all(read.within({"host_rows.py fetch"}) for read in reads)  # from pinned memory it waits for none of them
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain)


class Queues:
    """Stands in for a GPU's streams: which are told to wait for what, and in which order."""

    def __init__(self, buffers):
        self.log, self.now, self.counts = [], "computing", {"copied": 0, "computed": 0}

    @contextmanager
    def copying(self):
        self.now = "copying"
        yield
        self.now = "computing"

    def _event(self, name):
        number = self.counts[name]
        self.counts[name] += 1
        self.log.append((name, number))
        return Event(self, (name, number))

    def copied(self):
        return self._event("copied")

    def computed(self):
        return self._event("computed")


class Event:
    def __init__(self, queues, name):
        self._queues, self._name = queues, name

    def wait(self):
        self._queues.log.append((self._queues.now, "waits for", self._name))


def test_a_block_is_overwritten_behind_what_uses_it(monkeypatch):
    """And used behind its copy, while the next one is copied."""
    queues = Queues(None)
    with HostReads():
        table = HostRows(torch.randn(10, 8), DEVICE)
        buffers = host_rows._Buffers(table, 2)
        buffers._queues = queues
        monkeypatch.setattr(host_rows, "_Buffers", lambda *_: buffers)
        for number, _ in enumerate(table.blocks()):
            queues.log.append(("uses", number))
    log, num_blocks = queues.log, 5
    assert queues.counts == {"copied": num_blocks, "computed": num_blocks}
    for number in range(num_blocks):
        use = log.index(("uses", number))
        assert log[use + 1] == ("computed", number)
        waits = ("computing", "waits for", ("copied", number))
        assert log.index(("copied", number)) < log.index(waits) < use
        if number + 1 < num_blocks:
            assert log.index(("copied", number + 1)) < use
        if number >= 2:
            waits = ("copying", "waits for", ("computed", number - 2))
            assert log.index(("computed", number - 2)) < log.index(waits) < log.index(("copied", number))
