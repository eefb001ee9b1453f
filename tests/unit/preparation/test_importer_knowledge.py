"""Knowledge graphs: kg.txt beside published matrices, and tables of facts as companies have them."""

import numpy as np
import pandas as pd
import pytest

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.cleaning import InteractionColumns
from diffmm_dist.preparation.importers.knowledge_tables import KnowledgeSource
from diffmm_dist.preparation.importers.published import import_published
from diffmm_dist.preparation.importers.tables import TableImport, import_tables
from tests.support.builders import published_folder

FACTS = "0 0 1\n3 1 11\n3\t1  11\n\n8 0 3\n3 0 11\n"


@pytest.fixture
def folder(tmp_path):
    published_folder(tmp_path / "raw")
    (tmp_path / "raw" / "kg.txt").write_text(FACTS)
    return tmp_path / "raw"


def table_of(path):
    dataset = Dataset.open(str(path))
    columns = zip(*dataset.stream_table("knowledge"), strict=True)
    return dataset, np.stack([np.concatenate(column) for column in columns], axis=1).tolist()


def test_published_facts_are_distinct_and_sorted(folder, tmp_path):
    report = import_published(str(folder), str(tmp_path / "d"))
    dataset, facts = table_of(tmp_path / "d")
    assert facts == [[0, 0, 1], [3, 0, 11], [3, 1, 11], [8, 0, 3]]
    assert dataset.manifest.counts == {"users": 12, "items": 9, "entities": 3, "relations": 2}
    assert dataset.original_ids("entities").to_pylist() == [9, 10, 11]
    assert dataset.original_ids("relations").to_pylist() == ["0", "1"]
    notes = " ".join(report.notes)
    assert "dropped 1 lines of kg.txt that repeat a fact" in notes
    assert "1 facts of kg.txt share head and tail with another relation" in notes
    assert "5 items have no fact in kg.txt" in notes


def test_relations_may_have_names(folder, tmp_path):
    (folder / "relations.txt").write_text("1 directed by\n0\tacted in\n7 unused\n")
    import_published(str(folder), str(tmp_path / "d"))
    assert Dataset.open(str(tmp_path / "d")).original_ids("relations").to_pylist() == ["acted in", "directed by"]


def test_a_graph_of_items_alone_needs_no_entities(folder, tmp_path):
    (folder / "kg.txt").write_text("0 0 1\n")
    import_published(str(folder), str(tmp_path / "d"))
    dataset, facts = table_of(tmp_path / "d")
    assert dataset.manifest.counts == {"users": 12, "items": 9, "relations": 1}
    assert dataset.manifest.tables["knowledge"].columns["head"] == ("items",)
    assert facts == [[0, 0, 1]]


