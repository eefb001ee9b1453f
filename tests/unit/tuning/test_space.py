"""What a search may vary: every form of it, and every mistake at once, by its name."""

import pytest
import yaml

from diffmm_dist.errors import UserError
from diffmm_dist.runs.config import load_config
from diffmm_dist.tuning.space import Choice, Range, as_tree, own_values, read_space, space_of, with_values
from tests.support.builders import ROOT, small_config

CONFIG = small_config("d", "r")


def of(text):
    return space_of(yaml.safe_load(text), CONFIG, source="space.yaml")


def refusal(text):
    with pytest.raises(UserError) as error:
        of(text)
    return str(error.value)


@pytest.mark.parametrize(("text", "expected"), [
    ("train.learning_rate: {log: [1e-4, 1e-2]}", Range(1e-4, 1e-2, log=True)),
    ("model.residual_weight: {uniform: [0, 1]}", Range(0.0, 1.0)),
    ("model.residual_weight: {uniform: [0, 1], step: 0.25}", Range(0.0, 1.0, step=0.25)),
    ("model.embedding_dim: {int: [16, 256], step: 16}", Range(16, 256, whole=True, step=16)),
    ("model.embedding_dim: {log: true, int: [16, 256]}", Range(16, 256, whole=True, log=True)),
    ("model.num_layers: {choice: [1, 3]}", Choice((1, 3))),
    ("model.diffusion.denoiser_hidden_dims: {choice: [[8], [8, 8]]}", Choice(([8], [8, 8]))),
])  # fmt: skip
def test_every_form_is_read_and_written_as_it_was(text, expected):
    space = of(text)
    assert list(space.values()) == [expected]
    assert of(yaml.safe_dump(as_tree(space))) == space


@pytest.mark.parametrize(("text", "sentence"), [
    ("train.lr: {log: [1e-4, 1e-2]}", "did you mean 'train.learning_rate'?"),
    ("num_layers: {int: [1, 3]}", "unknown key 'num_layers'; did you mean 'model.num_layers'"),
    ("model.gates.gamma: {uniform: [-1, -0.5]}", "is for model.name=adagcl, not diffmm"),
    ("model: {num_layers: {int: [1, 3]}}", "'model' is a section; write whole keys, such as 'model.num_layers: ...'"),
    ("train.epochs: {int: [1, 3]}", "'train.epochs' is not searched"),
    ("eval.metric: {choice: [recall@5, recall@20]}", "'eval.metric' is not searched"),
    ("run.seed: {int: [1, 3]}", "'run.seed' is not searched"),
    ("model.residual_weight: {uniform: [-1, 1]}", "'model.residual_weight' is -1.0: it must be a finite number of at"),
    ("model.num_layers: {uniform: [1, 3]}", "it must be a whole number from 0 to 64"),
    ("model.contrast.contrastive_anchor: {choice: [main, modla]}", "is 'modla': it must be 'main' or 'modal'"),
    ("model.num_layers: {int: [3, 1]}", "it must be a list of two whole numbers, the lower one first"),
    ("model.num_layers: {int: [1.5, 3]}", "it must be a list of two whole numbers"),
    ("model.num_layers: {int: 3}", "it must be a list of two whole numbers"),
    ("train.l2_weight: {log: [0, 1]}", "on a logarithmic scale it must be above 0"),
    ("model.num_layers: {int: [1, 4], step: 2}", "with which 4 is not reached from 1"),
    ("model.num_layers: {int: [1, 4], step: 9}", "it must be a whole number above 0 and no more than the range"),
    ("model.num_layers: {int: [1, 4], step: 3, log: true}", "exclude one another"),
    ("model.num_layers: {int: [1, 4], log: often}", "it must be true or false"),
    ("train.l2_weight: {log: [1, 2], step: 1}", "has step beside log, which takes nothing"),
    ("train.l2_weight: {log: [1, 2], uniform: [1, 2]}", "it must be one of {uniform"),
    ("train.l2_weight: {unifrm: [1, 2]}", "did you mean 'uniform'?"),
    ("train.l2_weight: 3", "it must be one of {uniform"),
    ("model.num_layers: {choice: [1]}", "it must be a list of 2 to 1000 values"),
    ("model.num_layers: {choice: [1, 1]}", "names a value twice"),
    ("", "but is empty"),
    ("[1]", "must hold settings"),
])  # fmt: skip
def test_a_mistake_is_named(text, sentence):
    assert sentence in refusal(text)


def test_all_mistakes_come_at_once_and_name_the_file():
    text = refusal(
        "train.lr: {log: [1, 2]}\nmodel.num_layers: {int: [1, 3]}\nmodel.residual_weight: {uniform: [-1, 1]}"
    )
    assert text.startswith("space.yaml: ")
    assert "train.lr" in text
    assert "residual_weight" in text
    assert "num_layers" not in text


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the space"):
        read_space(str(tmp_path / "none.yaml"), CONFIG)
    (tmp_path / "s.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        read_space(str(tmp_path / "s.yaml"), CONFIG)


def test_values_take_their_places_and_are_checked_together():
    key = "model.diffusion.noise_min"
    assert with_values(CONFIG, {key: 0.01, "model.num_layers": 3}, source="t").model.num_layers == 3
    with pytest.raises(UserError, match="t000: .*noise_min 0.5 is above"):
        with_values(CONFIG, {key: 0.5}, source="t000")


def test_the_configurations_own_values_count_where_the_space_holds_them():
    assert own_values(of("train.learning_rate: {log: [1e-3, 1e-1]}"), CONFIG) == {"train.learning_rate": 0.01}
    assert own_values(of("train.learning_rate: {log: [1e-3, 5e-3]}"), CONFIG) is None
    assert own_values(of("model.embedding_dim: {int: [4, 12], step: 4}"), CONFIG) == {"model.embedding_dim": 8}
    assert own_values(of("model.embedding_dim: {int: [4, 14], step: 5}"), CONFIG) is None
    dims = "model.diffusion.denoiser_hidden_dims: {choice: [[16], [8]]}"
    assert own_values(of(dims), CONFIG) == {"model.diffusion.denoiser_hidden_dims": [16]}


SPACES = sorted((ROOT / "configs" / "spaces").glob("*.yaml"))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_spaces_that_come_with_the_program_are_valid_and_say_how_to_use_them(path):
    header = path.read_text().split("\n\n")[0]
    words = header.split()
    config = load_config(ROOT / words[words.index("--config") + 1], [f"model.name={path.stem}"])
    assert f"--space {path.relative_to(ROOT)}" in header
    assert own_values(read_space(str(path), config), config) is not None  # the first trial is that of the configuration
