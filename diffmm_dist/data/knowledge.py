"""A knowledge graph: facts (head, relation, tail) about items and further entities, as one worker sees it.

Nodes are the items and, behind them, the entities that are no items: their ids go through both. Every fact also counts
the other way round, as one of the inverse relation (models/diffkg/README.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.shard import AllRows, Shard, joined
from diffmm_dist.sparse import CSR
from diffmm_dist.words import shortened

TABLE = "knowledge"
ENTITIES, RELATIONS = "entities", "relations"
HEAD, RELATION, TAIL = "head", "relation", "tail"


def columns_of(*, has_entities: bool) -> dict[str, tuple[str, ...]]:
    """Return the columns of the table of facts, each with the axes that it numbers."""
    nodes = ("items", ENTITIES) if has_entities else ("items",)
    return {HEAD: nodes, RELATION: (RELATIONS,), TAIL: nodes}


@dataclass(frozen=True, eq=False)
class Facts:
    """The facts whose heads are a worker's own nodes, at most one for each pair of a head and a tail.

    Attributes:
        pairs: tails of each own node (own nodes x node ids).
        relations: of each entry of ``pairs``, int64 (E,).
    """

    pairs: CSR
    relations: Tensor

    def filter(self, kept: Tensor) -> "Facts":
        """Return those where ``kept``, bool (E,), is true."""
        return Facts(self.pairs.filter(kept), self.relations[kept])

    def relation_of(self, heads: Tensor, tails: Tensor) -> Tensor:
        """Return the relation of each pair of an own node, by local number, and a node id; -1 where there is none."""
        found = torch.full_like(heads, -1)
        known = self.pairs.contains(heads, tails)
        keys = heads[known] * self.pairs.num_columns + tails[known]
        found[known] = self.relations[torch.searchsorted(self.pairs.keys, keys)]
        return found


@dataclass(frozen=True, eq=False)
class Knowledge:
    """One worker's slice of a knowledge graph.

    Attributes:
        nodes: items and further entities as one axis; a worker has its items first.
        facts: of the own nodes, both ways.
        num_relations: without inverse ones; the inverse of relation r is r + num_relations.
        by_row: id of each node in the order of the dataset's rows: items, then entities, int64 (N_e,).
    """

    nodes: AllRows
    facts: Facts
    num_relations: int
    by_row: Tensor

    @cached_property
    def own_ids(self) -> Tensor:
        """Id of each own node, int64."""
        return self.nodes.own.ids

    @property
    def num_nodes(self) -> int:
        """N_e, of all workers."""
        return self.nodes.ownership.total

    def capped(self, most: int | None, stream: RandomStream) -> Facts:
        """Return the facts, of each head at most ``most``, drawn uniformly; None for all.

        Which ones depends on the stream and on the ids of head and tail alone.
        """
        facts = self.facts
        if most is None:
            return facts
        pairs = facts.pairs
        draws = stream.uniform(self.own_ids[pairs.row_ids] * self.num_nodes + pairs.indices)
        order = torch.argsort(draws, stable=True)
        order = order[torch.argsort(pairs.row_ids[order], stable=True)]  # by head, and by draw inside each
        places = torch.empty_like(order)
        places[order] = torch.arange(order.numel(), device=order.device)
        return facts.filter(places - pairs.indptr[pairs.row_ids] < most)


def check_knowledge(dataset: Dataset, *, of_model: str = "") -> None:
    """Raise a ``UserError`` if a dataset holds no knowledge graph, which a model needs."""
    if TABLE not in dataset.manifest.tables:
        needed = f", which model.name={of_model} needs" if of_model else ""
        raise UserError(
            f"dataset {dataset.uri} holds no knowledge graph{needed}; prepare it with kg.txt beside the matrices, or "
            "with `prepare tables --knowledge`"
        )
    columns = dataset.manifest.tables[TABLE].columns
    if columns not in (columns_of(has_entities=True), columns_of(has_entities=False)):
        raise UserError(
            f"the table {TABLE} of dataset {dataset.uri} does not name heads, relations and tails; prepare it again"
        )


def shard_knowledge(dataset: Dataset, shard: Shard) -> Knowledge:
    """Read the facts of a worker's own nodes: every worker streams the whole table and keeps what is its own.

    Of the facts of a pair (head, tail) one counts, as published: that with the smallest relation, inverse ones being
    larger than all others.

    Raises:
        UserError: there is no knowledge graph, or a file of it is damaged.
    """
    check_knowledge(dataset)
    axes = [shard.all_items]
    if ENTITIES in shard.further:
        axes.append(shard.further[ENTITIES])
    columns = ([torch.from_numpy(column.copy()) for column in rows] for rows in dataset.stream_table(TABLE))
    return knowledge_of(columns, axes, num_relations=dataset.manifest.counts[RELATIONS])


def knowledge_of(triples: Iterable[Sequence[Tensor]], axes: Sequence[AllRows], *, num_relations: int) -> Knowledge:
    """Return a worker's slice of the facts that come as heads, relations and tails, some at a time.

    Args:
        triples: int64 (n,) each, nodes by their rows in the dataset: items, then further entities.
        axes: the items, and the further entities if there are any.
        num_relations: without inverse ones.
    """
    nodes, num_items = joined(axes), axes[0].ownership.total
    by_row = torch.cat([axes[0].ids, *(axis.ids + num_items for axis in axes[1:])])
    own, local = _local_numbers(nodes)
    heads, tails, relations = ([by_row.new_empty(0)] for _ in range(3))
    for columns in triples:
        head, relation, tail = (column.to(by_row.device) for column in columns)
        ends = by_row[head], by_row[tail]
        for (one, other), shift in ((ends, 0), (ends[::-1], num_relations)):
            ours = own[one]
            heads.append(local[one[ours]])
            tails.append(other[ours])
            relations.append(relation[ours] + shift)
    facts = _one_of_each_pair(torch.cat(heads), torch.cat(tails), torch.cat(relations), nodes)
    return Knowledge(nodes, facts, num_relations, by_row)


def _local_numbers(nodes: AllRows) -> tuple[Tensor, Tensor]:
    """Return for each node id whether it is an own one, and its local number."""
    first, stop = nodes.ownership.own
    return (nodes.rows >= first) & (nodes.rows < stop), nodes.rows - first


def _one_of_each_pair(heads: Tensor, tails: Tensor, relations: Tensor, nodes: AllRows) -> Facts:
    keys = heads * nodes.ownership.total + tails
    order = torch.argsort(relations, stable=True)
    order = order[torch.argsort(keys[order], stable=True)]
    sorted_keys = keys[order]
    first = torch.ones_like(sorted_keys, dtype=torch.bool)
    first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    kept = order[first]
    num_rows = nodes.ownership.own.size
    pairs = CSR.from_pairs(heads[kept], tails[kept], num_rows=num_rows, num_columns=nodes.ownership.total)
    return Facts(pairs, relations[kept])


class Summary(NamedTuple):
    """What a knowledge graph holds.

    Attributes:
        num_entities: N_e, items among them.
        num_lone: entities without a fact.
        num_relations: without inverse ones.
        num_facts: facts.
        items_with_facts: items that are head or tail of one.
        busiest: the relations with most facts, and how many those are.
    """

    num_entities: int
    num_lone: int
    num_relations: int
    num_facts: int
    items_with_facts: int
    busiest: list[tuple[str, int]]


_SHOWN = 3


def summary(dataset: Dataset) -> Summary:
    """Return what a dataset's knowledge graph holds, reading it once.

    Raises:
        UserError: there is none, or a file of it is damaged.
    """
    check_knowledge(dataset)
    counts = dataset.manifest.counts
    num_entities = dataset.num_items + counts.get(ENTITIES, 0)
    of_relation = torch.zeros(counts[RELATIONS], dtype=torch.int64)
    has_fact = torch.zeros(num_entities, dtype=torch.bool)
    for columns in dataset.stream_table(TABLE):
        head, relation, tail = (torch.from_numpy(column.copy()) for column in columns)
        of_relation += torch.bincount(relation, minlength=len(of_relation))
        has_fact[head] = has_fact[tail] = True
    order = torch.argsort(of_relation, descending=True, stable=True)[:_SHOWN].tolist()
    names = dataset.original_ids(RELATIONS)
    return Summary(
        num_entities,
        int((~has_fact).sum()),
        counts[RELATIONS],
        int(of_relation.sum()),
        int(has_fact[: dataset.num_items].sum()),
        [(shortened(str(names[row].as_py())), int(of_relation[row])) for row in order],
    )
