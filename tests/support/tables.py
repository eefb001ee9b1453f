"""Tables of interactions, and what becomes of them."""

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.ipc as ipc
import pyarrow.parquet as parquet

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.preparation.importers.cleaning import InteractionColumns
from diffmm_dist.preparation.importers.tables import TableImport, import_tables

COLUMNS = InteractionColumns("who", "what")
WRITERS = {
    "parquet": parquet.write_table,
    "arrow": lambda table, path: write_arrow(table, path),
    "csv": csv.write_csv,
}


def write_arrow(table, path, compression=None):
    """Write an Arrow file, also called Feather."""
    options = ipc.IpcWriteOptions(compression=compression)
    with ipc.new_file(str(path), table.schema, options=options) as file:
        file.write_table(table)


def interactions(num_users=30, num_items=20, count=400, *, strings=True, seed=5):
    """A table with times; pairs repeat."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, num_users, count), rng.integers(0, num_items, count)
    columns = {"when": rng.permutation(count) + 1000, "stars": rng.integers(1, 6, count)}
    if strings:
        return pa.table({"who": [f"u{u:03}" for u in users], "what": [f"B{i:03}" for i in items]} | columns)
    return pa.table({"who": users - 7, "what": items * 10**9} | columns)


def load(table, tmp_path, *, kind="parquet", **more):
    """Import a table, and return the dataset and the notes."""
    WRITERS[kind](table, str(tmp_path / f"in.{kind}"))
    more = {"columns": COLUMNS} | more
    report = import_tables(TableImport(str(tmp_path / f"in.{kind}"), **more), str(tmp_path / "out"), force=True)
    return Dataset.open(str(tmp_path / "out")), report.notes


def load_text(text, tmp_path, **more):
    """Import the text of a CSV file, and return the dataset and the notes."""
    (tmp_path / "in.csv").write_text(text)
    more = {"columns": COLUMNS} | more
    report = import_tables(TableImport(str(tmp_path / "in.csv"), **more), str(tmp_path / "out"), force=True)
    return Dataset.open(str(tmp_path / "out")), report.notes


def grid_with(users, items, *, columns=None):
    """A table in which every user has every item, so that ids of any kind survive a random split."""
    rows = [(user, item) for user in users for item in items]
    return pa.table({"who": [user for user, _ in rows], "what": [item for _, item in rows]} | (columns or {}))


def pairs(dataset, split):
    """(user, item) in original ids."""
    users, items = (dataset.original_ids(kind).to_pylist() for kind in ("users", "items"))
    rows = dataset.interactions(split)
    return [(users[u], items[i]) for u, i in zip(rows.row_ids.tolist(), rows.indices.tolist(), strict=True)]


def all_pairs(dataset):
    return [pair for split in ("train", "valid", "test") for pair in pairs(dataset, split)]


def expected_pairs(table):
    return sorted(set(zip(table["who"].to_pylist(), table["what"].to_pylist(), strict=True)))
