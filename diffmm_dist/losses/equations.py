"""The losses as in the papers, on dense tables; contrastive.py, ranking.py and the others are the fast forms.

Shape suffixes: B batch, N nodes, D embedding.
"""

import torch
from torch import Tensor


def unit(rows_ND: Tensor) -> Tensor:
    """Return the rows divided by their norms, (N, D); a row of zeros stays one."""
    norm_N1: Tensor = torch.linalg.vector_norm(rows_ND, dim=1, keepdim=True)
    return rows_ND / norm_N1.clamp(min=1e-12)


def info_nce(anchor_ND: Tensor, target_ND: Tensor, nodes_B: Tensor, *, temperature: float) -> Tensor:
    """Return mean_n -log(exp(cos(x_n, y_n) / tau) / sum_j exp(cos(x_n, y_j) / tau)), () (InfoNCE, van den Oord, 2018).

    The mean is over the batch, repeats included, the sum over all nodes.
    """
    logits_BN = unit(anchor_ND)[nodes_B] @ unit(target_ND).T / temperature
    return -torch.log_softmax(logits_BN, dim=1).gather(1, nodes_B[:, None]).mean()


def batch_info_nce(anchor_ND: Tensor, target_ND: Tensor, nodes_B: Tensor, *, temperature: float) -> Tensor:
    """Return mean_r -log(exp(cos(x_r, y_r) / tau) / sum_{c != r} exp(cos(x_r, y_c) / tau)), () (AdaGCL, as released).

    Mean and sum are over the rows of the batch, repeats of a node included.
    """
    logits_BB = unit(anchor_ND)[nodes_B] @ unit(target_ND)[nodes_B].T / temperature
    others_B = logits_BB.exp().sum(dim=1) - logits_BB.diagonal().exp()
    return (others_B.log() - logits_BB.diagonal()).mean()


def bpr(user_BD: Tensor, pos_BD: Tensor, neg_BD: Tensor, *, divisor: int) -> Tensor:
    """Return -(1 / divisor) sum log sigmoid(u . pos - u . neg), () (Rendle et al., UAI 2009, "BPR-Opt")."""
    difference_B = (user_BD * pos_BD).sum(dim=1) - (user_BD * neg_BD).sum(dim=1)
    return -torch.sigmoid(difference_B).log().sum() / divisor


def l2(*tables: Tensor) -> Tensor:
    """Return sum |E|^2 over the tables, ()."""
    return torch.stack([table.square().sum() for table in tables]).sum()


def bernoulli_divergence(teacher_B: Tensor, student_B: Tensor) -> Tensor:
    """Return the mean KL(Bernoulli(sigmoid(y^T)) || Bernoulli(sigmoid(y^S))), () (PromptMM, pairs)."""
    found = []
    for chosen_T, chosen_S in zip(torch.sigmoid(teacher_B), torch.sigmoid(student_B), strict=True):
        p, q = torch.stack([chosen_T, 1 - chosen_T]), torch.stack([chosen_S, 1 - chosen_S])
        found.append((p * (p / q).log()).sum())
    return torch.stack(found).mean()


def divergence_of_lists(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """Return the mean KL(softmax(y^T) || softmax(y^S)), () (PromptMM, lists, re-weighted: both parts together)."""
    p, q = torch.softmax(teacher_BC, dim=1), torch.softmax(student_BC, dim=1)
    return (p * (p / q).log()).sum(dim=1).mean()


def scaled_cosine_error(teacher_ID: Tensor, student_ID: Tensor, *, power: float) -> Tensor:
    """Return the mean (1 - cos(f_i, e_i))^gamma, () (PromptMM, embeddings)."""
    return (1 - (unit(teacher_ID) * unit(student_ID)).sum(dim=1)).pow(power).mean()
