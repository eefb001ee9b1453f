"""Which files count as a table's data."""

import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.table_formats import TextOptions


def write(place, *users):
    place.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"who": list(users), "what": [1] * len(users)}), place)


def rows(uri, *columns, **more):
    table = Table(str(uri), **more)
    return pa.Table.from_batches(table.batches(columns or ["who"]), schema=None).to_pylist()


def users(uri, **more):
    return [row["who"] for row in rows(uri, "who", **more)]


HIDDEN = [
    "_temporary/0/part-1.parquet", ".anything/part-1.parquet", "_delta_log/00000000000000000010.checkpoint.parquet",
    "deep/_spark_metadata/x.parquet", "deep/.ipynb_checkpoints/copy.parquet", ".part-0.parquet.crc", "_metadata",
    "day=1/_temporary/x.parquet", "_SUCCESS",
]  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_hidden_anywhere_in_the_path_is_no_data(tmp_path, name):
    write(tmp_path / "in" / "a.parquet", 1, 2)
    write(tmp_path / "in" / name, 3)
    assert users(tmp_path / "in") == [1, 2]
    assert users(tmp_path / "in" / "*") == [1, 2]


def test_the_place_of_a_folder_itself_may_be_hidden(tmp_path):
    write(tmp_path / ".cache" / "_in" / "a.parquet", 1)
    assert users(tmp_path / ".cache" / "_in") == users(tmp_path / ".cache" / "_in" / "*.parquet") == [1]


def test_a_delta_table_is_said_to_be_one(tmp_path):
    write(tmp_path / "in" / "a.parquet", 1)
    write(tmp_path / "in" / "_delta_log" / "1.checkpoint.parquet", 3)
    assert "is a Delta table" in " ".join(Table(str(tmp_path / "in")).notes)


@pytest.mark.parametrize("name", ["x.parquet", "x.CSV", "x"])
def test_a_folder_is_a_folder_whatever_its_name(tmp_path, name):
    write(tmp_path / name / "a.parquet", 1, 2)
    assert users(tmp_path / name) == users(f"{tmp_path / name}/") == [1, 2]


class TestPartitionFolders:
    def test_are_columns(self, tmp_path):
        write(tmp_path / "in" / "sp=train" / "_day=2" / "a.parquet", 1)
        write(tmp_path / "in" / "sp=test" / "_day=3" / "a.parquet", 2)
        assert rows(tmp_path / "in", "sp", "_day", "who") == [
            {"sp": "test", "_day": "3", "who": 2},
            {"sp": "train", "_day": "2", "who": 1},
        ]
        assert rows(tmp_path / "in" / "sp=*", "sp", "who") == rows(tmp_path / "in", "sp", "who")

    def test_with_escapes_and_missing_values(self, tmp_path):
        write(tmp_path / "in" / "sp=a%2Fb c" / "a.parquet", 1)
        write(tmp_path / "in" / "sp=__HIVE_DEFAULT_PARTITION__" / "a.parquet", 2)
        assert {row["who"]: row["sp"] for row in rows(tmp_path / "in", "sp", "who")} == {1: "a/b c", 2: None}

    def test_a_column_of_the_file_counts_before_that_of_its_path(self, tmp_path):
        write(tmp_path / "in" / "who=9" / "a.parquet", 1)
        assert users(tmp_path / "in") == [1]

    def test_a_column_that_only_some_paths_have_is_an_error(self, tmp_path):
        write(tmp_path / "in" / "sp=train" / "a.parquet", 1)
        write(tmp_path / "in" / "b.parquet", 2)
        with pytest.raises(UserError, match=r"b\.parquet lacks the column 'sp' that other files of"):
            rows(tmp_path / "in", "sp", "who")


