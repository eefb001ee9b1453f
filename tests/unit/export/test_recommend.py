import csv
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from diffmm_dist.errors import UserError
from diffmm_dist.export import recommend as module
from diffmm_dist.export.bundle import Bundle
from diffmm_dist.export.recommend import recommend, user_rows_of, write_recommendations
from diffmm_dist.sparse import CSR
from tests.support.builders import random_pairs, random_rows


def bundle(num_users=5, num_items=4, seen=None, ids=None):
    return Bundle(
        pa.chunked_array([ids or pa.array(range(100, 100 + num_users))]),
        pa.chunked_array([pa.array([f"item {i}" for i in range(num_items)])]),
        random_rows(num_users, 3, 1),
        random_rows(num_items, 3, 2),
        seen or random_pairs(num_users, num_items, share=0),
    )


def test_original_ids_in_the_order_asked_for():
    source = bundle()
    rows = user_rows_of(source, ["104", "100"])
    assert rows.tolist() == [4, 0]
    table = pa.concat_tables(recommend(source, rows, k=2)).to_pylist()
    scores = source.user_embeddings @ source.item_embeddings.T
    best = scores.argsort(dim=1, descending=True)
    assert [(row["user"], row["rank"], row["item"]) for row in table] == [
        (user + 100, rank + 1, f"item {int(best[user, rank])}") for user in (4, 0) for rank in (0, 1)
    ]
    assert table[0]["score"] == pytest.approx(scores[4].max().item(), abs=1e-6)


def test_lists_end_early_for_users_who_know_nearly_everything():
    seen = CSR.from_pairs(
        torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 1, 3, 0, 1, 2, 3]), num_rows=5, num_columns=4
    )
    table = pa.concat_tables(recommend(bundle(seen=seen), torch.arange(2), k=3)).to_pylist()
    assert [(row["user"], row["item"]) for row in table] == [(100, "item 2")]
    everything = pa.concat_tables(recommend(bundle(seen=seen), torch.arange(2), k=3, include_seen=True))
    assert everything.num_rows == 6


def test_blocks_make_one_file(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(module, "_USERS_PER_BLOCK", 2)
    out = tmp_path / "recs.parquet"
    assert write_recommendations(recommend(bundle(), torch.arange(5), k=3), str(out)) == 15
    table = pq.read_table(out)
    assert table.column("user").to_pylist() == [user for user in range(100, 105) for _ in range(3)]
    assert pq.ParquetFile(out).num_row_groups == 3


def test_unknown_and_unreadable_ids():
    with pytest.raises(UserError, match="the bundle has no user 7, 8; its ids look like 100"):
        user_rows_of(bundle(), ["101", "7", "8"])
    with pytest.raises(UserError, match="whole numbers, not 'bob'"):
        user_rows_of(bundle(), ["bob"])
    assert user_rows_of(bundle(2, ids=pa.array(["bob", "eve"])), ["eve"]).tolist() == [1]


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
