"""Pairwise ranking loss."""

import torch.nn.functional as F
from torch import Tensor


def bpr_loss(user_rows: Tensor, pos_rows: Tensor, neg_rows: Tensor, *, divisor: int) -> Tensor:
    """Return -(1 / divisor) sum log sigmoid(h_u . h_pos - h_u . h_neg) (BPR; specification of DiffMM, section 7).

    Args:
        user_rows: (B, d).
        pos_rows: (B, d).
        neg_rows: (B, d).
        divisor: the nominal batch size; a short last batch is divided by it too, as published.
    """
    difference = (user_rows * (pos_rows - neg_rows)).sum(dim=1)
    return -F.logsigmoid(difference).sum() / divisor
