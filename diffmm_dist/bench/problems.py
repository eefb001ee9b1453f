"""Random problems of any size, the same every time."""

import torch
from torch import Tensor

from diffmm_dist.data.knowledge import Knowledge, knowledge_of
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.shard import AllRows
from diffmm_dist.sparse import CSR

_NUM_RELATIONS = 16
STREAM = RandomStream.of("bench")
_SKEW = 3  # node number n u^3 with u uniform: how often a node is drawn falls as its rank^(-2/3)


def normal_rows(name: str, num_rows: int, width: int, device: torch.device) -> Tensor:
    """Return standard normal values, float32 (num_rows, width)."""
    return STREAM.child(name).normal_rows(torch.arange(num_rows, device=device), width)


def random_rows(num_rows: int, num_columns: int, per_row: int, device: torch.device) -> CSR:
    """Return rows of ``per_row`` random columns each, or a few less where one is drawn twice."""
    rows = torch.arange(num_rows * per_row, device=device) // per_row
    columns = STREAM.child("rows").integers(torch.arange(rows.numel(), device=device), num_columns)
    return CSR.from_pairs(rows, columns, num_rows=num_rows, num_columns=num_columns)


def power_law_rows(num_rows: int, num_columns: int, num_draws: int, device: torch.device) -> CSR:
    """Return a graph whose degrees follow a power law on both sides; an edge drawn again counts once."""
    draws = torch.arange(num_draws, device=device)
    rows, columns = (_power_law(side, draws, count) for side, count in (("users", num_rows), ("items", num_columns)))
    return CSR.from_pairs(rows, columns, num_rows=num_rows, num_columns=num_columns)


def power_law_knowledge(items: AllRows, entities: AllRows, num_draws: int) -> Knowledge:
    """Return facts between items and entities, whose degrees follow a power law; a pair drawn again counts once."""
    draws = torch.arange(num_draws, device=items.ids.device)
    heads = _power_law("heads", draws, items.ownership.total)
    tails = _power_law("tails", draws, entities.ownership.total) + items.ownership.total
    relations = STREAM.child("relations").integers(draws, _NUM_RELATIONS)
    return knowledge_of([(heads, relations, tails)], [items, entities], num_relations=_NUM_RELATIONS)


def _power_law(side: str, draws: Tensor, count: int) -> Tensor:
    ranks = (STREAM.child(side).uniform(draws).pow(_SKEW) * count).to(torch.int64)
    return STREAM.child(side, "place").permute(ranks, count)
