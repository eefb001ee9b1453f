"""Systems side by side: what is in the tables, what is refused, and that the README has those of its files."""

import json
from statistics import stdev

import pytest

from diffmm_dist.bench.runner import summarize
from diffmm_dist.bench.systems import END, START, check_tables, tables, write_tables
from diffmm_dist.errors import UserError
from tests.support.builders import ROOT

SYSTEMS = ROOT / "docs" / "benchmarks" / "systems"


def run(seed, recall, **more):
    return {
        "protocol": "validation", "seed": seed, "valid": {}, "test": {"recall@20": recall, "ndcg@20": recall / 2},
        "seconds_per_epoch": 2.0 + seed, "products_per_epoch": 4.0 + 2 * seed, "products_per_phase": {},
        "product_seconds": 0.5, "peak_rss_gib": 1.0 + seed, **more,
    }  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Writes a file as by ``bench train``."""

    def write(name, model, runs, *, data="datasets/tiktok", **settings):
        config = {
            "data": {"path": data}, "eval": {"metric": "recall@20"}, "train": {}, "model": {"name": model, **settings}
        }  # fmt: skip
        document = {
            "command": "c", "machine": {"threads": 1}, "calibration": "p", "config": config, "runs": runs, "summary": {}
        }  # fmt: skip
        (tmp_path / name).write_text(json.dumps(document))
        return str(tmp_path / name)

    return write


def three(recall, **more):
    return [run(seed, recall + 0.01 * seed, **more) for seed in (1, 2, 3)]


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


def test_a_table_for_each_data_set_with_its_best_system_first(write):
    files = [
        write("a.json", "lightgcn", three(0.1)), write("b.json", "diffmm", three(0.2)),
        write("c.json", "lightgcn", three(0.3), data="s3://bucket/shop/"),
    ]  # fmt: skip
    text = tables(files, num_seeds=3)
    assert [line for line in text.splitlines() if line[:1] == "#"] == ["### TikTok", "### shop"]
    assert [row[0] for row in rows(text)] == ["system", "---", "diffmm", "lightgcn", "system", "---", "lightgcn"]
    summary = summarize(three(0.2))["test/recall@20"]
    shown = f"{summary['mean']:.4f} ± {summary['spread']:.4f}"
    assert rows(text)[2] == ["diffmm", "3", shown, "0.1100 ± 0.0050", "1", "4.00", "8", "4.00"]


def test_stages_have_rows_of_their_own(write):
    def staged(seed):
        stages = [
            {"name": name, "test": {"recall@20": recall + 0.01 * seed, "ndcg@20": 0.1}, "seconds_per_epoch": seconds}
            for name, recall, seconds in (("teacher", 0.3, 3.0), ("student", 0.2, 1.0))
        ]
        return run(seed, 0.2 + 0.01 * seed, stages=stages)

    text = tables([write("a.json", "promptmm", [staged(seed) for seed in (1, 2, 3)])], num_seeds=3)
    spread = f"{stdev([0.01, 0.02, 0.03]):.4f}"
    assert rows(text)[2:] == [
        ["promptmm, teacher", "3", f"0.3200 ± {spread}", "0.1000 ± 0.0000", "1", "3.00", "6", "4.00"],
        ["promptmm, student", "3", f"0.2200 ± {spread}", "0.1000 ± 0.0000", "1", "1.00", "2", "4.00"],
    ]


def test_fewer_seeds_are_shown_where_they_are_asked_for(write):
    one = run(1, 0.1)
    del one["products_per_epoch"], one["product_seconds"]
    (row,) = rows(tables([write("a.json", "popularity", [one])], num_seeds=1))[2:]
    assert row == ["popularity", "1", "0.1000", "0.0500", "1", "3.00", "-", "2.00"]


def test_systems_of_one_model_are_told_apart_by_their_settings(write):
    files = [write(f"{width}.json", "lightgcn", three(0.1), width=width) for width in (8, 16)]
    named = [row[0] for row in rows(tables(files, num_seeds=3))]
    assert named[2:] == ["lightgcn, model.width=8", "lightgcn, model.width=16"]


def test_what_does_not_belong_together_is_refused(write, tmp_path):
    good = write("good.json", "lightgcn", three(0.1))
    few = write("few.json", "diffmm", three(0.1)[:2])
    same = write("same.json", "diffmm", [run(1, 0.1)] * 3)
    published = write("published.json", "diffmm", three(0.1, protocol="published"))
    bare = write("bare.json", "diffmm", three(0.1, test={"recall@10": 0.1}))
    text = write("text.json", "diffmm", three(0.1, test={"recall@20": "much", "ndcg@20": 0.1}))
    (tmp_path / "other.json").write_text("{}")
    for file, words in (
        (few, "few.json has 2 of 3 seeds"),
        (same, "same.json has 1 of 3 seeds"),
        (published, "validation by recall@20 in .*good.json and on published by recall@20 in .*published.json"),
        (bare, "bare.json has no test recall@20 of diffmm; train again, with 20 among eval.k"),
        (text, "text.json is damaged"),
        (write("again.json", "lightgcn", three(0.1)), "good.json and .*again.json are both of lightgcn on tiktok"),
        (write("empty.json", "diffmm", []), "empty.json is damaged"),
        (str(tmp_path / "other.json"), "other.json is damaged .* give files written by bench train"),
        (str(tmp_path / "none.json"), "none.json: it does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            tables([good, file], num_seeds=3)


def test_tables_are_put_between_the_comments_and_compared(write, tmp_path, run_cli):
    file, page = write("a.json", "lightgcn", three(0.1)), tmp_path / "page.md"
    page.write_text(f"Above.\n\n{START}\nold\n{END}\n\nBelow ±.\n", encoding="utf-8")
    status, _, err = run_cli("bench", "systems", file, "--into", page, "--check")
    assert status == 1
    assert f"the tables of {page} are not those of the files" in err
    assert "old" in page.read_text(encoding="utf-8")
    assert run_cli("bench", "systems", file, "--into", page)[0] == 0
    shown = tables([file], num_seeds=3)
    assert page.read_text(encoding="utf-8") == f"Above.\n\n{START}\n\n{shown}\n{END}\n\nBelow ±.\n"
    assert run_cli("bench", "systems", file, "--into", page, "--check")[0] == 0
    assert run_cli("bench", "systems", file)[1] == f"{shown}"
    assert "name the page by --into" in run_cli("bench", "systems", file, "--check")[2]


@pytest.mark.parametrize("text", ["", START, f"{END} {START}", f"{START} {START} {END}", f"{START} {END} {END}"])
def test_a_page_without_the_two_comments_is_left_alone(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(UserError, match=r"must have <!-- systems --> once and <!-- /systems --> once behind it"):
        write_tables(str(page), "tables")
    assert page.read_text() == text
    page.write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        check_tables(str(page), "tables")


def test_the_tables_of_the_readme_are_those_of_the_files():
    files = [str(file) for file in sorted(SYSTEMS.glob("*.json"))]
    check_tables(str(ROOT / "README.md"), tables(files, num_seeds=3))
