import pytest
import torch

from diffmm_dist.precision import add_product_, biased_product, matmul_precision, operand, product


@pytest.mark.parametrize(("precision", "name"), [("float32", "highest"), ("tf32", "high"), ("bfloat16", "medium")])
def test_the_precision_holds_inside_and_ends(precision, name):
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ValueError, match="x"), matmul_precision(precision):
        assert torch.get_float32_matmul_precision() == name
        raise ValueError("x")
    assert torch.get_float32_matmul_precision() == before


def test_products_agree_to_the_precision_asked_for():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(256, 512, generator=generator), torch.randn(512, 256, generator=generator)
    exact = left.double() @ right.double()
    for precision, tolerance in (("float32", 1e-5), ("tf32", 1e-2), ("bfloat16", 2e-2)):
        with matmul_precision(precision):
            error = ((left @ right) - exact).norm() / exact.norm()
        assert error < tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("tf32", 1e-6), ("bfloat16", 1e-2)])
def test_products_of_operands_are_float32_and_as_exact_as_asked_for(precision, tolerance):
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(70, 300, generator=generator), torch.randn(300, 50, generator=generator)
    exact = left.double() @ right.double()
    with matmul_precision(precision):
        operands = operand(left), operand(right)
        room, total = torch.empty(70, 50), torch.ones(70, 50)
        results = (
            product(*operands),
            product(*operands, out=room),
            add_product_(total, *operands) - 1,
            (add_product_(torch.ones(70, 50), *operands, beta=3, alpha=2) - 3) / 2,
            biased_product(torch.arange(50.0), *operands) - torch.arange(50.0),
        )
    assert room is results[1]
    for result in results:
        assert result.dtype == torch.float32
        assert (result - exact).norm() / exact.norm() < tolerance


def test_float32_operands_are_the_tensors_themselves():
    values = torch.ones(3, 3)
    assert operand(values) is values
