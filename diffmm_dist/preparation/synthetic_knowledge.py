"""A knowledge graph for a synthetic dataset, whose facts carry the styles of items and so the users' tastes.

Every entity belongs to one style of one modality. A fact of an item says that it ``shares`` a modality's style with an
entity of that style, or merely ``mentions`` some entity, which says nothing; entities are ``part_of`` the first one of
their style. So items of a style have entities in common, which is what a model can learn from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist.data import knowledge
from diffmm_dist.data.writer import DatasetWriter

Ints = npt.NDArray[np.int64]
_HEADS_PER_CHUNK = 65_536
_OF_ITEMS = 0.8  # share of the facts whose heads are items
_MENTIONS = 0.2  # share of the facts of items that say nothing
_POPULAR = 2.0  # exponent with which the first entities of a style are preferred


@dataclass(frozen=True)
class KnowledgeSpec:
    """What to generate.

    Attributes:
        num_entities: entities that are no items.
        num_facts: about how many; those that come twice count once.
    """

    num_entities: int
    num_facts: int

    def mistakes(self) -> Iterator[str]:
        """Yield what is wrong with the sizes."""
        if not 1 <= self.num_entities < 2**31 - 1:
            yield f"--entities {self.num_entities} must be from 1 to {2**31 - 2:,}"
        if not 1 <= self.num_facts < 2**40:
            yield f"--facts {self.num_facts} must be at least 1 and below 2^40"

    def axes(self, groups: Sequence[str]) -> dict[str, int]:
        """Return the rows of the axes that the facts need."""
        return {knowledge.ENTITIES: self.num_entities, knowledge.RELATIONS: len(groups) + 2}


def write_knowledge(
    writer: DatasetWriter, spec: KnowledgeSpec, styles: Ints, groups: Sequence[str], random: np.random.Generator
) -> None:
    """Write facts about items of given styles.

    Args:
        writer: where to.
        spec: how many.
        styles: of each item in each group, (G, I).
        groups: their names.
        random: the generator.
    """
    entities = _Entities(spec.num_entities, len(groups), int(styles.max()) + 1)
    writer.begin_table(knowledge.TABLE, knowledge.columns_of(has_entities=True))
    num_items = styles.shape[1]
    of_items = max(1, int(spec.num_facts * _OF_ITEMS))
    of_entities = spec.num_facts - of_items
    for heads in _heads(num_items, of_items):
        relation, tail = _facts_of_items(styles[:, heads], entities, random)
        _write(writer, heads, relation, tail + num_items)
    for heads in _heads(spec.num_entities, of_entities):
        tail = entities.first_of(heads)
        elsewhere = (random.random(heads.size) < _MENTIONS) | (tail == heads)
        tail = np.where(elsewhere, random.integers(spec.num_entities, size=heads.size), tail)
        _write(writer, heads + num_items, np.full(heads.size, len(groups) + 1), tail + num_items)
    for start in range(0, spec.num_entities, _HEADS_PER_CHUNK):
        numbers = range(start, min(start + _HEADS_PER_CHUNK, spec.num_entities))
        writer.add_ids(knowledge.ENTITIES, pa.array([f"entity_{number}" for number in numbers]))
    names = [*(f"shares_{group}" for group in groups), "mentions", "part_of"]
    writer.add_ids(knowledge.RELATIONS, pa.array(names))


@dataclass(frozen=True)
class _Entities:
    """Entities: the first of every style of every group, then the second, and so on."""

    count: int
    num_groups: int
    num_styles: int

    def of_style(self, group: Ints, style: Ints, rank: npt.NDArray[np.float64]) -> Ints:
        """Return an entity of a style, by its rank in [0, 1) among those."""
        first = (group * self.num_styles + style) % self.count
        per_style = np.maximum(1, (self.count - first + self._step - 1) // self._step)
        found: Ints = first + self._step * (rank * per_style).astype(np.int64)
        return found

    def first_of(self, entities: Ints) -> Ints:
        """Return the first entity of each one's style."""
        return entities % self._step

    @property
    def _step(self) -> int:
        return min(self.num_groups * self.num_styles, self.count)


def _heads(count: int, num_facts: int) -> Iterator[Ints]:
    """Yield heads, ascending and with repeats, so that each has as many facts as the others or one more."""
    for start in range(0, count, _HEADS_PER_CHUNK):
        heads = np.arange(start, min(start + _HEADS_PER_CHUNK, count))
        counts = num_facts * (heads + 1) // count - num_facts * heads // count
        yield np.repeat(heads, counts)


def _facts_of_items(styles: Ints, entities: _Entities, random: np.random.Generator) -> tuple[Ints, Ints]:
    """Return relation and tail of one fact for each column of styles."""
    num_groups, size = styles.shape
    group: Ints = random.integers(num_groups, size=(size,))
    rank = random.random(size) ** _POPULAR
    own: Ints = np.take_along_axis(styles, group[None], axis=0)[0]
    tail = entities.of_style(group, own, rank)
    mentions = random.random(size) < _MENTIONS
    tail = np.where(mentions, random.integers(entities.count, size=size), tail)
    return np.where(mentions, num_groups, group), tail


def _write(writer: DatasetWriter, heads: Ints, relations: Ints, tails: Ints) -> None:
    """Write facts, each once, sorted."""
    facts = np.unique(np.stack([heads, relations, tails], axis=1), axis=0)
    if len(facts):
        writer.add_rows(knowledge.TABLE, list(np.ascontiguousarray(facts.T)))
