"""Top-K lists with a fixed order among ties: the higher score first, then the lower id.

Shape suffixes: B rows, C columns, K list length.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_GROUP = 16  # columns of which only the largest score takes part in the first choice


def topk(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest scores of each row and their columns, both (B, min(k, C)); ties by the lower column."""
    k = min(k, scores_BC.shape[1])
    if k == 1:
        values, columns = scores_BC.max(dim=1, keepdim=True)  # documented to return the first of equal maxima
        return values, columns
    if k == scores_BC.shape[1]:
        return _order(*_by_column(*torch.topk(scores_BC, k, dim=1)))
    values, columns = _largest(scores_BC, k + 1)  # one more shows where the last place is tied
    tied_B = values[:, k - 1] == values[:, k]
    return _order(*_by_column(*_without_ties(scores_BC, values[:, :k], columns[:, :k], tied_B)))


def _largest(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest scores of each row and their columns, falling, any of those that tie for the last place.

    Of many columns, those of the k groups with the largest maxima hold them: a pass for the maxima takes far less
    time than a selection among all columns.
    """
    length = scores_BC.shape[1] // _GROUP
    if 2 * (length + _GROUP * (k + 1)) > scores_BC.shape[1]:
        return torch.topk(scores_BC, k, dim=1)
    grouped_BGL = scores_BC[:, : _GROUP * length].unflatten(1, (_GROUP, length))
    groups_B1K = torch.topk(grouped_BGL.amax(dim=1), k, dim=1, sorted=False).indices[:, None]
    firsts_G1 = torch.arange(0, _GROUP * length, length, device=scores_BC.device)[:, None]
    rest = torch.arange(_GROUP * length, scores_BC.shape[1], device=scores_BC.device).expand(scores_BC.shape[0], -1)
    candidates = torch.cat([(groups_B1K + firsts_G1).flatten(1), rest], dim=1)
    values, places = torch.topk(scores_BC.gather(1, candidates), k, dim=1)
    return values, candidates.gather(1, places)


def merge_topk(blocks: Iterable[tuple[int, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Return ``topk`` of a matrix that comes as blocks of columns, in order, holding one block at a time.

    Args:
        blocks: (first column, scores (B, columns of the block)).
        k: list length.
    """
    best: tuple[Tensor, Tensor] | None = None
    for first_column, scores in blocks:
        values, columns = topk(scores, k)
        columns = columns + first_column
        if best is not None:
            # Earlier blocks have the lower columns and stand first, so a stable sort keeps the order of ties.
            values, columns = torch.cat([best[0], values], dim=1), torch.cat([best[1], columns], dim=1)
            values, columns = _order(values, columns)
        best = values[:, :k], columns[:, :k]
    assert best is not None
    return best


def best_of(scores_BC: Tensor, ids_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of each row's candidates, which come in any order, and their ids; ties by the lower id."""
    values, ids = _order(*_by_column(scores_BC, ids_BC))
    return values[:, :k], ids[:, :k]


def _without_ties(scores_BC: Tensor, values_BK: Tensor, columns_BK: Tensor, tied_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return lists, those that are tied with what they leave out replaced by what ``_lowest_of_last`` chooses.

    Few rows are tied, if any. A GPU chooses for all of them, so that its host need not wait to hear of which.
    """
    if scores_BC.device.type == "cpu":
        tied = torch.nonzero(tied_B).flatten()
        if tied.numel():
            values_BK[tied], columns_BK[tied] = _lowest_of_last(scores_BC[tied], values_BK[tied])
        return values_BK, columns_BK
    chosen = _lowest_of_last(scores_BC, values_BK)
    values, columns = (
        torch.where(tied_B[:, None], new_BK, old_BK)
        for new_BK, old_BK in zip(chosen, (values_BK, columns_BK), strict=True)
    )
    return values, columns


def _lowest_of_last(scores_BC: Tensor, values_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the K largest scores and their columns, in column order, the lowest of those that tie for the last."""
    last_B1 = values_BK.amin(dim=1, keepdim=True)
    above, tied = scores_BC > last_B1, scores_BC == last_B1
    room = values_BK.shape[1] - above.sum(dim=1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(dim=1) <= room))
    # As many in each row; where scores are NaN there are fewer, and what stands for them must be a column.
    columns_BK = torch.nonzero_static(chosen, size=values_BK.numel())[:, 1].view(values_BK.shape).clamp_(min=0)
    return scores_BC.gather(1, columns_BK), columns_BK


def _by_column(values_BK: Tensor, columns_BK: Tensor) -> tuple[Tensor, Tensor]:
    columns, order = columns_BK.sort(dim=1)
    return values_BK.gather(1, order), columns


def _order(values_BK: Tensor, columns_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Sort lists by falling value, keeping the present order of equal ones."""
    values, order = values_BK.sort(dim=1, descending=True, stable=True)
    return values, columns_BK.gather(1, order)
