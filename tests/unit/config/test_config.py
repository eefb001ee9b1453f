from pathlib import Path

import pytest

from diffmm_dist.config.render import to_yaml
from diffmm_dist.errors import UserError
from diffmm_dist.runs.config import config_from_tree, load_config, reference_markdown
from tests.support.builders import ROOT

NEEDED = ["data.path=d", "run.path=r"]


def test_defaults_overrides_and_extends(tmp_path):
    (tmp_path / "base.yaml").write_text("data: {path: d}\nrun: {path: r, seed: 5}\nmodel: {num_layers: 2}\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\nrun: {path: other}\n")
    config = load_config(tmp_path / "top.yaml", ["model.embedding_dim=16", "train.learning_rate=1e-4", "eval.k=[20]"])
    assert (config.data.path, config.run.path, config.run.seed) == ("d", "other", 5)
    assert (config.model.num_layers, config.model.embedding_dim) == (2, 16)
    assert config.train.learning_rate == 1e-4
    assert config.eval.k == (20,)


def test_what_is_shown_reads_back():
    config = load_config(None, [*NEEDED, "model.modality_projection={visual: matrix, textual: affine}"])
    import yaml

    assert config_from_tree(yaml.safe_load(to_yaml(config)), source="test") == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.embeding_dim=3"], "unknown key 'model.embeding_dim'; did you mean 'embedding_dim'?"),
        (["modle.num_layers=3"], "unknown key 'modle'; did you mean 'model'?"),
        (
            ["model.diffusion.learning_rate=1"],
            "unknown key 'model.diffusion.learning_rate'; did you mean 'train.learning_rate'?",
        ),
        (["train.epochs=0"], "'train.epochs' is 0: it must be a whole number from 1 to 1000000000"),
        (
            ["model.contrast.temperature=0.001"],
            "'model.contrast.temperature' is 0.001: it must be a finite number of at least 0.03",
        ),
        (["train.learning_rate=.nan"], "'train.learning_rate' is nan"),
        (
            ["model.diffusion.edge_keep_prob=1.5"],
            "'model.diffusion.edge_keep_prob' is 1.5: it must be a finite number from 0 to 1",
        ),
        (["model.diffusion.denoiser_hidden_dims=[]"], "'model.diffusion.denoiser_hidden_dims' is []"),
        (
            ["model.name=difmm"],
            "'model.name' is 'difmm': it must be 'diffmm', 'adagcl', 'diffkg', 'promptmm', 'lightgcn' or 'popularity'",
        ),
        (
            ["eval.retrieved_ndcg=true", "eval.metric=ndcg_retrieved@20"],
            "'ndcg_retrieved@20' is no metric at a cut-off",
        ),
        (["eval.metric=recall@7"], "eval.metric 'recall@7' is not measured with eval.k"),
        (["model.diffusion.noise_min=0.5"], "model.diffusion.noise_min 0.5 is above model.diffusion.noise_max 0.02"),
        (
            ["model.diffusion.sampling_steps=9"],
            "model.diffusion.sampling_steps 9 exceeds model.diffusion.num_timesteps 5",
        ),
        (["model.diffusion.noise_scale=60"], "must stay below 1"),
        (["train.epochs"], "'train.epochs' is not of the form section.key=value"),
        (["train.epochs=[1"], "the value of 'train.epochs=[1' is not valid YAML"),
        (["train.batch_size=99999999999999999999"], "it must be a whole number from 1 to 1000000000"),
        (["data.modalities=[visual, visual]"], "data.modalities names one of visual, visual twice"),
        (["data.path=''"], "'data.path' is '': it must be text that is not empty"),
        (["run.seed=2024-02-30"], "the value of 'run.seed=2024-02-30' is not valid YAML"),
        (["cluster.num_workers=-1"], "'cluster.num_workers' is -1: it must be a whole number from 0 to 4096"),
    ],
)
def test_each_error_is_one_sentence(overrides, message):
    with pytest.raises(UserError) as error:
        load_config(None, NEEDED + overrides)
    assert message in str(error.value)
    assert str(error.value).count("; ") <= 1 + message.count("; ")


def test_all_errors_come_at_once():
    with pytest.raises(UserError) as error:
        load_config(
            None,
            ["model.embeding_dim=3", "train.epochs=-1", "x=1", "data.path=d", "eval.metric=best",
             "model.diffusion.noise_min=0.5", "model.diffusion.sampling_steps=9"],
        )  # fmt: skip
    for part in (
        "model.embeding_dim", "train.epochs", "'x=1'", "'run.path' is missing", "eval.metric 'best'",
        "model.diffusion.noise_min 0.5", "model.diffusion.sampling_steps 9",
    ):  # fmt: skip
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "is not valid YAML"),
        ("- a\n- b", "must hold sections"),
        ("model: {name: diffmm}\nmodel: {name: lightgcn}", "'model' is set twice"),
        ("extends: c.yaml", "'extends' leads back to this file"),
        ("train.epochs: 1", "unknown key 'train.epochs'; write it as a key under its section"),
        ("foo.bar: 1", "unknown key 'foo.bar'"),
        ("run: {seed: 2024-02-30}", "is not valid YAML"),
        ("train: 3", "'train' is 3"),
        ("", "must hold sections"),
        ("extends: 3", "'extends' must name one YAML file"),
        ("extends: nowhere.yaml", "cannot read the configuration"),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "c.yaml", NEEDED)


def test_the_reference_page_is_up_to_date():
    assert (ROOT / "docs" / "configuration.md").read_text() == reference_markdown()


CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "spaces")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_are_valid_and_say_how_to_run_them(path):
    load_config(path)
    header = path.read_text().split("\n\n")[0]
    for word in ("Command:", "Hardware:", "Expected:", f"--config {path.relative_to(ROOT)}"):
        assert word in header


# The published settings.
PUBLISHED = {
    "tiktok": (1e-4, 1e-2, 0.5, "affine", "main", 0.1, 0.5, 0.5),
    "baby": (1e-5, 1e-1, 0.5, "matrix", "modal", 0.01, 1.0, 0.5),
    "sports": (1e-6, 1e-2, 0.1, "affine", "modal", 0.5, 1.0, 0.1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    c = load_config(Path(ROOT) / "configs" / "diffmm" / f"{name}.yaml")
    m = c.model
    assert PUBLISHED[name] == (
        c.train.l2_weight, m.contrast.contrastive_weight, m.contrast.temperature, m.modality_projection,
        m.contrast.contrastive_anchor, m.diffusion.signal_weight, m.diffusion.edge_keep_prob, m.residual_weight,
    )  # fmt: skip
    assert (m.modal_graph_weight, m.embedding_dim, m.num_layers) == (0.2, 64, 1)
    assert (
        m.diffusion.num_timesteps,
        m.diffusion.rebuild_topk,
        m.diffusion.denoiser_hidden_dims,
    ) == (5, 1, (1000,))
    assert (c.train.epochs, c.train.batch_size, c.train.learning_rate, c.run.seed) == (50, 1024, 1e-3, 421)
