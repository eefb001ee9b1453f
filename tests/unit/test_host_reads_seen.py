"""The stand-in for a GPU notices what it is there to notice (tests/support/host.py)."""

import pytest
import torch

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.evaluation.topk import topk
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.sparse import CSR
from tests.support.host import DEVICE, HostReads

READ = {
    "item": lambda x, n, m: x.sum().item(),
    "bool": lambda x, n, m: bool(x.any()),
    "int": lambda x, n, m: int(n[0]),
    "tolist": lambda x, n, m: x.tolist(),
    "cpu": lambda x, n, m: x.cpu(),
    "to cpu": lambda x, n, m: x.to("cpu", torch.float64),
    "copied to the host": lambda x, n, m: torch.zeros(4).copy_(x),
    "copied from the host": lambda x, n, m: x.copy_(torch.zeros(4)),
    "moved": lambda x, n, m: torch.zeros(4).to(DEVICE),
    "tensor": lambda x, n, m: torch.tensor([1, 2], device=DEVICE),
    "as_tensor": lambda x, n, m: torch.as_tensor([1, 2], device=DEVICE),
    "new_tensor": lambda x, n, m: x.new_tensor([1.0]),
    "index by a list": lambda x, n, m: x[[0, 2]],
    "index from the host": lambda x, n, m: x[torch.tensor([0, 2])],
    "mask": lambda x, n, m: x[m],
    "assigned by a mask": lambda x, n, m: x.__setitem__(m, x[:1]),
    "masked_select": lambda x, n, m: x.masked_select(m),
    "nonzero": lambda x, n, m: torch.nonzero(x),
    "argwhere": lambda x, n, m: torch.argwhere(x),
    "where": lambda x, n, m: torch.where(m),
    "unique": lambda x, n, m: torch.unique(n),
    "unique of rows": lambda x, n, m: torch.unique(n[:, None], dim=0),
    "unique_consecutive": lambda x, n, m: torch.unique_consecutive(n),
    "bincount": lambda x, n, m: torch.bincount(n),
    "histc": lambda x, n, m: torch.histc(x, 3),
    "repeat_interleave": lambda x, n, m: x.repeat_interleave(n),
    "sizes of a split": lambda x, n, m: x.split(n.tolist()),
    "a slice up to a value": lambda x, n, m: x[: n[1]],
    "equal": lambda x, n, m: torch.equal(x, x),
    "eigh": lambda x, n, m: torch.linalg.eigh(x.outer(x)),
    "cholesky": lambda x, n, m: torch.linalg.cholesky(torch.eye(3, device=DEVICE)),
}
UNREAD = {
    "arithmetic": lambda x, n, m: (x * 2 + x.sum()).softmax(0),
    "arange": lambda x, n, m: torch.arange(5, device=DEVICE),
    "full": lambda x, n, m: torch.full((), 3.0, device=DEVICE),
    "index": lambda x, n, m: x[n.clamp(max=3)],
    "one number by a mask": lambda x, n, m: x.__setitem__(m, 0.0),
    "masked_fill": lambda x, n, m: x.masked_fill(m, 1.0),
    "counted repeat_interleave": lambda x, n, m: x.repeat_interleave(n, output_size=4),
    "counted nonzero": lambda x, n, m: torch.nonzero_static(x, size=2),
    "number of the host": lambda x, n, m: x * torch.tensor(2.0),
    "sort": lambda x, n, m: torch.searchsorted(x.sort().values, x),
    "shape": lambda x, n, m: x.view(2, 2).squeeze_().unsqueeze_(0),
}


def on_device():
    return (
        torch.arange(4.0).to(DEVICE),
        torch.tensor([1, 2, 1, 0]).to(DEVICE),
        torch.tensor([True, False] * 2).to(DEVICE),
    )


@pytest.mark.parametrize("operation", READ)
def test_what_is_waited_for_is_listed(operation):
    with HostReads() as host:
        values = on_device()
        with host.watched() as reads:
            READ[operation](*values)
    assert len(reads) == 1, [str(read) for read in reads]


@pytest.mark.parametrize("operation", UNREAD)
def test_what_is_not_waited_for_is_not_listed(operation):
    with HostReads() as host:
        values = on_device()
        with host.watched() as reads:
            UNREAD[operation](*values)
    assert not reads


def test_a_backward_pass_is_watched_too_and_values_are_those_of_the_processor():
    class Counting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.sum().item()

    with HostReads() as host:
        weight = torch.nn.Parameter(torch.arange(3.0).to(DEVICE))
        adam = torch.optim.Adam([weight], lr=0.5, fused=True)
        with host.watched() as reads:
            Counting.apply(weight).sum().backward()
            adam.step()
        values, gradient = weight.tolist(), weight.grad.tolist()
    assert [read.operation for read in reads] == ["aten._local_scalar_dense.default"]
    assert gradient == [3.0] * 3
    assert values == pytest.approx([-0.5, 0.5, 1.5])


def test_what_lies_elsewhere_is_refused_as_by_a_gpu():
    with HostReads():
        values, _, _ = on_device()
        with pytest.raises(
            RuntimeError, match=r"some tensors are on the device, and one of torch.Size\(\[4\]\) is not"
        ):
            values + torch.zeros(4)
        with pytest.raises((RuntimeError, TypeError)):
            values.numpy()


def test_a_read_names_the_line_that_asked_for_it():
    """The innermost of the package, and the functions that it was called by."""
    with HostReads() as host:
        rows = CSR(torch.tensor([0, 2, 3]).to(DEVICE), torch.tensor([0, 1, 1]).to(DEVICE), 2)
        with host.watched() as reads:
            rows.select(torch.tensor([1, 0]).to(DEVICE))
            EpochBatches(torch.arange(4, device=DEVICE), total=4, batch_size=2, stream=RandomStream(1))
    select = next(read for read in reads if "repeat_interleave" in read.operation)
    assert select.callers == ("sparse.py select_entries", "sparse.py select")
    assert select.line.startswith("sparse.py:")
    assert str(select).startswith(
        f"diffmm_dist/{select.line} aten.repeat_interleave.Tensor, called by sparse.py select_"
    )
    assert any(read.within({"data/batches.py __init__"}) for read in reads)


@pytest.mark.parametrize(("k", "num_values"), [(1, 2), (3, 2), (3, 5), (30, 3), (40, 2)])
def test_ties_of_lists_are_broken_there_without_asking_whether_there_are_any(k, num_values):
    scores = torch.randint(num_values, (50, 40), generator=torch.Generator().manual_seed(k)).float()
    with HostReads() as host:
        there = scores.to(DEVICE)
        with host.watched() as reads:
            found = topk(there, k)
        found = [part.cpu() for part in found]
    assert not reads
    assert all(torch.equal(*pair) for pair in zip(found, topk(scores, k), strict=True))
