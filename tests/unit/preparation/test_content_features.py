"""Content to features, with a model that needs no library: blocks, means, damage, and going on."""

import fcntl
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.errors import TryAgainError, UserError
from diffmm_dist.preparation.content import features, files, model_folder, texts
from diffmm_dist.preparation.content.request import ContentRequest


class Lengths:
    """The length of a content, and the number of its As; a content with ``?`` in it is damaged."""

    most_pieces = 3
    notes = ()

    def __init__(self):
        self.seen = []
        self.fail_at = None

    def pieces(self, value):
        text = value
        if os.path.isfile(value):
            with open(value) as file:
                text = file.read()
        if "?" in text:
            raise UserError("it holds a question")
        if "!" in text:
            raise TryAgainError("the store does not answer")
        return text.split("|")

    def shape(self, piece):
        return len(piece) % 2

    def encode(self, pieces):
        assert len({self.shape(piece) for piece in pieces}) == 1
        assert len(pieces) <= self.most_pieces
        self.seen += pieces
        if self.fail_at in pieces:
            raise RuntimeError("killed")
        vectors = [[len(piece), piece.count("A"), 1e300 if piece == "huge" else 0] for piece in pieces]
        with np.errstate(over="ignore"):
            return np.array(vectors).astype(np.float32)


@pytest.fixture
def encoder(monkeypatch):
    """It, in the place of all others, with small blocks."""
    lengths = Lengths()
    monkeypatch.setattr(features, "_encoder_of", lambda *_: lengths)
    monkeypatch.setattr(features, "version", lambda name: "1")
    monkeypatch.setattr(features, "fingerprint_of", lambda folder: "f" * 64)
    monkeypatch.setattr(features, "model_folder", lambda name: name)
    for module in (files, texts):
        monkeypatch.setattr(module, "ITEMS_PER_BLOCK", 4)
    return lengths


def contents(folder, values):
    folder.mkdir(exist_ok=True, parents=True)
    for name, value in values.items():
        (folder / f"{name}.png").write_text(value)
    return str(folder)


def make(source, out, *, force=False, **more):
    request = ContentRequest("images", source, "model", **more)
    return features.make_features(request, str(out), force=force)


def table_of(path):
    table = parquet.read_table(path)
    return dict(zip(table["item_id"].to_pylist(), table["features"].to_pylist(), strict=True))


VALUES = {item: "A" * (item % 5) + "b" * (item % 3) + "c" for item in range(10, 30)}


