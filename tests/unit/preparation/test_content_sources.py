"""Which items there are, and which files or texts are theirs."""

import os

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.content import items, texts
from diffmm_dist.preparation.content.files import FileSource
from diffmm_dist.preparation.content.request import ContentRequest
from diffmm_dist.preparation.content.texts import TextSource
from tests.support.tables import write_arrow


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def of_files(folder, **more):
    source = FileSource(ContentRequest("images", str(folder), "model", **more), {".png", ".jpg"})
    source.scan()
    return source


def found(source):
    """What belongs to each item."""
    return {
        item: [content.name or content.value for content in contents]
        for block in source.blocks()
        for item, contents in zip(block.ids.to_pylist(), block.contents, strict=True)
    }


def test_names_are_ids(tmp_path):
    touch(tmp_path, "2.png", "10.JPG", "10.png", "deep/3.png", "notes.txt", ".DS_Store", "._2.png")
    source = of_files(tmp_path)
    assert found(source) == {10: ["10.JPG", "10.png"], 2: ["2.png"], 3: ["deep/3.png"]}
    assert source.notes == [
        "left out 3 files that do not end in .jpg, .png: '.DS_Store', '._2.png', 'notes.txt'",
        "1 items have several files, whose features are averaged",
    ]


@pytest.mark.parametrize(
    ("names", "ids"),
    [(["007.png", "8.png"], ["007", "8"]), (["a.b.png"], ["a.b"]), (["7.png", "7.0.png"], ["7", "7.0"])],
)
def test_ids_that_are_no_plain_numbers_stay_text(names, ids, tmp_path):
    assert list(found(of_files(touch(tmp_path, *names)))) == ids


def test_a_name_that_is_no_text_is_one_sentence(tmp_path):
    with open(os.fsencode(tmp_path) + b"/bad\xff.png", "wb") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"has 1 files whose names are no UTF-8, such as 'bad\\udcff.png'; rename them"):
        of_files(tmp_path)


def test_numbers_are_text_where_asked_for(tmp_path):
    assert list(found(of_files(touch(tmp_path, "5.png"), text_ids=True))) == ["5"]


def test_a_folder_can_be_the_item(tmp_path):
    touch(tmp_path, "a/front.png", "a/back.png", "shoes/b/front.png")
    assert found(of_files(tmp_path, id_from="folder")) == {
        "a": ["a/back.png", "a/front.png"],
        "b": ["shoes/b/front.png"],
    }
    with pytest.raises(UserError, match="such as a/front.png and shoes/b/front.png; pass --id-from folder"):
        of_files(tmp_path)
    with pytest.raises(UserError, match="1 files lie in no folder of an item, such as 'c.png'"):
        of_files(touch(tmp_path, "c.png"), id_from="folder")


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_table_says_which_item_a_file_is_of(ending, tmp_path):
    folder = touch(tmp_path / "d", "x/1.png", "2.bin", "3.png")
    table = pa.table({"path": ["x/1.png", "2.bin", "gone.png", None], "item": ["7", "7", "8", "9"]})
    (parquet.write_table if ending == "parquet" else csv.write_csv)(table, tmp_path / f"ids.{ending}")
    source = of_files(folder, ids=str(tmp_path / f"ids.{ending}"), file_column="path", id_column="item")
    assert found(source) == {"7" if ending == "parquet" else 7: ["2.bin", "x/1.png"]}
    assert source.damaged == [items.Damage("gone.png", "it is not there")]
    assert any("left out 1 files that" in note and "'3.png'" in note for note in source.notes)
    assert any("1 rows of" in note for note in source.notes)


