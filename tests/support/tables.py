"""Tables of interactions, and what becomes of them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.importers.interactions import InteractionColumns
from diffmm_dist.data.importers.tables import TableImport, import_tables

COLUMNS = InteractionColumns("who", "what")


def interactions(num_users=30, num_items=20, count=400, *, strings=True, seed=5):
    """A table with times; pairs repeat."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, num_users, count), rng.integers(0, num_items, count)
    columns = {"when": rng.permutation(count) + 1000, "stars": rng.integers(1, 6, count)}
    if strings:
        return pa.table({"who": [f"u{u:03}" for u in users], "what": [f"B{i:03}" for i in items]} | columns)
    return pa.table({"who": users - 7, "what": items * 10**9} | columns)


def load(table, tmp_path, **more):
    """Import a table, and return the dataset and the notes."""
    parquet.write_table(table, tmp_path / "in.parquet")
    more = {"columns": COLUMNS} | more
    report = import_tables(TableImport(str(tmp_path / "in.parquet"), **more), str(tmp_path / "out"), force=True)
    return Dataset.open(str(tmp_path / "out")), report.notes


def pairs(dataset, split):
    """(user, item) in original ids."""
    users, items = (dataset.original_ids(kind).to_pylist() for kind in ("users", "items"))
    rows = dataset.interactions(split)
    return [(users[u], items[i]) for u, i in zip(rows.row_ids.tolist(), rows.indices.tolist(), strict=True)]


def all_pairs(dataset):
    return [pair for split in ("train", "valid", "test") for pair in pairs(dataset, split)]


def expected_pairs(table):
    return sorted(set(zip(table["who"].to_pylist(), table["what"].to_pylist(), strict=True)))
