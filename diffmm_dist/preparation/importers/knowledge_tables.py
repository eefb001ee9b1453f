"""A knowledge graph of a table, as companies have it: facts between entities, some of which are the items."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from diffmm_dist.data import knowledge
from diffmm_dist.data.writer import DatasetWriter
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.columns import as_text, id_array, least, shortened, typed_ids
from diffmm_dist.preparation.importers.database import Database
from diffmm_dist.preparation.importers.table_formats import TextOptions

_LARGEST_AXIS = 2**31 - 1


@dataclass(frozen=True)
class KnowledgeSource:
    """Where a knowledge graph is.

    Attributes:
        uri: a table of facts.
        head: its column of heads.
        relation: its column of relations.
        tail: its column of tails.
        item_entity: a table that says which entity each item is; None where items are called the same in both tables.
        item: its column of items.
        entity: its column of entities.
    """

    uri: str
    head: str
    relation: str
    tail: str
    item_entity: str | None = None
    item: str = "item"
    entity: str = "entity"

    @property
    def uris(self) -> list[str]:
        """The tables."""
        return [self.uri, *([self.item_entity] if self.item_entity else [])]


class KnowledgeTables:
    """The facts of one import, in the import's database; methods run in the order in which they stand here.

    Args:
        source: where they are.
        text: how CSV files are written.

    Attributes:
        notes: a sentence for everything that was dropped or might surprise.

    Raises:
        UserError: there is no such table, or it lacks a column.
    """

    def __init__(self, source: KnowledgeSource, text: TextOptions | None = None) -> None:
        self._source = source
        self._facts = Table(source.uri, text)
        self._facts.check_columns([source.head, source.relation, source.tail])
        self.notes: list[str] = [*self._facts.notes]
        self._whole: dict[tuple[str, str], bool] = {}  # of a table's columns, whether its ids came as whole numbers
        self._is_whole: dict[str, bool] = {}  # of a table of ids
        self._map: Table | None = None
        if source.item_entity is not None:
            self._map = Table(source.item_entity, text)
            self._map.check_columns([source.item, source.entity])
            self.notes += self._map.notes

    def load(self, database: Database, items: pa.Array, *, text_ids: bool) -> None:
        """Read the facts and number what they name.

        Args:
            database: where they go.
            items: ids of the items, int64 or string, in their order.
            text_ids: ids are text, whatever they look like.

        Raises:
            UserError: a column holds no ids, nothing remains, or no item is an entity.
        """
        self._database, self._run = database, database.run
        self._num_items = len(items)
        source = self._source
        self._load("raw_facts", self._facts, {"head": source.head, "relation": source.relation, "tail": source.tail})
        if self._count("raw_facts") == 0:
            raise UserError(f"{source.uri} holds no fact; check --head, --relation and --tail")
        typed = self._facts.is_text and not text_ids
        self._read_ids("entity_ids", "raw_facts", ("head", "tail"), self._facts, typed=typed)
        self._read_ids("relation_ids", "raw_facts", ("relation",), self._facts, typed=typed)
        self._number_items(items, text_ids=text_ids)
        self._number_facts()

    def _load(self, name: str, table: Table, columns: Mapping[str, str]) -> None:
        """Put columns of ids into a database table, as text; rows that lack one are dropped."""
        dropped, create = 0, True
        for batch in table.batches(list(dict.fromkeys(columns.values()))):
            ids = {own: id_array(batch[column], name=column, uri=table.uri) for own, column in columns.items()}
            self._whole |= {(name, own): pa.types.is_integer(values.type) for own, values in ids.items()}
            rows = pa.table({own: as_text(values) for own, values in ids.items()})
            kept = rows.drop_null()
            dropped += rows.num_rows - kept.num_rows
            self._database.append(name, kept, create=create)
            create = False
        if create:
            raise UserError(f"{table.uri} holds no rows; name another table")
        self._note(dropped, f"rows of {table.uri} without {' or '.join(columns)}")

    def _read_ids(self, name: str, rows: str, columns: tuple[str, ...], table: Table, *, typed: bool) -> None:
        """Make the table of ids as they stand in the rows (raw) and as they are meant (id); whole numbers sort so."""
        union = " union ".join(f"select {column} as raw from {rows}" for column in columns)
        if not typed:
            whole = all(self._whole[rows, column] for column in columns)
            self._run(f"create or replace table {name} as select raw, raw as id from ({union})")
        else:
            texts = self._database.table(union)["raw"]
            ids, notes = typed_ids(texts, column=" and ".join(columns), uri=table.uri)
            whole = pa.types.is_integer(ids.type)
            self._database.append(name, pa.table({"raw": texts, "id": ids.cast(pa.string())}), create=True)
            self.notes += notes
        self._is_whole[name] = whole

    def _number_items(self, items: pa.Array, *, text_ids: bool) -> None:
        """Make the table of the entities that are items, each with its item's number."""
        numbers = pa.array(np.arange(len(items)))
        self._database.append("item_numbers", pa.table({"id": as_text(items), "number": numbers}), create=True)
        source = self._source
        if self._map is None:
            self._run("create or replace table known as select id, number from item_numbers")
        else:
            self._load("raw_map", self._map, {"item": source.item, "entity": source.entity})
            typed = self._map.is_text and not text_ids
            for name, column in (("map_items", "item"), ("map_entities", "entity")):
                self._read_ids(name, "raw_map", (column,), self._map, typed=typed)
            self._run(
                "create or replace table pairs_of_map as select distinct e.id as entity, i.id as item from raw_map m "
                "join map_items i on m.item = i.raw join map_entities e on m.entity = e.raw"
            )
            self._note_map()
        found = self._number_from("select count(*) from known where id in (select id from entity_ids)")
        if found == 0:
            example = self._run("select min(id) from entity_ids")[0][0]
            remedy = "check --item-entity" if self._map else "say which entity each item is with --item-entity"
            raise UserError(
                f"{source.uri}: none of its entities (such as {shortened(example)!r}) is an item (such as "
                f"{least(items)!r}); {remedy}"
            )
        lone = self._num_items - found
        if lone:
            self.notes.append(f"{lone:,} items have no fact")

    def _note_map(self) -> None:
        """Give each entity one item and each item one entity, and say what of the map is not used."""
        uri = self._source.item_entity
        unknown = self._number_from("select count(*) from pairs_of_map where item not in (select id from item_numbers)")
        self._note(unknown, f"pairs of {uri} whose item has no interaction")
        dangling = self._number_from(
            "select count(*) from pairs_of_map where item in (select id from item_numbers) and entity not in "
            "(select id from entity_ids)"
        )
        self._note(dangling, f"pairs of {uri} whose entity has no fact")
        self._run(
            "create or replace table usable as select p.entity as id, n.number from pairs_of_map p join item_numbers n "
            "on p.item = n.id where p.entity in (select id from entity_ids)"
        )
        # The lowest item of an entity, and the first entity of an item.
        self._run("create or replace table first_items as select id, min(number) as number from usable group by id")
        order = "cast(id as bigint)" if self._is_whole["map_entities"] else "id"
        self._run(
            f"create or replace table known as select min_by(id, {order}) as id, number from first_items "
            "group by number"
        )
        extra = self._count("usable") - self._count("known")
        self._note(extra, f"pairs of {uri} that give an item a second entity, or an entity a second item")

    def _number_facts(self) -> None:
        """Make the table of distinct facts, by numbers."""
        for name, others in (("entity", "where id not in (select id from known)"), ("relation", "")):
            order = "cast(id as bigint)" if self._is_whole[f"{name}_ids"] else "id"
            self._run(
                f"create or replace table final_{name} as select id, "
                f"row_number() over (order by {order}) - 1 as number from (select distinct id from {name}_ids) {others}"
            )
            if self._count(f"final_{name}") > _LARGEST_AXIS - self._num_items:
                raise UserError(f"{self._source.uri} names too many different ids for 31 bits; leave some out")
        self._run(
            f"create or replace table nodes as select id, number from known union all select id, number + "
            f"{self._num_items} from final_entity"
        )
        self._run(
            "create or replace table facts as select distinct h.number as head, r.number as relation, t.number as tail "
            "from raw_facts f join entity_ids hi on f.head = hi.raw join nodes h on hi.id = h.id "
            "join entity_ids ti on f.tail = ti.raw join nodes t on ti.id = t.id "
            "join relation_ids ri on f.relation = ri.raw join final_relation r on ri.id = r.id"
        )
        self._note(self._count("raw_facts") - self._count("facts"), f"rows of {self._source.uri} that repeat a fact")
        loops = self._number_from("select count(*) from facts where head = tail")
        if loops:
            self.notes.append(f"{loops:,} facts of {self._source.uri} have the same head and tail")

    def axes(self) -> dict[str, int]:
        """Return the rows of the axes that the facts need."""
        further = self._count("final_entity")
        entities = {knowledge.ENTITIES: further} if further else {}
        return {**entities, knowledge.RELATIONS: self._count("final_relation")}

    def write(self, writer: DatasetWriter) -> None:
        """Write the facts, and the ids of entities and relations."""
        writer.begin_table(knowledge.TABLE, knowledge.columns_of(has_entities=knowledge.ENTITIES in writer.counts))
        for batch in self._database.batches("select head, relation, tail from facts order by all"):
            writer.add_rows(knowledge.TABLE, [column.to_numpy() for column in batch.columns])
        for axis, name in ((knowledge.ENTITIES, "entity"), (knowledge.RELATIONS, "relation")):
            kind = pa.int64() if self._is_whole[f"{name}_ids"] else pa.string()
            for batch in self._database.batches(f"select id from final_{name} order by number"):
                writer.add_ids(axis, batch.column(0).cast(kind))

    def _count(self, table: str) -> int:
        return self._number_from(f"select count(*) from {table}")

    def _number_from(self, query: str) -> int:
        return int(self._run(query)[0][0])

    def _note(self, count: int, what: str) -> None:
        if count:
            self.notes.append(f"dropped {count:,} {what}")
