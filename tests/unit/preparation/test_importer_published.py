import json
import pickle

import numpy as np
import pytest
import scipy.sparse as sp

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.published import import_published
from tests.support.builders import published_folder, write_config
from tests.support.evil import evil_pickle
from tests.support.reference import dense


@pytest.fixture
def folder(tmp_path):
    return published_folder(tmp_path / "raw")


def read(folder, out):
    report = import_published(str(folder), str(out))
    return report, Dataset.open(str(out))


def put(folder, name, value):
    (folder / name).write_bytes(pickle.dumps(value))


def test_everything_arrives(folder, tmp_path):
    report, dataset = read(folder, tmp_path / "out")
    for split, name in (("train", "trnMat"), ("valid", "valMat"), ("test", "tstMat")):
        expected = pickle.loads((folder / f"{name}.pkl").read_bytes()).toarray()
        assert dense(dataset.interactions(split)).tolist() == expected.tolist()
    assert dataset.features("visual").tolist() == np.load(folder / "image_feat.npy").astype(np.float32).tolist()
    assert dataset.features("acoustic").tolist() == np.load(folder / "audio_feat.npy").astype(np.float32).tolist()
    assert dataset.manifest.modalities["visual"].dtype == "float16"
    assert report.missing == ("text_feat.npy",)
    assert dataset.original_ids("items").to_pylist() == list(range(9))


def test_values_are_binarised_and_explicit_zeros_dropped(folder, tmp_path):
    rows, columns = np.array([0, 0, 1, 2]), np.array([3, 3, 1, 2])
    put(folder, "trnMat.pkl", sp.coo_matrix((np.array([2.0, 5.0, 1.0, 0.0]), (rows, columns)), shape=(12, 9)))
    report, dataset = read(folder, tmp_path / "out")
    train = dataset.interactions("train")
    assert any(note.endswith("trnMat.pkl: 1 stored zeros are no interactions") for note in report.notes)
    assert list(zip(train.row_ids.tolist(), train.indices.tolist(), strict=True)) == [(0, 3), (1, 1)]


FORMATS = [sp.coo_matrix, sp.csr_matrix, sp.csc_matrix, sp.bsr_matrix, sp.dia_matrix, sp.csr_array]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_other_sparse_formats(folder, tmp_path, kind, protocol):
    matrix = pickle.loads((folder / "trnMat.pkl").read_bytes())
    (folder / "trnMat.pkl").write_bytes(pickle.dumps(kind(matrix), protocol=protocol))
    _, dataset = read(folder, tmp_path / "out")
    assert dense(dataset.interactions("train")).tolist() == matrix.toarray().tolist()


def test_overlapping_splits_are_noted(folder, tmp_path):
    (folder / "valMat.pkl").write_bytes((folder / "trnMat.pkl").read_bytes())
    report, dataset = read(folder, tmp_path / "out")
    count = dataset.manifest.num_interactions("train")
    assert report.notes == (f"{count} interactions stand in both train and valid; they are masked when ranking",)


def as_saved(matrix, *, release, values, ids):
    """The pickle that an old or a new release of SciPy and NumPy makes of a matrix with such types of numbers."""
    matrix = sp.coo_matrix(matrix, dtype=values)
    rows, columns = (part.astype(ids) for part in (matrix.row, matrix.col))
    matrix.coords = (rows, columns)
    if release == "new":
        return pickle.dumps(matrix, protocol=4)
    del matrix.__dict__["coords"]
    matrix.__dict__.update(row=rows, col=columns)
    saved = pickle.dumps(matrix, protocol=3)
    return saved.replace(b"cscipy.sparse._coo\n", b"cscipy.sparse.coo\n").replace(b"cnumpy._core.", b"cnumpy.core.")


