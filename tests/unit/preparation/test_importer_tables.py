import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.interactions import InteractionColumns, SplitRule
from diffmm_dist.preparation.importers.mmrec import import_mmrec
from diffmm_dist.preparation.importers.tables import TableImport, import_tables
from tests.support.tables import COLUMNS, all_pairs, expected_pairs, interactions, load, pairs, write_arrow

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("strings", [True, False])
def test_every_pair_arrives_once_under_its_own_ids(tmp_path, strings):
    table = interactions(strings=strings)
    dataset, notes = load(table, tmp_path)
    assert sorted(all_pairs(dataset)) == expected_pairs(table)
    for kind, column in (("users", "who"), ("items", "what")):
        assert dataset.original_ids(kind).to_pylist() == sorted(set(table[column].to_pylist()))
    repeated = table.num_rows - len(expected_pairs(table))
    assert notes == (f"dropped {repeated} rows that repeat a user and an item; the earliest counts",)


FORMATS = {
    "in.csv": csv.write_csv,
    "in.tsv": lambda table, path: csv.write_csv(table, path, csv.WriteOptions(delimiter="\t")),
    "in.arrow": write_arrow,
    "in.feather": lambda table, path: write_arrow(table, path, "zstd"),
    "in.parquet": parquet.write_table,
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_agree(tmp_path, name):
    table = interactions()
    reference, _ = load(table, tmp_path)
    FORMATS[name](table, str(tmp_path / name))
    import_tables(TableImport(str(tmp_path / name), COLUMNS), str(tmp_path / "other"))
    assert Dataset.open(str(tmp_path / "other")).manifest.fingerprint == reference.manifest.fingerprint


def test_a_folder_of_files_is_one_table_and_their_order_does_not_matter(tmp_path):
    table = interactions()
    reference, _ = load(table, tmp_path)
    (tmp_path / "many" / "day=2").mkdir(parents=True)
    parquet.write_table(table.slice(250), tmp_path / "many" / "a.parquet")
    parquet.write_table(table.slice(0, 250), tmp_path / "many" / "day=2" / "b.parquet")
    (tmp_path / "many" / "_SUCCESS").write_text("")
    import_tables(TableImport(str(tmp_path / "many"), COLUMNS), str(tmp_path / "other"))
    assert Dataset.open(str(tmp_path / "other")).manifest.fingerprint == reference.manifest.fingerprint
    (tmp_path / "many" / "c.csv").write_text("who,what\n")
    with pytest.raises(UserError, match=r"mixes files of CSV and Parquet; give a folder or a pattern of one format"):
        import_tables(TableImport(str(tmp_path / "many"), COLUMNS), str(tmp_path / "third"))


INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.uint64()]
STRINGS = [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("kind", [*INTEGERS, *STRINGS])
def test_id_types(tmp_path, kind):
    values = [3, 1, 2, 1, 3, 2, 1] if kind in INTEGERS else list("cabacba")
    ids = pa.array(values).cast(kind)
    dataset, _ = load(
        pa.table({"who": ids, "what": range(7), "s": [0, 0, 0, 1, 1, 2, 2]}), tmp_path,
        columns=InteractionColumns("who", "what", split="s"), rule=SplitRule("column", values=("0", "1", "2")),
    )  # fmt: skip
    assert dataset.original_ids("users").to_pylist() == sorted(set(values))


def test_ids_that_cannot_be(tmp_path):
    def table(ids):
        return pa.table({"who": ids, "what": ids})

    with pytest.raises(UserError, match=r"column 'who' holds bool, but ids are whole numbers or strings"):
        load(table(pa.array([True, False])), tmp_path)
    with pytest.raises(UserError, match=r"column 'who' holds an id that does not fit"):
        load(table(pa.array([2**63, 1], pa.uint64())), tmp_path)


class TestDropping:
    def test_rows_without_ids_or_with_low_ratings(self, tmp_path):
        table = interactions(strings=True)
        who = table["who"].to_pylist()
        who[:3] = [None] * 3
        stars = [None, *table["stars"].to_pylist()[1:]]
        stars[5] = None
        table = table.set_column(0, "who", pa.array(who)).set_column(3, "stars", pa.array(stars))
        columns = InteractionColumns("who", "what", rating="stars")
        dataset, notes = load(table, tmp_path, columns=columns, min_rating=4)
        kept = table.filter(pa.array([w is not None and (s or 0) >= 4 for w, s in zip(who, stars, strict=True)]))
        assert sorted(all_pairs(dataset)) == expected_pairs(kept)
        low = table.num_rows - 3 - kept.num_rows
        assert notes[:2] == (
            "dropped 3 rows without user or item",
            f"dropped {low} rows with a rating below 4, or none",
        )

    @pytest.mark.parametrize("k", [2, 5, 9])
    def test_core(self, tmp_path, k):
        table = interactions(40, 30, 260)
        remaining = set(expected_pairs(table))
        while True:
            counts = [[p[side] for p in remaining] for side in (0, 1)]
            kept = {p for p in remaining if all(counts[side].count(p[side]) >= k for side in (0, 1))}
            if kept == remaining:
                break
            remaining = kept
        if not remaining:
            with pytest.raises(UserError, match=r"--k-core 9 leaves no interaction"):
                load(table, tmp_path, k_core=k)
            return
        dataset, notes = load(table, tmp_path, k_core=k)
        assert sorted(all_pairs(dataset)) == sorted(remaining)
        before, after = len(expected_pairs(table)), len(remaining)
        assert (f"{before - after:,} interactions" in notes[-1]) if before > after else len(notes) == 1

    def test_nothing_remains(self, tmp_path):
        with pytest.raises(UserError, match=r"holds no interaction to import"):
            load(interactions(), tmp_path, columns=InteractionColumns("who", "what", rating="stars"), min_rating=9)
        assert not (tmp_path / "out").exists()


BAD = [
    ({"rule": SplitRule("time")}, "--split time needs --timestamp"),
    ({"rule": SplitRule("column")}, "--split column and --split-column go together"),
    ({"min_rating": 3.0}, "--min-rating needs --rating"),
    ({"rule": SplitRule("random", 0.5, 0.5)}, "--valid-share and --test-share must be at least 0 and below 1 together"),
    ({"all_items": True}, "--all-items needs --features"),
    (
        {"columns": InteractionColumns("who", "wat")},
        "has no column 'wat'; did you mean 'what'?; its columns are who, what",
    ),
]


@pytest.mark.parametrize(("more", "sentence"), BAD)
def test_settings_that_cannot_be(tmp_path, more, sentence):
    with pytest.raises(UserError) as caught:
        load(interactions(), tmp_path, **more)
    assert sentence in str(caught.value)


def test_files_that_cannot_be(tmp_path):
    def read(name):
        import_tables(TableImport(str(tmp_path / name), COLUMNS), str(tmp_path / "out"))

    for name, sentence in (("none.parquet", "does not exist"), ("", "holds no file with data")):
        with pytest.raises(UserError, match=sentence):
            read(name)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"cannot read .*cut\.parquet"):
        read("cut.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.parquet"]