def test_mistakes_in_a_table_of_ids(tmp_path):
    folder = touch(tmp_path / "d", "1.png")
    parquet.write_table(pa.table({"file": ["1.png", "1.png"], "item_id": [1, 2]}), tmp_path / "two.parquet")
    with pytest.raises(UserError, match="1.png is of item 1 and 2; keep one"):
        of_files(folder, ids=str(tmp_path / "two.parquet"))
    parquet.write_table(pa.table({"file": ["d/1.png"], "item_id": [1]}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"has none of the files .* such as 'd/1.png' \(it has '1.png'\)"):
        of_files(folder, ids=str(tmp_path / "none.parquet"))


def test_links_to_files_count_and_those_to_folders_lead_nowhere(tmp_path):
    folder = touch(tmp_path / "d", "1.png")
    touch(tmp_path / "elsewhere", "2.png")
    (folder / "3.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (folder / "again").symlink_to(folder)
    (folder / "4.png").symlink_to(tmp_path / "nowhere.png")
    source = of_files(folder)
    assert list(found(source)) == [1, 3, 4]
    assert "'again'" in source.notes[0]


def test_a_file_that_changes_makes_its_block_another(tmp_path):
    touch(tmp_path, "1.png")
    before = next(of_files(tmp_path).blocks()).fingerprint()
    assert next(of_files(tmp_path).blocks()).fingerprint() == before
    os.utime(tmp_path / "1.png", ns=(1, 1))
    assert next(of_files(tmp_path).blocks()).fingerprint() != before


@pytest.mark.parametrize(("place", "words"), [("none", "does not exist"), ("1.png", "is no folder"), (".", "no file")])
def test_a_folder_with_nothing_for_it(place, words, tmp_path):
    (tmp_path / "1.png").write_bytes(b"x")
    folder = tmp_path / place
    if place == ".":
        (folder / "1.png").rename(folder / "1.txt")
    with pytest.raises(UserError, match=words):
        of_files(folder)


def of_texts(table, path, **more):
    writers = {".parquet": parquet.write_table, ".csv": csv.write_csv, ".arrow": write_arrow}
    writers[path.suffix](table, path)
    return texts_in(path, **more)


def texts_in(path, **more):
    more = {"text_columns": ("title", "more")} | more
    source = TextSource(ContentRequest("texts", str(path), "model", **more))
    source.scan()
    return source


TABLE = pa.table({
    "item_id": [3, 1, 3, None, 2, 4],
    "title": ["three", " one ", "three", "lost", None, "nan"],
    "more": [None, "and more", "", "x", "  ", None],
    "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
})  # fmt: skip


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.arrow"])
def test_texts_of_a_table(name, tmp_path):
    source = of_texts(TABLE, tmp_path / name)
    assert found(source) == {3: ["three"], 1: ["one\nand more"]}
    assert source.num_items == 2
    reason = "it has no text in title, more"
    assert source.damaged == [items.Damage("item 2", reason), items.Damage("item 4", reason)]
    assert "1 rows without an id are left out" in source.notes
    assert "1 rows repeat an item with the same text" in source.notes


def test_lists_of_texts(tmp_path):
    lists = pa.array([["a", None, " b "], [], None], pa.list_(pa.string()))
    table = pa.table({"item_id": ["x", "y", "z"], "title": ["t", "u", "v"], "more": lists})
    assert found(of_texts(table, tmp_path / "t.parquet")) == {"x": ["t\na b"], "y": ["u"], "z": ["v"]}


def test_json_lines(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"item_id": "a", "title": "ä", "more": ["b", "c"]}\n')
    assert found(texts_in(tmp_path / "t.jsonl")) == {"a": ["ä\nb c"]}


def test_two_texts_of_an_item_are_refused(tmp_path):
    table = pa.table({"item_id": [1, 2, 1], "title": ["a", "b", "c"], "more": ["", "", ""]})
    with pytest.raises(UserError, match=r"1 rows give items a second text .* such as 1 \(rows 1 and 3\)"):
        of_texts(table, tmp_path / "t.parquet")


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"column 'price' \(double\) holds no texts"):
        of_texts(TABLE, tmp_path / "t.parquet", text_columns=("title", "price"))
    with pytest.raises(UserError, match="no column 'titles'; did you mean 'title'"):
        of_texts(TABLE, tmp_path / "t.parquet", text_columns=("titles",))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    broken = pa.array([b"\xff\xfe"]).view(pa.string())
    table = pa.table({"item_id": [1], "title": broken, "more": ["x"]})
    with pytest.raises(UserError, match="cannot read"):
        of_texts(table, tmp_path / "t.parquet")


def test_blocks_are_cut_by_what_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "ITEMS_PER_BLOCK", 4)
    monkeypatch.setattr(texts, "_ROWS_AT_A_TIME", 3)
    titles = [f"t{item}" if item % 5 else None for item in range(21)]
    table = pa.table({"item_id": range(21), "title": titles})
    source = of_texts(table, tmp_path / "t.parquet", text_columns=("title",))
    blocks = list(source.blocks())
    assert [len(block.ids) for block in blocks] == [4, 4, 4, 4]
    assert [item for block in blocks for item in block.ids.to_pylist()] == [item for item in range(21) if item % 5]
    assert found(source)[7] == ["t7"]


def test_a_table_that_changes_meanwhile_is_noticed(tmp_path):
    source = of_texts(TABLE, tmp_path / "t.parquet")
    parquet.write_table(pa.concat_tables([TABLE, TABLE]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="cannot read|changed while it was read"):
        list(source.blocks())
