"""What a student learns from its teacher: of pairs, of lists and of embeddings (PromptMM, Wei et al., WWW 2024).

The paper's formulas are not all well defined; models/promptmm/README.md says which reading this is. Functions whose
names begin with ``released`` are what the released program computes instead.

Every function returns this worker's share of a mean over the batch, or over the items: divided by the global count.
Gradients go to the student and, where they are wanted, to the teacher's values too.

Shape suffixes: B own users of the batch, C = 1 + K candidates of a list, the positive first, I own items, D embedding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmm_dist.rows import normalize_rows

_ADDED_TO_PROBABILITY = 1e-8  # under the released program's logarithm


def pair_divergence(student_B: Tensor, teacher_B: Tensor, *, divisor: int) -> Tensor:
    """Return the mean KL(Bernoulli(sigmoid(y^T)) || Bernoulli(sigmoid(y^S))) of margins y = e_u . e_p - e_u . e_n.

    Args:
        student_B: y^S.
        teacher_B: y^T.
        divisor: users of the batch, of all workers.
    """
    chosen = torch.sigmoid(teacher_B) * (F.logsigmoid(teacher_B) - F.logsigmoid(student_B))
    other = torch.sigmoid(-teacher_B) * (F.logsigmoid(-teacher_B) - F.logsigmoid(-student_B))
    return (chosen + other).sum() / divisor


class ListDivergence(NamedTuple):
    """Both parts of the divergence of two lists, of each user.

    Attributes:
        target_B: KL(b^T || b^S), b = (p_1, 1 - p_1).
        others_B: KL(q^T || q^S), q the distribution over the candidates but the first.
        weight_B: 1 - p_1^T; target + weight * others is KL(p^T || p^S).
    """

    target_B: Tensor
    others_B: Tensor
    weight_B: Tensor


def list_divergence(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float = 1.0) -> ListDivergence:
    """Return the divergence of p^T = softmax(y^T / tau) and p^S = softmax(y^S / tau), disentangled.

    Args:
        student_BC: scores y^S of the candidates, the positive first.
        teacher_BC: y^T.
        temperature: tau.
    """
    (log_p_S, log_rest_S, log_q_S), (log_p_T, log_rest_T, log_q_T) = (
        _split_log_softmax(scores_BC / temperature) for scores_BC in (student_BC, teacher_BC)
    )
    rest_T = log_rest_T.exp()
    target_B = log_p_T.exp() * (log_p_T - log_p_S) + rest_T * (log_rest_T - log_rest_S)
    return ListDivergence(target_B, (log_q_T.exp() * (log_q_T - log_q_S)).sum(dim=1), rest_T)


def _split_log_softmax(scores_BC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p_1 (B,), log(1 - p_1) (B,) and log q (B, C - 1); finite however certain the softmax is."""
    rest_B = torch.logsumexp(scores_BC[:, 1:], dim=1)
    all_B = torch.logaddexp(scores_BC[:, 0], rest_B)
    return scores_BC[:, 0] - all_B, rest_B - all_B, scores_BC[:, 1:] - rest_B[:, None]


def list_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    divisor: int,
    target_weight: float = 1.0,
    others_weight: float = 1.0,
    reweighted: bool = True,
    temperature: float = 1.0,
) -> Tensor:
    """Return the mean of alpha KL(b^T || b^S) + beta w KL(q^T || q^S), w = 1 - p_1^T or 1.

    With alpha = beta = 1 and w = 1 - p_1^T it is KL(p^T || p^S) over the list.

    Args:
        student_BC: scores of the candidates, the positive first.
        teacher_BC: the teacher's.
        divisor: users of the batch, of all workers.
        target_weight: alpha.
        others_weight: beta.
        reweighted: w is 1 - p_1^T.
        temperature: tau of both.
    """
    found = list_divergence(student_BC, teacher_BC, temperature=temperature)
    others_B = found.weight_B * found.others_B if reweighted else found.others_B
    return (target_weight * found.target_B + others_weight * others_B).sum() / divisor


def embedding_error(student_ID: Tensor, teacher_ID: Tensor, *, power: float, divisor: int) -> Tensor:
    """Return the mean over all items of (1 - cos(f_i, e_i))^gamma.

    Args:
        student_ID: e, (I, d).
        teacher_ID: f, (I, d); a row of zeros has cosine 0 with every other.
        power: gamma.
        divisor: items, of all workers.
    """
    cosine_I = (normalize_rows(student_ID) * normalize_rows(teacher_ID)).sum(dim=1)
    return (1 - cosine_I).clamp(min=0).pow(power).sum() / divisor


def released_divergence(student: Tensor, teacher: Tensor, *, divisor: int) -> Tensor:
    """Return the sum of y^T (ln y^T - y^S), 0 where y^T is 0, over a divisor: KL of what are no distributions.

    Args:
        student: y^S, of any shape.
        teacher: y^T, at least 0.
        divisor: all elements, of all workers.
    """
    return (torch.xlogy(teacher, teacher) - teacher * student).sum() / divisor


def released_pair(margin_B: Tensor) -> Tensor:
    """Return -log sigmoid(y) of margins y, which the released program takes for a log-probability."""
    return -F.logsigmoid(margin_B)


def released_list(scores_BC: Tensor) -> Tensor:
    """Return -ln(softmax(y) + 1e-8) of a list's scores y, at least 0, likewise."""
    return -(torch.softmax(scores_BC, dim=1) + _ADDED_TO_PROBABILITY).log().clamp(max=0)
