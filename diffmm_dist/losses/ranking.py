"""Pairwise ranking loss."""

import torch.nn.functional as F
from torch import Tensor


def bpr_loss(user_emb_BD: Tensor, pos_emb_BD: Tensor, neg_emb_BD: Tensor, *, divisor: int) -> Tensor:
    """Return -(1 / divisor) sum log sigmoid(h_u . h_pos - h_u . h_neg) (BPR, Rendle et al., UAI 2009).

    Args:
        user_emb_BD: users, (B, d).
        pos_emb_BD: an item that each has interacted with, (B, d).
        neg_emb_BD: an item that each has not, (B, d).
        divisor: the nominal batch size; a short last batch is divided by it too, as published.
    """
    difference = (user_emb_BD * (pos_emb_BD - neg_emb_BD)).sum(dim=1)
    return -F.logsigmoid(difference).sum() / divisor
