"""Lists as tables, and the files that they are written to."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.bundles import ranking
from diffmm_dist.bundles.tables import recommend, write_recommendations
from tests.support.bundles import pairs_of, recommender


def test_original_ids_in_the_order_asked_for():
    source = recommender()
    rows = source.users.rows(["104", "100"])
    assert rows.tolist() == [4, 0]
    table = pa.concat_tables(recommend(source, rows, k=2)).to_pylist()
    scores = source.bundle.user_rows.array() @ source.bundle.item_rows.array().T
    best = (-scores).argsort(axis=1)
    assert [(row["user"], row["rank"], row["item"]) for row in table] == [
        (user + 100, rank + 1, f"item {best[user, rank]}") for user in (4, 0) for rank in (0, 1)
    ]
    assert table[0]["score"] == pytest.approx(scores[4].max(), abs=1e-6)


def test_lists_end_early_for_users_who_know_nearly_everything():
    source = recommender(seen=pairs_of([0, 0, 0, 1, 1, 1, 1], [0, 1, 3, 0, 1, 2, 3], num_rows=5, num_items=4))
    table = pa.concat_tables(recommend(source, np.arange(2), k=3)).to_pylist()
    assert [(row["user"], row["item"]) for row in table] == [(100, "item 2")]
    everything = pa.concat_tables(recommend(source, np.arange(2), k=3, include_seen=True))
    assert everything.num_rows == 6


def test_blocks_make_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "_SCORES", 8)
    out = tmp_path / "recs.parquet"
    assert write_recommendations(recommend(recommender(), np.arange(5), k=3), str(out)) == 15
    table = parquet.read_table(out)
    assert table.column("user").to_pylist() == [user for user in range(100, 105) for _ in range(3)]
    assert parquet.ParquetFile(out).num_row_groups == 3


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1", "'=1", "'", '=HYPERLINK("http://x","y")']


def recommended(tmp_path, ids, **more):
    """Write one recommendation of each id to CSV, and return the ids as a program reads them."""
    table = pa.table({"user": ids, "rank": pa.array([1] * len(ids), pa.int32()), "item": ids})
    write_recommendations(iter([table]), str(tmp_path / "r.csv"), **more)
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_a_spreadsheet_would_compute_has_an_apostrophe_in_csv(tmp_path):
    for row, text in zip(recommended(tmp_path, FORMULAS), FORMULAS, strict=True):
        assert (row["user"], row["item"]) == ("'" + text, "'" + text)
    plain = ["a=1", "user_1", "é", "a\nb", 'a"b', "1-2", ""]
    assert [row["user"] for row in recommended(tmp_path, plain)] == plain
    assert [row["user"] for row in recommended(tmp_path, [-7, 3])] == ["-7", "3"], "numbers are no formulas"


def test_ids_can_be_written_as_they_are(tmp_path):
    assert [row["user"] for row in recommended(tmp_path, FORMULAS, raw_ids=True)] == FORMULAS
    for ending, read in READERS.items():
        out = tmp_path / f"r.{ending}"
        write_recommendations(iter([pa.table({"user": FORMULAS})]), str(out))
        assert read(out) == FORMULAS


READERS = {
    "parquet": lambda path: parquet.read_table(path)["user"].to_pylist(),
    "arrow": lambda path: pa.ipc.open_file(path).read_all()["user"].to_pylist(),
    "jsonl": lambda path: [json.loads(line)["user"] for line in path.read_text().split("\n")[:-1]],
}