def test_features_of_many_items(encoder, tmp_path):
    report = make(contents(tmp_path / "d", VALUES), tmp_path / "f.parquet")
    assert (report.num_items, report.width, report.device) == (20, 3, "cpu")
    assert table_of(tmp_path / "f.parquet") == {
        item: [len(value), value.count("A"), 0] for item, value in VALUES.items()
    }
    schema = parquet.read_schema(tmp_path / "f.parquet")
    assert schema.field("features").type == pa.list_(pa.float32(), 3)
    assert b'"model": "model"' in schema.metadata[b"diffmm_dist"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f.parquet"]


def test_all_pieces_of_an_item_count_alike(encoder, tmp_path):
    folder = tmp_path / "d"
    contents(folder / "x", {"1": "AAA|c", "2": "bb"})
    contents(folder / "y", {"1": "A"})
    make(str(folder), tmp_path / "f.parquet", id_from="folder")
    assert table_of(tmp_path / "f.parquet") == {"x": [2, 1, 0], "y": [1, 1, 0]}


def test_damaged_contents_are_told_together_and_what_is_made_stays(encoder, tmp_path):
    folder = contents(tmp_path / "d", VALUES | {11: "?", 25: "?"})
    with pytest.raises(UserError, match=r"damaged images: 2 \(11.png: it holds a question; 25.png: it.*--skip-damaged"):
        make(folder, tmp_path / "f.parquet")
    assert not (tmp_path / "f.parquet").exists()
    encoder.seen.clear()
    report = make(folder, tmp_path / "f.parquet", skip_damaged=True)
    assert encoder.seen == []
    assert report.num_items == 18
    assert any("left out as damaged, missing or empty: 2 (11.png" in note for note in report.notes)
    assert set(table_of(tmp_path / "f.parquet")) == set(VALUES) - {11, 25}


def test_files_that_are_missing_are_told_before_any_is_read(encoder, tmp_path):
    folder = contents(tmp_path / "d", VALUES)
    parquet.write_table(pa.table({"file": ["10.png", "none.png"], "item_id": [1, 2]}), tmp_path / "ids.parquet")
    with pytest.raises(UserError, match=r"damaged images: 1 \(none.png: it is not there\)"):
        make(folder, tmp_path / "f.parquet", ids=str(tmp_path / "ids.parquet"))
    assert encoder.seen == []
    make(folder, tmp_path / "f.parquet", ids=str(tmp_path / "ids.parquet"), skip_damaged=True)
    assert list(table_of(tmp_path / "f.parquet")) == [1]


def test_mended_contents_are_made_again_and_the_others_are_not(encoder, tmp_path):
    folder = contents(tmp_path / "d", VALUES | {11: "?"})
    with pytest.raises(UserError, match="damaged images"):
        make(folder, tmp_path / "f.parquet")
    encoder.seen.clear()
    report = make(contents(tmp_path / "d", {11: "mended"}), tmp_path / "f.parquet")
    assert len(encoder.seen) == 4
    assert "1 blocks were made again, since their contents have changed" in report.notes
    assert table_of(tmp_path / "f.parquet")[11] == [6, 0, 0]


def test_a_command_that_was_stopped_goes_on_to_the_same_bytes(encoder, tmp_path):
    folder = contents(tmp_path / "d", VALUES | {22: "stop"})
    make(folder, tmp_path / "whole.parquet")
    total = len(encoder.seen)
    encoder.fail_at = "stop"
    with pytest.raises(RuntimeError, match="killed"):
        make(folder, tmp_path / "f.parquet")
    assert len(list((tmp_path / ".f.parquet.parts").glob("*.arrow"))) == 3
    encoder.fail_at = None
    encoder.seen.clear()
    make(folder, tmp_path / "f.parquet")
    assert len(encoder.seen) == total - 12
    assert (tmp_path / "f.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not (tmp_path / ".f.parquet.parts").exists()


@pytest.fixture
def stopped(encoder, tmp_path):
    """A folder whose command was stopped at its end."""
    folder = contents(tmp_path / "d", VALUES | {29: "stop"})
    encoder.fail_at = "stop"
    with pytest.raises(RuntimeError, match="killed"):
        make(folder, tmp_path / "f.parquet")
    encoder.fail_at = None
    encoder.seen.clear()
    return folder


def test_other_settings_are_refused_or_begin_anew(stopped, encoder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"with batch_size 32 \(now 8\); give the same again"):
        make(stopped, tmp_path / "f.parquet", batch_size=8)
    monkeypatch.setattr(features, "fingerprint_of", lambda folder: "e" * 64)
    with pytest.raises(UserError, match=r"with model ffffffffffffffff \(now eeeeeeeeeeeeeeee\)"):
        make(stopped, tmp_path / "f.parquet")
    assert encoder.seen == []
    make(stopped, tmp_path / "f.parquet", force=True)
    assert len(encoder.seen) == 20


def test_a_damaged_part_is_made_again(stopped, encoder, tmp_path):
    part = min((tmp_path / ".f.parquet.parts").glob("*.arrow"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    make(stopped, tmp_path / "f.parquet")
    assert len(encoder.seen) == 8
    assert len(table_of(tmp_path / "f.parquet")) == 20


def test_two_commands_do_not_make_the_same_file(stopped, tmp_path):
    handle = os.open(tmp_path / ".f.parquet.parts", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another command is making"):
            make(stopped, tmp_path / "f.parquet")
    finally:
        os.close(handle)


def test_a_file_that_is_there_is_not_replaced_unasked(encoder, tmp_path):
    folder = contents(tmp_path / "d", VALUES)
    make(folder, tmp_path / "f.parquet")
    with pytest.raises(UserError, match="already exists; choose another place or pass --force"):
        make(folder, tmp_path / "f.parquet")
    make(contents(tmp_path / "d", {10: "AAAA"}), tmp_path / "f.parquet", force=True)
    assert table_of(tmp_path / "f.parquet")[10] == [4, 4, 0]


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [("huge", UserError, "NaN or infinite, the first of item 15"), ("!", TryAgainError, "does not answer")],
    ids=["infinite", "store"],
)
def test_what_no_option_leaves_out(value, error, words, encoder, tmp_path):
    with pytest.raises(error, match=words):
        make(contents(tmp_path / "d", VALUES | {15: value}), tmp_path / "f.parquet", skip_damaged=True)
    assert not (tmp_path / "f.parquet").exists()


def test_nothing_is_left_where_nothing_can_be_read(encoder, tmp_path):
    folder = contents(tmp_path / "d", dict.fromkeys(VALUES, "?"))
    with pytest.raises(UserError, match="damaged images: 4, such as 10.png"):  # of the first block, and no others
        make(folder, tmp_path / "f.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    with pytest.raises(UserError, match="no item has content that can be read: 20, such as"):
        make(folder, tmp_path / "f.parquet", skip_damaged=True)


def test_too_little_memory_is_told_with_what_helps(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "encode", lambda pieces: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")))
    with pytest.raises(UserError, match="give a smaller --batch-size"):
        make(contents(tmp_path / "d", VALUES), tmp_path / "f.parquet")


def test_texts_without_content_are_refused_before_the_model_is_asked(encoder, tmp_path):
    parquet.write_table(pa.table({"item_id": [1, 2], "title": ["A", " "]}), tmp_path / "t.parquet")
    request = ContentRequest("texts", str(tmp_path / "t.parquet"), "model", text_columns=("title",))
    with pytest.raises(UserError, match=r"items without text: 1 \(item 2: it has no text in title\)"):
        features.make_features(request, str(tmp_path / "f.parquet"))
    assert encoder.seen == []


def test_all_mistakes_are_told_at_once(run_cli, tmp_path):
    status, _, error = run_cli(
        "prepare", "features", "--images", tmp_path / "none", "--model", tmp_path / "no-model", "--out",
        tmp_path / "f.csv", "--text", "title", "--device", "gpu", "--batch-size", 0, "--max-seconds", "nan",
    )  # fmt: skip
    assert status == 1
    for words in (
        "--device gpu is none of", "--text belongs to --texts", "--batch-size must be", "--max-seconds must be",
        "must end in .parquet", "none does not exist", "no-model is neither a folder nor",
    ):  # fmt: skip
        assert words in error


@pytest.mark.parametrize("given", [[], ["--images", "d", "--audio", "d"]], ids=["none", "two"])
def test_one_source_is_to_be_given(given, run_cli, tmp_path):
    status, _, error = run_cli("prepare", "features", *given, "--model", "m", "--out", tmp_path / "f.parquet")
    assert status == 1
    assert "give one of --images, --texts and --audio" in error


def test_an_extra_that_is_not_installed_is_named(run_cli, tmp_path, monkeypatch):
    def none(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(features, "version", none)
    folder = contents(tmp_path / "d", VALUES)
    status, _, error = run_cli(
        "prepare", "features", "--images", folder, "--model", "m", "--out", tmp_path / "f.parquet"
    )
    assert status == 1
    assert "--images needs torch: install it with pip install 'diffmm-dist[features]'" in error


def model_of(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return str(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["README.md"], "holds no config.json"),
        (["config.json"], "it holds no weights"),
        (["config.json", "pytorch_model.bin"], r"its weights are pickled \(pytorch_model.bin\)"),
        (["config.json", "model.safetensors", "2_Dense/pytorch_model.bin"], r"pickled \(2_Dense/pytorch_model.bin\)"),
    ],
    ids=["no model", "no weights", "pickle", "pickled layer"],
)
def test_models_that_are_refused(names, words, tmp_path):
    with pytest.raises(UserError, match=words):
        model_folder.model_folder(model_of(tmp_path / "m", *names))


def test_a_model_is_known_by_its_content(tmp_path):
    one = model_of(tmp_path / "a", "config.json", "model.safetensors", "pytorch_model.bin")
    other = model_of(tmp_path / "b", "config.json", "model.safetensors")
    assert model_folder.model_folder(one) == one
    assert model_folder.fingerprint_of(one) == model_folder.fingerprint_of(other)
    (tmp_path / "b" / "model.safetensors").write_bytes(b"[]")
    assert model_folder.fingerprint_of(one) != model_folder.fingerprint_of(other)


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def no_answer(name, *, revision, **_):
        assert (name, revision) == ("owner/model", "refs/pr/3")
        raise hub.errors.LocalEntryNotFoundError("no network") from ConnectionError("name not known")

    monkeypatch.setattr(hub, "snapshot_download", no_answer)
    with pytest.raises(TryAgainError, match="owner/model is no folder here, and the hub did not give it: no network"):
        model_folder.model_folder("owner/model@refs/pr/3")
    with pytest.raises(UserError, match="is an address"):
        model_folder.model_folder("s3://bucket/model")