@pytest.mark.parametrize("release", ["old", "new"])
@pytest.mark.parametrize("values", [np.float64, np.float32, np.int8, np.bool_])
@pytest.mark.parametrize("ids", [np.int32, np.int64])
def test_matrices_of_any_release_and_type_of_numbers(folder, tmp_path, release, values, ids):
    expected = {}
    for split, name in (("train", "trnMat.pkl"), ("valid", "valMat.pkl"), ("test", "tstMat.pkl")):
        matrix = pickle.loads((folder / name).read_bytes())
        expected[split] = matrix.toarray().tolist()
        (folder / name).write_bytes(saved := as_saved(matrix, release=release, values=values, ids=ids))
        assert (b"sparse.coo" in saved) == (release == "old")
    _, dataset = read(folder, tmp_path / "out")
    assert {split: dense(dataset.interactions(split)).tolist() for split in expected} == expected


@pytest.mark.parametrize("held", ["no file", "an empty matrix"])
def test_missing_validation_gives_an_empty_split_and_says_so(folder, tmp_path, held):
    (folder / "valMat.pkl").unlink()
    if held == "an empty matrix":
        put(folder, "valMat.pkl", sp.coo_matrix((12, 9)))
    report, dataset = read(folder, tmp_path / "out")
    assert ("valMat.pkl" in report.missing) == (held == "no file")
    assert dataset.manifest.num_interactions("valid") == 0
    assert report.notes == ("the validation split is empty; training will need eval.protocol=published",)


def test_a_folder_without_features(folder, tmp_path):
    for file in folder.glob("*.npy"):
        file.unlink()
    report, dataset = read(folder, tmp_path / "out")
    assert report.missing == ("image_feat.npy", "text_feat.npy", "audio_feat.npy")
    assert dict(dataset.manifest.modalities) == {}
    assert dataset.manifest.num_items == 9


def test_files_without_a_use_are_named_and_left_aside(folder, tmp_path):
    (folder / "pretrained.pkl").write_text("0 9 1\n")
    (folder / ".hidden").touch()
    report, _ = read(folder, tmp_path / "out")
    assert report.notes == ("left aside, for there is no use for them yet: pretrained.pkl",)
    for number in range(9):
        (folder / f"more-{number}").mkdir()
    report, _ = read(folder, tmp_path / "out2")
    assert report.notes[0].endswith("more-0, more-1, more-2, more-3, more-4 and 5 more")


def test_both_names_of_the_command_do_the_same_and_training_says_what_is_missing(run_cli, folder, tmp_path):
    for name in ("valMat.pkl", "image_feat.npy", "audio_feat.npy"):
        (folder / name).unlink()
    told = []
    for command in ("published", "diffmm"):
        assert command in run_cli("prepare", "--help")[1]
        status, out, _ = run_cli("prepare", command, folder, "--out", tmp_path / command)
        assert status == 0
        assert "note: the validation split is empty; training will need eval.protocol=published" in out
        told.append(out.splitlines()[1:])
    assert told[0] == told[1]
    config = write_config(tmp_path / "c.yaml", model={"name": "lightgcn"}, data={"path": str(tmp_path / "published")})
    status, _, err = run_cli("train", "--config", config, f"run.path={tmp_path / 'a'}")
    assert (status, "no validation interactions" in err) == (1, True)
    assert not (tmp_path / "a").exists(), "a run that cannot begin leaves no folder in the way of one that can"
    status, out, _ = run_cli("train", "--config", config, f"run.path={tmp_path / 'a'}", "eval.protocol=published")
    assert (status, "PUBLISHED PROTOCOL: chosen on test" in out) == (0, True)


class ArrayOverForeignMemory:
    """Makes an array of objects whose pointers stand in the pickle."""

    def __reduce__(self):
        return np.ndarray, ((1, 1), np.dtype("O"), b"A" * 8)


class ArrayByHand:
    def __reduce__(self):
        return np.ndarray, ((1, 1), "f8", b"A" * 8)


class LyingType:
    """A number type whose state says that its values are objects."""

    def __reduce__(self):
        return np.dtype, ("f8",), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 63)


