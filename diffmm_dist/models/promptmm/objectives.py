"""What PromptMM minimises: the teacher's objective and the student's (equations in README.md).

Shape suffixes: B own users of the batch, C = 1 + K candidates of a list, the positive first, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmm_dist.graph.propagate import Rows
from diffmm_dist.losses import distillation
from diffmm_dist.losses.ranking import bpr_loss
from diffmm_dist.losses.regularization import squared_norm
from diffmm_dist.models.base import Optimization
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.models.promptmm.layers import Dropout
from diffmm_dist.models.promptmm.teacher import PromptTeacher, Views
from diffmm_dist.parallel.halo import extended


@dataclass(frozen=True)
class TeacherLosses:
    """How the teacher is trained.

    Attributes:
        prompt_bpr_weight: of BPR of the prompt.
        modal_bpr_weight: of BPR of each modality's embeddings.
        modal_l2_weight: of their squared norm.
        weight_decay: AdamW's.
    """

    prompt_bpr_weight: float
    modal_bpr_weight: float
    modal_l2_weight: float
    weight_decay: float


@dataclass(frozen=True)
class StudentLosses:
    """How the student is trained.

    Attributes:
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        bpr_weight: of its own BPR.
        pair_weight: of pairs.
        list_weight: of lists.
        embedding_weight: of embeddings.
        embedding_power: gamma.
        views: ``modal`` or ``final`` ones of the teacher are followed.
        target_weight: alpha.
        others_weight: beta.
        reweighted: whether the others count by 1 - p_1^T.
        temperature: of both lists.
        teacher_temperature: what the teacher's scores are divided by besides.
    """

    learning_rate: float
    weight_decay: float
    bpr_weight: float
    pair_weight: float
    list_weight: float
    embedding_weight: float
    embedding_power: float
    views: str
    target_weight: float
    others_weight: float
    reweighted: bool
    temperature: float
    teacher_temperature: float


def _read(batch: RankingBatch, tables: Sequence[Tensor]) -> list[Tensor]:
    """Return tables of own items with the rows of others' items that the batch reads behind them, in one exchange."""
    if batch.shard.world.size == 1:
        return list(tables)
    return list(extended(torch.cat(list(tables), dim=1), batch.item_halo).split([t.shape[1] for t in tables], dim=1))


def _rows_l2(user_BD: Tensor, pos_BD: Tensor, neg_BD: Tensor, *, divisor: int) -> Tensor:
    """Return (|e_u|^2 + |e_p|^2 + |e_n|^2) / (2 B) of the batch's rows."""
    return squared_norm(user_BD, pos_BD, neg_BD) / (2 * divisor)


def teacher_losses(
    teacher: PromptTeacher,
    batch: RankingBatch,
    settings: TeacherLosses,
    optimization: Optimization,
    *,
    dropout: Dropout | None,
) -> dict[str, Tensor]:
    """Return this worker's shares of the weighted terms of the teacher's objective (README.md, "teach").

    BPR of the prompt takes p_u . (p_p - p_n) from the difference of the tokens: the bias of the items' affine map
    cancels in it, and so does its gradient, exactly.
    """
    views, size = teacher(dropout), batch.size
    names = list(views.modal)
    tables = [views.final[1], teacher.item_tokens, *(views.modal[name][1] for name in names)]
    items, tokens, *modal_items = _read(batch, tables)
    users, pos, neg = batch.user_rows, batch.pos_items, batch.neg_items
    rows = [views.final[0].index_select(0, users), items.index_select(0, pos), items.index_select(0, neg)]
    prompted = teacher.prompt_user(teacher.user_tokens.index_select(0, users))
    between = (tokens.index_select(0, pos) - tokens.index_select(0, neg)) @ teacher.prompt_item.weight.T
    terms = {
        "bpr": bpr_loss(rows[0], rows[1], rows[2], divisor=size),
        "l2": optimization.l2_weight * _rows_l2(*rows, divisor=size),
        "prompt": settings.prompt_bpr_weight * bpr_loss(prompted, between, torch.zeros_like(between), divisor=size),
    }
    for name, of_items in zip(names, modal_items, strict=True):
        of_users = views.modal[name][0].index_select(0, users)
        bpr = bpr_loss(of_users, of_items.index_select(0, pos), of_items.index_select(0, neg), divisor=size)
        terms[f"bpr_{name}"] = settings.modal_bpr_weight * bpr
    modal = [table for sides in views.modal.values() for table in sides]
    terms["modal_l2"] = settings.modal_l2_weight / 2 * squared_norm(*modal) / batch.shard.num_items
    return terms


