import pytest
import torch

from diffmm_dist.train.precision import matmul_precision


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