class TestPatterns:
    def test_match_files_and_folders(self, tmp_path):
        for number in range(3):
            write(tmp_path / f"day-{number}" / "a.parquet", number)
        assert users(tmp_path / "day-[01]" / "*.parquet") == users(tmp_path / "day-[01]") == [0, 1]
        assert users(tmp_path / "**" / "*.parquet") == [0, 1, 2]

    def test_a_file_whose_name_looks_like_one_is_itself(self, tmp_path):
        write(tmp_path / "a[1].parquet", 1)
        write(tmp_path / "a1.parquet", 2)
        assert users(tmp_path / "a[1].parquet") == [1]

    def test_that_match_nothing(self, tmp_path):
        with pytest.raises(UserError, match=r"matches no file; check the pattern"):
            Table(str(tmp_path / "*.parquet"))


class TestEndings:
    @pytest.mark.parametrize("name", ["A.PARQUET", "a.Parq", "a.pq"])
    def test_in_any_case(self, tmp_path, name):
        write(tmp_path / name, 1)
        assert users(tmp_path / name) == users(tmp_path) == [1]

    @pytest.mark.parametrize("name", ["in.xlsx", "in.parquet.gz", "in", "in.csv.zip", "in.txt"])
    def test_unknown_ones_are_called_unsupported(self, tmp_path, name):
        (tmp_path / name).write_text("who\n1\n")
        with pytest.raises(UserError, match=rf"{name} has an ending that is not supported; a table ends in \.parquet"):
            Table(str(tmp_path / name))
        with pytest.raises(UserError, match=rf"holds {name}, whose endings are not supported"):
            Table(str(tmp_path))

    def test_other_files_beside_a_table_are_said(self, tmp_path):
        write(tmp_path / "a.parquet", 1)
        (tmp_path / "README.md").write_text("")
        assert users(tmp_path) == [1]
        assert Table(str(tmp_path)).notes == (
            f"left out 1 files of {tmp_path} whose endings are not supported: README.md",
        )

    def test_text_files_are_tables_with_a_delimiter(self, tmp_path):
        (tmp_path / "u.DATA").write_text("who|what\n1|2\n")
        assert rows(tmp_path / "u.DATA", "who", "what", text=TextOptions("|")) == [{"who": "1", "what": "2"}]

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match=r"none\.parquet does not exist"):
            Table(str(tmp_path / "none.parquet"))
        with pytest.raises(UserError, match=r"holds no file with data"):
            Table(str(tmp_path))


class TestHuggingFace:
    """Folders as `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave them."""

    def save(self, folder, *users, **state):
        folder.mkdir(parents=True)
        table = pa.table({"who": list(users)})
        files = [f"data-{number:05}-of-00002.arrow" for number in range(2)]
        for name, part in zip(files, (table.slice(0, 1), table.slice(1)), strict=True):
            with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(part)
        (folder / "dataset_info.json").write_text("{}")
        state = {"_data_files": [{"filename": name} for name in files], **state}
        (folder / "state.json").write_text(json.dumps(state))
        # What map() and filter() leave there is no data.
        (folder / "cache-0123.arrow").write_bytes((folder / files[0]).read_bytes())

    def test_a_dataset(self, tmp_path):
        self.save(tmp_path / "in", 5, 6, 7)
        assert users(tmp_path / "in") == [5, 6, 7]

    def test_the_splits_of_several_are_a_column(self, tmp_path):
        self.save(tmp_path / "in" / "train", 5, 6)
        self.save(tmp_path / "in" / "test", 7, 8)
        (tmp_path / "in" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        found = rows(tmp_path / "in", "split", "who")
        assert sorted((row["split"], row["who"]) for row in found) == [
            ("test", 7),
            ("test", 8),
            ("train", 5),
            ("train", 6),
        ]

    @pytest.mark.parametrize(
        ("state", "sentence"),
        [
            ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "save it again after flatten_indices"),
            ({"_data_files": [{"filename": "../../secret.arrow"}]}, "names '../../secret.arrow' as data"),
            ({"_data_files": []}, "names no file as data"),
            ({"_data_files": 3}, "does not name the files of a saved dataset"),
        ],
    )
    def test_states_that_cannot_be(self, tmp_path, state, sentence):
        self.save(tmp_path / "in", 5, 6, **state)
        with pytest.raises(UserError) as caught:
            Table(str(tmp_path / "in"))
        assert sentence in str(caught.value)
