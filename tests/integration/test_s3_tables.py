"""Tables on a real S3 server: folders, patterns, partition folders and every format."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.stores.s3 import file_system

ROWS = [{"who": f"u{number}", "what": number} for number in range(5)]


def write(uri):
    """Write the rows in the format of the ending."""
    table = pa.Table.from_pylist(ROWS)
    with storage.replacing_file(uri) as file:
        if uri.endswith(".parquet"):
            parquet.write_table(table, file)
        elif uri.endswith(".arrow"):
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        elif uri.endswith(".csv.gz"):
            file.write(gzip.compress("".join(["who,what\n", *(f"{r['who']},{r['what']}\n" for r in ROWS)]).encode()))
        else:
            file.write("".join(json.dumps(row) + "\n" for row in ROWS).encode())


def read(uri, *columns):
    return pa.Table.from_batches(Table(uri).batches(columns)).to_pylist()


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv.gz", "jsonl"])
def test_folders_and_patterns_in_every_format(place, ending):
    for name in (f"split=train/a.{ending}", f"split=test/a.{ending}", f"_temporary/0/a.{ending}"):
        write(f"{place}/in.parquet/{name}")
    by_folder = read(f"{place}/in.parquet", "split", "who")
    assert sorted({row["split"] for row in by_folder}) == ["test", "train"]
    assert len(by_folder) == 2 * len(ROWS)
    assert read(f"{place}/in.parquet/split=*/*.{ending}", "split", "who") == by_folder
    assert read(f"{place}/in.parquet/split=test/a.{ending}", "who") == [{"who": row["who"]} for row in ROWS]


def test_what_is_not_there_is_one_sentence(place):
    write(f"{place}/in/a.parquet")
    for uri, sentence in (
        (f"{place}/none.csv", "does not exist"),
        (f"{place}/in/*.csv", "matches no file"),
        (f"{place}/in/a.xlsx", "does not exist"),
    ):
        with pytest.raises(UserError, match=sentence):
            Table(uri)
    file_system().pipe_file(f"{place}/in2/a.xlsx".removeprefix("s3://"), b"1")
    with pytest.raises(UserError, match="ending that is not supported"):
        Table(f"{place}/in2/a.xlsx")