def mmrec_folder(folder, *, header="userID\titemID\trating\ttimestamp\tx_label"):
    folder.mkdir()
    rng = np.random.default_rng(2)
    rows = [
        (u, i, 5.0, 100 * i, rng.choice(3, p=[0.8, 0.1, 0.1]))
        for u in range(9)
        for i in range(12)
        if rng.random() < 0.6
    ]
    lines = [header, *("\t".join(map(str, row)) for row in rows)]
    (folder / "baby.inter").write_text("\n".join(lines) + "\n")
    features = rng.standard_normal((14, 3)).astype(np.float32)  # items 12 and 13 have no interaction
    np.save(folder / "image_feat.npy", features)
    return rows, features


@pytest.mark.parametrize("typed", [False, True])
def test_mmrec(tmp_path, typed):
    names = ["userID", "itemID", "rating", "timestamp", "x_label"]
    header = "\t".join(f"{name}:token" if typed else name for name in names)
    rows, features = mmrec_folder(tmp_path / "baby", header=header)
    report = import_mmrec(str(tmp_path / "baby"), str(tmp_path / "out"))
    dataset = Dataset.open(str(tmp_path / "out"))
    assert report.missing == ("text_feat.npy", "audio_feat.npy")
    assert dataset.original_ids("items").to_pylist() == list(range(14))
    assert dataset.features("visual").tolist() == features.tolist()
    for label, split in enumerate(("train", "valid", "test")):
        assert sorted(pairs(dataset, split)) == sorted((row[0], row[1]) for row in rows if row[4] == label)


def test_mmrec_folders_that_cannot_be(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds 0 \.inter files"):
        import_mmrec(str(tmp_path / "empty"), str(tmp_path / "out"))
    mmrec_folder(tmp_path / "baby", header="userID\titemID\trating\ttimestamp\tlabel")
    with pytest.raises(UserError, match=r"x_label are needed"):
        import_mmrec(str(tmp_path / "baby"), str(tmp_path / "out"))
    mmrec_folder(tmp_path / "first", header="x_label\titemID\trating\ttimestamp\tuserID")
    with pytest.raises(UserError, match=r"x_label are needed in this order"):
        import_mmrec(str(tmp_path / "first"), str(tmp_path / "out"))


def mmrec_with(tmp_path, *lines):
    """An MMRec folder with further lines."""
    mmrec_folder(tmp_path / "baby")
    with open(tmp_path / "baby" / "baby.inter", "a") as file:
        file.writelines(line + "\n" for line in lines)
    return import_mmrec(str(tmp_path / "baby"), str(tmp_path / "out"))


def test_mmrec_rows_that_lack_something_are_dropped_and_counted(tmp_path):
    report = mmrec_with(tmp_path, "\t3\t5.0\t1\t0", "2\t\t5.0\t1\t0", "2\tNaN\t5.0\t1\t0", "100\t3\t5.0\t1\t")
    assert "dropped 3 rows without user or item" in report.notes
    assert "dropped 1 rows without a split" in report.notes


@pytest.mark.parametrize("item", ["14", "-1", "999999"])
def test_mmrec_items_without_a_row_of_features(tmp_path, item):
    with pytest.raises(UserError, match=rf"no visual features; give a row .* one is {item} \(there are 14 rows, row n"):
        mmrec_with(tmp_path, f"2\t{item}\t5.0\t1\t0")


def test_mmrec_arrays_with_different_numbers_of_rows(tmp_path):
    mmrec_folder(tmp_path / "baby")
    np.save(tmp_path / "baby" / "text_feat.npy", np.ones((13, 2), np.float32))
    with pytest.raises(UserError, match=r"1 items have no textual features; .* one is 13 \(there are 13 rows"):
        import_mmrec(str(tmp_path / "baby"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("2\tB7\t5.0\t1\t0", r"row numbers\) are whole numbers such as 0, but .* text such as '0'"),
        ("2\t3\t5.0\t1\t3", r"holds '3', which is none of 0, 1, 2"),
    ],
)
def test_mmrec_values_that_cannot_be(tmp_path, line, sentence):
    with pytest.raises(UserError, match=sentence):
        mmrec_with(tmp_path, line)
