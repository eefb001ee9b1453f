"""What a bundle has of a knowledge graph: entities and their embeddings, relations, and attended facts.

``entities.arrow`` holds the original id and the embedding of each entity that is no item, ``relations.arrow`` the
original ids of relations, and ``facts.arrow`` the facts that the embeddings come from: head, relation, tail and share
of the head's attention. Nodes are numbered as the rows of items.arrow, then those of entities.arrow; relations from
their number on are inverse ones.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from diffmm_dist.bundles.files import embedding_schemas, embedding_table, read_marker, read_table
from diffmm_dist.data.checks import check_ids
from diffmm_dist.data.knowledge import RELATIONS
from diffmm_dist.data.schema import ID_TYPES
from diffmm_dist.errors import UserError
from diffmm_dist.storage import join
from diffmm_dist.training.trained import TrainedRun

ENTITY_FILE, RELATION_FILE, FACT_FILE = "entities.arrow", "relations.arrow", "facts.arrow"
FACTS = pa.schema(
    [
        *(pa.field(name, pa.int64(), nullable=False) for name in ("head", "relation", "tail")),
        pa.field("attention", pa.float32(), nullable=False),
    ]
)
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class BundledKnowledge:
    """The knowledge graph of a bundle.

    Attributes:
        entity_ids: original ids of the entities that are no items.
        relation_ids: original ids of the relations, without inverse ones.
        heads: node of each fact, int64 (n,).
        relations: relation of each fact.
        tails: node of each fact.
        attention: share of the head's attention, float32 (n,).
    """

    entity_ids: pa.ChunkedArray
    relation_ids: pa.ChunkedArray
    heads: Ints
    relations: Ints
    tails: Ints
    attention: npt.NDArray[np.float32]


def knowledge_tables(run: TrainedRun) -> dict[str, pa.Table]:
    """Return the tables of a trained run's knowledge graph by the files that they go to; none where it has none."""
    facts = run.model.attended_facts()
    if facts is None:
        return {}
    tables = {}
    shard = run.data.shard
    for axis, rows in run.model.further_embeddings().items():
        order = torch.argsort(shard.further[axis].ids).cpu()
        ids = run.dataset.original_ids(axis).take(order.numpy())
        tables[f"{axis}.arrow"] = embedding_table(ids, rows.cpu()[order].numpy())
    tables[RELATION_FILE] = pa.table({"id": run.dataset.original_ids(RELATIONS)})
    columns = [column.cpu().numpy() for column in facts]
    places = np.lexsort((-columns[3], columns[0]))  # the most attended fact of each head first
    tables[FACT_FILE] = pa.Table.from_arrays([pa.array(column[places]) for column in columns], schema=FACTS)
    return tables


def read_knowledge(uri: str) -> BundledKnowledge:
    """Read the knowledge graph of a bundle, comparing each file with its checksum.

    Raises:
        UserError: there is no bundle, or its model has no knowledge graph.
        DamagedError: a file of it is not what was exported.
    """
    marker = read_marker(uri)
    counts = marker.get("further", {})
    if FACT_FILE not in counts or RELATION_FILE not in counts:
        raise UserError(f"{uri} has no knowledge graph, since its model.name={marker['model']} reads none")
    ids = [pa.schema([pa.field("id", kind)]) for kind in ID_TYPES.values()]
    relations = read_table(uri, RELATION_FILE, marker, ids, counts[RELATION_FILE]).column("id")
    entities = pa.chunked_array([], pa.string())
    if ENTITY_FILE in counts:
        schemas = embedding_schemas(marker["embedding_dim"])
        entities = read_table(uri, ENTITY_FILE, marker, schemas, counts[ENTITY_FILE]).column("id")
    facts = read_table(uri, FACT_FILE, marker, [FACTS], counts[FACT_FILE])
    heads, kinds, tails, attention = (facts.column(name).to_numpy() for name in FACTS.names)
    num_nodes = marker["num_items"] + len(entities)
    for name, values, total in (("node", heads, num_nodes), ("relation", kinds, 2 * len(relations)),
                                ("node", tails, num_nodes)):  # fmt: skip
        check_ids(values, total, kind=name, where=join(uri, FACT_FILE))
    return BundledKnowledge(entities, relations, heads, kinds, tails, attention)
