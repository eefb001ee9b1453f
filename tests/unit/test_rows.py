import pytest
import torch
import torch.nn.functional as F

from diffmm_dist.rows import normalize_rows, weighted_sum


def gradients(out, *inputs):
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return torch.autograd.grad((out * weights).sum() + out.pow(3).sum(), inputs)


def test_normalized_rows_and_their_gradients():
    rows = torch.randn(50, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[3] = 0
    rows.requires_grad_()
    ours, expected = normalize_rows(rows), F.normalize(rows, dim=1)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, rows), gradients(expected, rows))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_weighted_sums_and_their_gradients(count):
    generator = torch.Generator().manual_seed(count)
    weights = torch.randn(count, dtype=torch.float64, generator=generator).requires_grad_()
    tables = [torch.randn(7, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(count)]
    ours, expected = weighted_sum(weights, tables), torch.einsum("k,kij->ij", weights, torch.stack(tables))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, weights, *tables), gradients(expected, weights, *tables))


def test_a_weighted_sum_on_a_base():
    generator = torch.Generator().manual_seed(9)
    base, *tables = (torch.randn(7, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))
    weights = torch.randn(2, dtype=torch.float64, generator=generator).requires_grad_()
    ours, expected = weighted_sum(weights, tables, base=base), base + weights[0] * tables[0] + weights[1] * tables[1]
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, base, weights, *tables), gradients(expected, base, weights, *tables))


def test_a_table_without_gradient_gets_none():
    weights, tables = torch.ones(2, requires_grad=True), [torch.ones(3, 2), torch.ones(3, 2, requires_grad=True)]
    weighted_sum(weights, tables).sum().backward()
    assert tables[0].grad is None
    assert tables[1].grad is not None