def _scores(users_BD: Tensor, item_rows: Tensor, items_BC: Tensor) -> Tensor:
    """Return e_u . e_i of some items of each user, (B, C)."""
    rows_BCD = item_rows.index_select(0, items_BC.reshape(-1)).view(*items_BC.shape, -1)
    return torch.bmm(rows_BCD, users_BD[:, :, None])[:, :, 0]


def student_losses(
    final: Rows,
    views: Views,
    batch: RankingBatch,
    settings: StudentLosses,
    *,
    l2_weight: float,
    released: bool,
    item_map: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return this worker's shares of the weighted terms of the student's objective (README.md, "distill").

    Args:
        final: the student's final embeddings of own users and own items.
        views: the teacher's; gradients go where they are wanted.
        batch: with the list's items behind the positive as ``further_items``.
        settings: the terms.
        l2_weight: of the batch's rows.
        released: the released program's terms.
        item_map: from the width of the teacher's item embeddings to the student's, where they differ.
    """
    followed = views.modal if settings.views == "modal" else {"final": views.final}
    looked_at = {**followed, "final": views.final} if settings.pair_weight else followed
    student_items, *rows = _read(batch, [final[1], *(items for _, items in looked_at.values())])
    local_items = dict(zip(looked_at, rows, strict=True))
    users, pos, neg = (
        final[0].index_select(0, batch.user_rows),
        student_items.index_select(0, batch.pos_items),
        student_items.index_select(0, batch.neg_items),
    )
    terms = {
        "bpr": settings.bpr_weight * bpr_loss(users, pos, neg, divisor=batch.size),
        "l2": l2_weight * _rows_l2(users, pos, neg, divisor=batch.size),
    }
    if settings.pair_weight:
        taught = views.final[0].index_select(0, batch.user_rows)
        margins = _margins(users, student_items, batch), _margins(taught, local_items["final"], batch)
        terms["pair"] = settings.pair_weight * _pair(*margins, batch, released=released)
    if settings.list_weight:
        items_BC = torch.cat([batch.pos_items[:, None], batch.further_items], dim=1)
        ours = _scores(users, student_items, items_BC)
        for name, (of_users, _) in followed.items():
            theirs = _scores(of_users.index_select(0, batch.user_rows), local_items[name], items_BC)
            terms[f"list_{name}"] = settings.list_weight * _list(ours, theirs, batch, settings, released=released)
    if settings.embedding_weight:
        for name, (_, items) in followed.items():
            mapped = items if item_map is None else items @ item_map
            error = distillation.embedding_error(
                final[1], mapped, power=settings.embedding_power, divisor=batch.shard.num_items
            )
            terms[f"embedding_{name}"] = settings.embedding_weight * error
    return terms


def _margins(users_BD: Tensor, item_rows: Tensor, batch: RankingBatch) -> Tensor:
    """Return e_u . e_p - e_u . e_n, (B,)."""
    scores_B2 = _scores(users_BD, item_rows, torch.stack([batch.pos_items, batch.neg_items], dim=1))
    return scores_B2[:, 0] - scores_B2[:, 1]


def _pair(student_B: Tensor, teacher_B: Tensor, batch: RankingBatch, *, released: bool) -> Tensor:
    if released:
        values = distillation.released_pair(student_B), distillation.released_pair(teacher_B)
        return distillation.released_divergence(*values, divisor=batch.size)
    return distillation.pair_divergence(student_B, teacher_B, divisor=batch.size)


def _list(
    student_BC: Tensor, teacher_BC: Tensor, batch: RankingBatch, settings: StudentLosses, *, released: bool
) -> Tensor:
    if released:
        values = distillation.released_list(student_BC), distillation.released_list(teacher_BC)
        return distillation.released_divergence(*values, divisor=batch.size * student_BC.shape[1])
    return distillation.list_loss(
        student_BC,
        teacher_BC / settings.teacher_temperature,
        divisor=batch.size,
        target_weight=settings.target_weight,
        others_weight=settings.others_weight,
        reweighted=settings.reweighted,
        temperature=settings.temperature,
    )