WRONG = {
    "two numbers": ("0 1\n", "line 1 is '0 1'; write head, relation and tail"),
    "a word": ("0 0 1\n0 knows 1\n", "line 2 is '0 knows 1'"),
    "a sign": ("0 0 -1\n", "line 1 is '0 0 -1'"),
    "other digits": ("0 0 \u0663\n", "line 1 is"),
    "beyond 31 bits": ("0 0 4294967296\n", "line 1 holds 4,294,967,296; the largest number is"),
    "far from the others": ("0 0 2000000000\n", "entity 2,000,000,000 is far beyond"),
    "a far relation": ("0 2000000000 1\n", "relation 2,000,000,000 is far beyond"),
    "nothing": ("\n\n", "holds no fact"),
    "no text": (b"\xff\xfe0 0 1\n", "line 1 is no UTF-8 text"),
    "one long line": ("0 " * 20_000, "line 1 is longer than 10,000 characters"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_sentence_and_leaves_nothing(folder, tmp_path, what):
    content, sentence = WRONG[what]
    (folder / "kg.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence):
        import_published(str(folder), str(tmp_path / "d"))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("content", "sentence"), [("0 a\n0 b\n", "line 2 names relation 0 again"), ("x y\n", "line 1")]
)
def test_wrong_names_of_relations(folder, tmp_path, content, sentence):
    (folder / "relations.txt").write_text(content)
    with pytest.raises(UserError, match=sentence):
        import_published(str(folder), str(tmp_path / "d"))


def test_all_mistakes_are_told_at_once(folder, tmp_path):
    (folder / "kg.txt").write_text("0\n")
    (folder / "tstMat.pkl").unlink()
    with pytest.raises(UserError, match=r"tstMat.pkl is missing.*kg.txt: line 1"):
        import_published(str(folder), str(tmp_path / "d"))


# Tables.


@pytest.fixture
def interactions(tmp_path):
    random = np.random.default_rng(1)
    rows = pd.DataFrame(
        {"user": random.integers(12, size=150), "item": [f"m{n}" for n in random.integers(9, size=150)]}
    )
    rows.to_parquet(tmp_path / "interactions.parquet", index=False)
    return str(tmp_path / "interactions.parquet")


def imported(interactions, out, source):
    report = import_tables(TableImport(interactions, InteractionColumns("user", "item"), knowledge=source), str(out))
    return report, *table_of(out)


def facts_of(path, rows):
    pd.DataFrame(rows, columns=["h", "r", "t"]).to_parquet(path, index=False)
    return str(path)


def named(dataset, facts):
    nodes = dataset.original_ids("items").to_pylist()
    if "entities" in dataset.manifest.axes:
        nodes += dataset.original_ids("entities").to_pylist()
    relations = dataset.original_ids("relations").to_pylist()
    return [(nodes[h], relations[r], nodes[t]) for h, r, t in facts]


def test_items_that_are_called_the_same_are_entities(interactions, tmp_path):
    rows = [("m1", "by", "p2"), ("m1", "by", "p2"), ("p2", "born in", "p1"), ("m3", "by", None), ("gone", "by", "m2")]
    source = KnowledgeSource(facts_of(tmp_path / "f.parquet", rows), "h", "r", "t")
    report, dataset, facts = imported(interactions, tmp_path / "d", source)
    assert sorted(named(dataset, facts)) == [("gone", "by", "m2"), ("m1", "by", "p2"), ("p2", "born in", "p1")]
    assert facts == sorted(facts)
    assert dataset.original_ids("entities").to_pylist() == ["gone", "p1", "p2"]
    notes = " ".join(report.notes)
    assert "dropped 1 rows" in notes
    assert "that repeat a fact" in notes
    assert "7 items have no fact" in notes


def test_a_map_says_which_entity_an_item_is(interactions, tmp_path):
    rows = [(100, 7, 205), (205, 9, 30), (101, 7, 30), (30, 9, 100)]
    source = KnowledgeSource(
        facts_of(tmp_path / "f.parquet", rows), "h", "r", "t", str(tmp_path / "map.csv"), "film", "e"
    )
    film = ["m0", "m1", "m2", "m2", "m77", "m3", "m4"]
    entity = [100, 101, 30, 205, 100, 999, 101]  # m2 twice, m77 unknown, 999 without a fact, 101 twice
    pd.DataFrame({"film": film, "e": entity}).to_csv(tmp_path / "map.csv", index=False)
    report, dataset, facts = imported(interactions, tmp_path / "d", source)
    assert named(dataset, facts) == [("m0", 7, 205), ("m1", 7, "m2"), ("m2", 9, "m0"), (205, 9, "m2")]
    notes = " ".join(report.notes)
    for sentence in ("1 pairs of", "whose item has no interaction", "whose entity has no fact",
                     "2 pairs of", "that give an item a second entity, or an entity a second item"):  # fmt: skip
        assert sentence in notes


def test_texts_of_whole_numbers_are_numbers(interactions, tmp_path):
    rows = [("m1", "2", "10"), ("m2", "10", "9"), ("m1", "2", "9")]
    pd.DataFrame(rows, columns=["h", "r", "t"]).to_csv(tmp_path / "f.csv", index=False)
    _, dataset, _ = imported(interactions, tmp_path / "d", KnowledgeSource(str(tmp_path / "f.csv"), "h", "r", "t"))
    assert dataset.original_ids("relations").to_pylist() == [2, 10]  # in the order of numbers
    assert dataset.original_ids("entities").to_pylist() == ["10", "9"]  # beside heads that are text


def test_entities_that_are_no_items_need_a_map(interactions, tmp_path):
    source = KnowledgeSource(facts_of(tmp_path / "f.parquet", [("a", "x", "b")]), "h", "r", "t")
    with pytest.raises(UserError, match=r"none of its entities \(such as 'a'\) is an item \(such as 'm0'\); say which"):
        imported(interactions, tmp_path / "d", source)
    assert not (tmp_path / "d").exists()


def test_a_column_that_is_not_there_is_told_with_the_other_mistakes(interactions, tmp_path):
    source = KnowledgeSource(facts_of(tmp_path / "f.parquet", [("m1", "x", "b")]), "h", "r", "tail")
    settings = TableImport(interactions, InteractionColumns("user", "thing"), knowledge=source)
    with pytest.raises(UserError, match=r"no column 'thing'.*no column 'tail'"):
        import_tables(settings, str(tmp_path / "d"))


def test_options_that_belong_together(run_cli, interactions, tmp_path):
    base = ["prepare", "tables", interactions, "--user", "user", "--item", "item", "--out", tmp_path / "d"]
    status, _, err = run_cli(*base, "--head", "h")
    assert (status, "need --knowledge" in err) == (1, True)
    status, _, err = run_cli(*base, "--knowledge", "x.parquet", "--head", "h")
    assert (status, "--knowledge needs --head, --relation and --tail" in err) == (1, True)
    path = facts_of(tmp_path / "f.parquet", [("m1", "x", "b")])
    status, _, err = run_cli(*base, "--knowledge", path, "--head", "h", "--relation", "h", "--tail", "t")
    assert (status, "must be three different columns" in err) == (1, True)
    status, out, err = run_cli(*base, "--knowledge", path, "--head", "h", "--relation", "r", "--tail", "t")
    assert status == 0, err
    assert "relations" in out
    assert "x 1" in out
