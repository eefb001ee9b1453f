"""What the losses need of the denoiser's output f = a W^T + b at own items, with or without computing f.

Shape suffixes: B rows, C own items, H hidden, D embedding. a is the last hidden layer (B x H), W the output weights
(C x H), b the output bias (C), x the clean rows (B x C, stored entries only), G the modal items (C x D).
"""

from typing import Any, Literal

import torch
from torch import Tensor

from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.precision import add_product_, operand, product
from diffmm_dist.sparse import CSR

Products = Literal["auto", "direct", "gram"]
_GRAM_BLOCK = 256  # columns of the symmetric product computed at a time
_DIRECT_ELEMENTS = 1 << 27  # B x C values that the direct way may hold: 512 MiB


def error_and_signal(
    denoiser: Denoiser, hidden_BH: Tensor, rows: CSR, modal_items_CD: Tensor, *, products: Products = "auto"
) -> tuple[Tensor, Tensor]:
    """Return own items' shares of |f - x|^2 (B,) and of f G (B, D), differentiable but for x and G.

    Args:
        denoiser: has the weights.
        hidden_BH: a.
        rows: x.
        modal_items_CD: G, without gradient.
        products: ``direct`` forms f; ``gram`` does not; ``auto`` takes the one with fewer operations, and ``gram``
            where f would take more than 512 MiB.
    """
    if products == "auto":
        products = "gram" if gram_pays(rows.num_rows, rows.num_columns, hidden_BH.shape[1]) else "direct"
    function = {"direct": _Direct, "gram": _Gram}[products]
    weight, bias = denoiser.output_weight, denoiser.output_bias
    error, signal = function.apply(hidden_BH, weight, bias, rows, modal_items_CD)
    return error, signal


def gram_pays(num_rows: int, num_items: int, width: int) -> bool:
    """Return whether 4 C H^2 operations are fewer than 6 B C H, or f too large to be held."""
    return 2 * width < 3 * num_rows or num_rows * num_items > _DIRECT_ELEMENTS


def gram(weight_CH: Tensor) -> Tensor:
    """Return W^T W (H, H), of which only the blocks on and above the diagonal are computed."""
    width = weight_CH.shape[1]
    product_HH = weight_CH.new_empty(width, width)
    for start in range(0, width, _GRAM_BLOCK):
        block, later = slice(start, start + _GRAM_BLOCK), slice(start + _GRAM_BLOCK, width)
        torch.mm(weight_CH[:, block].T, weight_CH[:, start:], out=product_HH[block, start:])
        product_HH[later, block] = product_HH[block, later].T
    return product_HH


class _Direct(torch.autograd.Function):
    """Forms the residual r = f - x once; then |f - x|^2 = |r|^2 and f G = r G + x G."""

    @staticmethod
    def forward(
        ctx: Any, hidden_BH: Tensor, weight_CH: Tensor, bias_C: Tensor, rows: CSR, modal_items_CD: Tensor
    ) -> tuple[Tensor, Tensor]:
        residual_BC = torch.addmm(bias_C, hidden_BH, weight_CH.T)
        ones = residual_BC.new_ones(rows.num_entries)
        residual_BC.index_put_((rows.row_ids, rows.indices), -ones, accumulate=True)
        ctx.save_for_backward(hidden_BH, weight_CH, residual_BC, modal_items_CD)
        error_B = torch.linalg.vector_norm(residual_BC, dim=1).square()
        return error_B, residual_BC @ modal_items_CD + rows.matmul(modal_items_CD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        error_grad_B, signal_grad_BD = gradients
        hidden_BH, weight_CH, residual_BC, modal_items_CD = ctx.saved_tensors
        grad_BC = residual_BC * (2 * error_grad_B)[:, None]
        grad_BC.addmm_(signal_grad_BD, modal_items_CD.T)
        return grad_BC @ weight_CH, grad_BC.T @ hidden_BH, grad_BC.sum(dim=0), None, None


class _Gram(torch.autograd.Function):
    """Goes through K = W^T W (H x H) and never forms a B x C array.

    |f - x|^2 = a K a' + 2 a (b W)' + b b' - 2 sum_{i in x} (a w_i' + b_i) + |x|, and f G = a (W^T G) + b G.
    With g the gradients of the errors, S those of f G, and A' diag(2 g) A = Q (H x H):
    dW = W Q + b m' - x' (2 g A) + G S' A and db = W m + b sum(2 g) - x' (2 g) + G sum(S), where m = A' (2 g).
    b and G go side by side, [b G], since every product with W or of its size is a pass over memory.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_BH: Tensor, weight_CH: Tensor, bias_C: Tensor, rows: CSR, modal_items_CD: Tensor
    ) -> tuple[Tensor, Tensor]:
        bias_modal = torch.cat([bias_C[:, None], modal_items_CD], dim=1)
        rounded_BH, rounded_CH = operand(hidden_BH), operand(weight_CH)
        through_W = product(operand(bias_modal).T, rounded_CH)
        bias_H, modal_HD = through_W[0], through_W[1:].T
        # d|f - x|^2 / da = 2 (a K + b W - x W)
        linear_BH = bias_H - rows.matmul(weight_CH)
        slope_BH = linear_BH + product(rounded_BH, gram(rounded_CH))
        ctx.rows = rows
        ctx.save_for_backward(hidden_BH, rounded_BH, rounded_CH, bias_modal, slope_BH, modal_HD)
        linear_BH += slope_BH
        constant_B = rows.row_counts - 2 * rows.matmul(bias_C[:, None])[:, 0] + bias_C.dot(bias_C)
        error_B = (hidden_BH * linear_BH).sum(dim=1) + constant_B
        return error_B, torch.addmm(bias_C @ modal_items_CD, hidden_BH, modal_HD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        error_grad_B, signal_grad_BD = gradients
        hidden_BH, rounded_BH, rounded_CH, bias_modal, slope_BH, modal_HD = ctx.saved_tensors
        doubled_B1 = (2 * error_grad_B)[:, None]
        negative_BH = hidden_BH * -doubled_B1
        column_rows: CSR = ctx.rows.transpose()
        mean_H = -negative_BH.sum(dim=0)
        weight_grad_CH = column_rows.matmul(negative_BH)
        through_hidden = rounded_BH.T @ operand(negative_BH, like=rounded_BH)
        add_product_(weight_grad_CH, rounded_CH, through_hidden.neg_())
        weight_grad_CH.addmm_(bias_modal, torch.cat([mean_H[None], signal_grad_BD.T @ hidden_BH]))
        through_mean_C1 = product(rounded_CH, operand(mean_H[:, None], like=rounded_CH))
        bias_grad_C = (through_mean_C1 - column_rows.matmul(doubled_B1))[:, 0]
        bias_grad_C += bias_modal @ torch.cat([doubled_B1.sum()[None], signal_grad_BD.sum(dim=0)])
        hidden_grad_BH = torch.addmm(slope_BH * doubled_B1, signal_grad_BD, modal_HD.T)
        return hidden_grad_BH, weight_grad_CH, bias_grad_C, None, None