def broken_coo(**attributes):
    matrix = sp.coo_matrix((np.ones(2), ([0, 1], [1, 2])), shape=(12, 9))
    matrix.__dict__.update(attributes)
    return matrix


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("trnMat.pkl", ArrayOverForeignMemory(), "only numbers are read"),
        ("trnMat.pkl", ArrayByHand(), "it makes an array by hand"),
        ("trnMat.pkl", LyingType(), "values of type object, and only numbers are read"),
        ("trnMat.pkl", sp.lil_matrix((12, 9)), "asks for scipy.sparse._lil.lil_matrix, which is not on the list"),
        ("trnMat.pkl", sp.coo_matrix((12, 0)), "holds a matrix of 12 users and 0 items; both are needed"),
        ("trnMat.pkl", np.ones((12, 9)), "holds no sparse matrix"),
        ("tstMat.pkl", sp.coo_matrix((3, 4)), r"tstMat\.pkl has shape \(3, 4\) but trnMat\.pkl has \(12, 9\)"),
        ("trnMat.pkl", broken_coo(coords=(np.array([0, 12]), np.array([0, 1]))), "user id 12 is out of range"),
        ("trnMat.pkl", broken_coo(coords=(np.array([0, 1]), np.array([0, -3]))), "item id -3 is out of range"),
        ("trnMat.pkl", sp.csr_matrix(np.ones((12, 9)), dtype=complex), "values of type complex128"),
    ],
    ids=[
        "foreign memory",
        "by hand",
        "lying type",
        "other format",
        "no items",
        "dense",
        "shape",
        "user id",
        "item id",
        "dtype",
    ],
)
def test_bad_matrices(folder, tmp_path, name, value, message):
    put(folder, name, value)
    with pytest.raises(UserError, match=message):
        read(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [sp.coo_matrix, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_entries_that_are_no_interactions_are_named(folder, tmp_path, kind, value):
    matrix = sp.coo_matrix((np.array([1.0, value, 1.0]), ([0, 3, 5], [1, 2, 8])), shape=(12, 9))
    put(folder, "tstMat.pkl", kind(matrix))
    with pytest.raises(UserError, match=rf"tstMat\.pkl: the entry of user 3 and item 2 is {value} \(1 such"):
        read(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_files_that_are_wrong_are_told_at_once(folder, tmp_path):
    (folder / "tstMat.pkl").unlink()
    put(folder, "valMat.pkl", sp.coo_matrix((3, 4)))
    np.save(folder / "image_feat.npy", np.zeros((8, 5)))
    np.save(folder / "audio_feat.npy", np.zeros((9, 5), np.uint16))
    with pytest.raises(UserError) as caught:
        read(folder, tmp_path / "out")
    for part in ("tstMat.pkl is missing", "valMat.pkl has shape (3, 4)", "has 8 feature rows", "bits of bfloat16"):
        assert part in str(caught.value)


def test_no_code_is_run(folder, tmp_path):
    (folder / "trnMat.pkl").write_bytes(evil_pickle(tmp_path / "was-here"))
    with pytest.raises(UserError, match=r"refusing the pickle .*trnMat\.pkl: it asks for posix\.system"):
        read(folder, tmp_path / "out")
    assert not (tmp_path / "was-here").exists()


def test_a_csr_that_points_outside_its_arrays_is_not_followed(folder, tmp_path):
    matrix = sp.csr_matrix(np.ones((12, 9)))
    matrix.indptr[5] = 10_000_000
    put(folder, "trnMat.pkl", matrix)
    with pytest.raises(UserError, match="damaged sparse matrix"):
        read(folder, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x05."])
def test_no_pickle_at_all(folder, tmp_path, content):
    (folder / "trnMat.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"trnMat\.pkl is not a readable pickle"):
        read(folder, tmp_path / "out")


def with_nan(rows):
    rows[4, 1] = np.nan
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((8, 5)), "modality 'visual' has 8 feature rows but there are 9 items"),
        (with_nan(np.zeros((9, 5))), "modality 'visual': the features of item row 4 hold NaN"),
        (np.full((9, 5), 1e300), "modality 'visual': the features of item row 0 hold infinity"),
        (np.zeros((9, 0)), r"shape \(9, 0\)"),
        (np.zeros(9), r"shape \(9,\); float rows \(items, width\) are needed"),
        (np.zeros((9, 5), dtype=np.int64), "holds int64"),
        (np.full((9, 5), np.inf, np.float16), "modality 'visual': the features of item row 0 hold infinity"),
        (np.zeros((9, 5), "V2"), "may be the bits of bfloat16"),
        (np.zeros((9, 5), complex), "holds complex128"),
        (np.zeros((9, 5, 1)), r"shape \(9, 5, 1\)"),
        (np.array([[{}]], dtype=object), r"image_feat\.npy is not a readable \.npy file"),
    ],
    ids=[
        "row count",
        "NaN",
        "beyond float32",
        "no width",
        "one dimension",
        "integers",
        "infinite halves",
        "bfloat16",
        "complex",
        "three dimensions",
        "pickled objects",
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_features(folder, tmp_path, rows, message):
    np.save(folder / "image_feat.npy", rows, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        read(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_folder_and_files(folder, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        read(tmp_path / "nowhere", tmp_path / "out")
    (folder / "tstMat.pkl").unlink()
    with pytest.raises(UserError, match=r"tstMat\.pkl is missing"):
        read(folder, tmp_path / "out")
    (folder / "tstMat.pkl").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*tstMat\.pkl: Is a directory"):
        read(folder, tmp_path / "out")


LISTS = {
    "train.json": {"0": [2, 0], "3": [1]}, "val.json": {"0": [1], "1": []}, "test.json": {"2": [4], "0": [3, 3]},
}  # fmt: skip


def write_lists(folder, **changes):
    folder.mkdir()
    for name, lists in {**LISTS, **changes}.items():
        (folder / name).write_text(lists if isinstance(lists, str) else json.dumps(lists))
    return folder


def test_lists_in_the_place_of_matrices(tmp_path):
    folder = write_lists(tmp_path / "in")
    np.save(folder / "image_feat.npy", np.zeros((6, 2), np.float32))
    (folder / "train_mat").write_bytes(b"not read")
    report = import_published(str(folder), str(tmp_path / "out"))
    dataset = Dataset.open(str(tmp_path / "out"))
    assert (dataset.num_users, dataset.num_items) == (4, 6)
    pairs = {split: dataset.interactions(split).dense().nonzero().tolist() for split in ("train", "valid", "test")}
    assert pairs == {"train": [[0, 0], [0, 2], [3, 1]], "valid": [[0, 1]], "test": [[0, 3], [2, 4]]}
    assert "left aside, for there is no use for them yet: train_mat" in report.notes


@pytest.mark.parametrize(("content", "sentence"), [
    ("[1, 2]", "must hold an object with a list of items for each user"),
    ({"0": 1}, "must hold an object with a list of items for each user"),
    ({"u": [1]}, "train.json: user 'u' is no number from 0 to"),
    ({"0": ["a"]}, "train.json: item 'a' is no number from 0 to"),
    ({"0": [-1]}, "train.json: item -1 is no number from 0 to"),
    ({"0": [2**40]}, "train.json: item 1099511627776 is no number from 0 to"),
    ({"0": [True]}, "train.json: item true is no number from 0 to"),
    ({"0": [1.5]}, "train.json: item 1.5 is no number from 0 to"),
    ("{", "train.json is not valid JSON"),
])  # fmt: skip
def test_lists_that_are_none(tmp_path, content, sentence):
    folder = write_lists(tmp_path / "in", **{"train.json": content})
    with pytest.raises(UserError, match=sentence):
        import_published(str(folder), str(tmp_path / "out"))


def test_lists_without_a_test_split(tmp_path):
    folder = write_lists(tmp_path / "in")
    (folder / "test.json").unlink()
    with pytest.raises(UserError, match=r"test\.json is missing; a published folder must have it"):
        import_published(str(folder), str(tmp_path / "out"))
