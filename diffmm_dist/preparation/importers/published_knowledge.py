"""The knowledge graph of a folder published with DiffKG: kg.txt, and names of its relations where there are any."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.data import knowledge
from diffmm_dist.data.writer import DatasetWriter
from diffmm_dist.errors import UserError
from diffmm_dist.words import shown

FACTS, RELATIONS = "kg.txt", "relations.txt"
_LONGEST_LINE = 10_000
_LARGEST_ID = 2**31 - 2
_MOST_UNUSED = 64  # ids for each one that has a fact or is an item, beyond a million: more are a mistake
_ROWS_PER_CHUNK = 1 << 16
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PublishedKnowledge:
    """Facts of kg.txt, in which item i is entity i.

    Attributes:
        facts: distinct, by head, relation and tail, int64 (n, 3).
        num_lines: of the file that hold a fact.
        num_entities: N_e, items included.
        relation_names: of each relation.
    """

    facts: Ints
    num_lines: int
    num_entities: int
    relation_names: list[str]

    def axes(self, num_items: int) -> dict[str, int]:
        """Return the rows of the axes that the facts need beside users and items."""
        further = self.num_entities - num_items
        entities = {knowledge.ENTITIES: further} if further else {}
        return {**entities, knowledge.RELATIONS: len(self.relation_names)}

    def write(self, writer: DatasetWriter, num_items: int) -> None:
        """Write the facts, and the ids of entities and relations."""
        write_facts(writer, self.facts)
        for start in range(num_items, self.num_entities, _ROWS_PER_CHUNK):
            ids = np.arange(start, min(start + _ROWS_PER_CHUNK, self.num_entities))
            writer.add_ids(knowledge.ENTITIES, pa.array(ids))
        writer.add_ids(knowledge.RELATIONS, pa.array(self.relation_names, pa.string()))

    def notes(self, num_items: int) -> Iterator[str]:
        """Say what of the facts might surprise."""
        repeated = self.num_lines - len(self.facts)
        if repeated:
            yield f"dropped {repeated:,} lines of {FACTS} that repeat a fact"
        pairs = np.unique(self.facts[:, [0, 2]], axis=0)
        if len(pairs) < len(self.facts):
            yield (
                f"{len(self.facts) - len(pairs):,} facts of {FACTS} share head and tail with another relation; models "
                "read the one with the smallest relation"
            )
        lone = num_items - np.unique(self.facts[:, [0, 2]][self.facts[:, [0, 2]] < num_items]).size
        if lone:
            yield f"{lone:,} items have no fact in {FACTS}"


def write_facts(writer: DatasetWriter, facts: Ints) -> None:
    """Write the table of facts, int64 (n, 3), in their order."""
    columns = knowledge.columns_of(has_entities=knowledge.ENTITIES in writer.counts)
    writer.begin_table(knowledge.TABLE, columns)
    for start in range(0, len(facts), _ROWS_PER_CHUNK):
        chunk = np.ascontiguousarray(facts[start : start + _ROWS_PER_CHUNK].T)
        writer.add_rows(knowledge.TABLE, list(chunk))


def read_knowledge(facts_uri: str, relations_uri: str | None, *, num_items: int) -> PublishedKnowledge:
    """Read kg.txt, and relations.txt if it is there.

    Raises:
        UserError: a file cannot be read, a line is none of three whole numbers, or an entity's number is far beyond the
            others.
    """
    lines = _numbers(facts_uri)
    facts = np.unique(lines, axis=0)
    ends = facts[:, [0, 2]]
    num_entities = max(int(ends.max(initial=-1)) + 1, num_items)
    used = np.unique(ends).size + num_items
    if num_entities > _MOST_UNUSED * used + 1_000_000:
        raise UserError(
            f"{facts_uri}: entity {num_entities - 1:,} is far beyond the {used:,} entities that have a fact or are "
            "items; number them one after the other, items first"
        )
    names = {} if relations_uri is None else _names(relations_uri)
    count = int(facts[:, 1].max(initial=0)) + 1
    if count > _MOST_UNUSED * np.unique(facts[:, 1]).size + 1_000_000:
        raise UserError(
            f"{facts_uri}: relation {count - 1:,} is far beyond the others; number them one after the other"
        )
    return PublishedKnowledge(
        facts, len(lines), num_entities, [names.get(number, str(number)) for number in range(count)]
    )


def _numbers(uri: str) -> Ints:
    """Return the lines of a file of three whole numbers each, int64 (n, 3); empty lines are left out."""
    found = array("q")
    for number, line in _lines(uri):
        parts = line.split()
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
            raise UserError(f"{uri}: line {number:,} is {shown(line)}; write head, relation and tail as whole numbers")
        values = [int(part) for part in parts]
        if max(values) > _LARGEST_ID:
            raise UserError(f"{uri}: line {number:,} holds {max(values):,}; the largest number is {_LARGEST_ID:,}")
        found.extend(values)
    if not found:
        raise UserError(f"{uri} holds no fact; write head, relation and tail on each line, or remove it")
    return np.frombuffer(found, np.int64).reshape(-1, 3)


def _names(uri: str) -> dict[int, str]:
    """Return the names of relations by their numbers."""
    names: dict[int, str] = {}
    for number, line in _lines(uri):
        first, _, name = line.partition("\t") if "\t" in line else line.partition(" ")
        if not (first.isascii() and first.isdigit() and len(first) <= 10 and name.strip()):
            raise UserError(f"{uri}: line {number:,} is {shown(line)}; write a relation's number and its name")
        if int(first) in names:
            raise UserError(f"{uri}: line {number:,} names relation {first} again; give each one name")
        names[int(first)] = name.strip()
    return names


def _lines(uri: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is not empty."""
    with storage.open_file(uri) as file:
        number = 0
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE:
                raise UserError(f"{uri}: line {number:,} is longer than {_LONGEST_LINE:,} characters; is it text?")
            try:
                text = line.decode().strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{uri}: line {number:,} is no UTF-8 text; convert the file first") from error
            if text:
                yield number, text
