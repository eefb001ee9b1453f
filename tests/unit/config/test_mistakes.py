"""What people write wrong into a configuration: every mistake at once, where it stands, in plain words."""

import math
import re
from operator import attrgetter

import pytest

from diffmm_dist.config.form import Form, every_form
from diffmm_dist.config.section import all_rules
from diffmm_dist.errors import UserError
from diffmm_dist.runs.config import Config, TrainConfig, config_from_text, load_config

NEEDED = ["data.path=d", "run.path=r"]
JARGON = re.compile(
    r"(?i:input should|nonetype|valid (tuple|dictionary|integer|number|string|boolean|list)|instance of|pydantic)|"
    r"\b(dict|tuple|union|str|int|float|bool|literal|None|True|False|type=\w*)\b|\w+Config\b|[Vv]alidation error"
)
WRONG = {
    "null": "null", "list": "[1, x, null]",
    "list of lists": "[[1]]", "empty list": "[]", "map": "{a: 1}", "text": "abc",
    "empty text": "''", "negative": "-1", "huge": "1" + "0" * 30, "nan": ".nan", "infinity": ".inf", "true": "true",
    "list of truths": "[true, true]", "float for int": "1.5", "date": "2024-02-03", "long text": "x" * 5000,
    "long list": f"[{', '.join(['x'] * 2000)}]",
}  # fmt: skip


def message(overrides, path=None):
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    return str(error.value)


def refused(key, text, *more):
    """The message about one value, None where it is taken."""
    others = [setting for setting in (*NEEDED, *more) if not setting.startswith(f"{key}=")]
    try:
        load_config(None, [*others, f"{key}={text}"])
    except UserError as error:
        return str(error)
    return None


KEYS = [(model, key) for model, form in every_form(Config) for key in form.settings if key != "model.name"]
SHARED = {key for key in Form(Config).settings if not key.startswith("model.")}


@pytest.mark.parametrize(("model", "key"), [one for one in KEYS if one[0] == "diffmm" or one[1] not in SHARED])
def test_a_wrong_value_of_any_kind_is_told_in_plain_words(model, key):
    for kind, value in WRONG.items():
        text = refused(key, value, f"model.name={model}")
        if text is None:
            assert_taken_rightly(model, key, kind)
            continue
        assert text.startswith("command line: ")
        assert text.count(key) == 1, "one mistake of a key, told once"
        assert not JARGON.search(text), text
        assert re.search("must (be|stay)|is no metric|is above|name each once", text)
        assert len(text) < 400


def assert_taken_rightly(model, key, kind):
    """What is taken is of the kind that its setting holds, never another kind turned into it."""
    value = attrgetter(key)(load_config(None, [*NEEDED, f"model.name={model}", f"{key}={WRONG[kind]}"]))
    expected = {
        "null": lambda: value is None, "empty list": lambda: value == (), "text": lambda: value == "abc",
        "long text": lambda: value == "x" * 5000, "true": lambda: value is True, "map": lambda: value == {"a": 1},
        "float for int": lambda: value == 1.5, "huge": lambda: isinstance(value, float) and math.isfinite(value),
        "negative": lambda: value < 0,
        "empty text": lambda: value == "", "long list": lambda: set(value) == {"x"},
    }  # fmt: skip
    assert expected[kind]()


@pytest.mark.parametrize("section", Config.model_fields)
@pytest.mark.parametrize("value", ["3", "abc", "[1]", "true", ".nan"])
def test_a_section_that_holds_no_keys_is_told_in_plain_words(section, value):
    with pytest.raises(UserError) as error:
        config_from_text(f"{section}: {value}\n", source="c.yaml")
    written = {"abc": "'abc'", ".nan": "nan"}.get(value, value)
    assert f"c.yaml: '{section}' is {written}: it must be" in str(error.value)
    assert not JARGON.search(str(error.value))


def test_an_empty_section_sets_nothing():
    config = config_from_text("data: {path: d}\nrun: {path: r}\ntrain:\n", source="c")
    assert config.train == TrainConfig()


def test_an_empty_file_is_told_in_plain_words(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    text = message([], tmp_path / "c.yaml")
    assert "must hold sections" in text
    assert "is empty" in text
    assert not JARGON.search(text)


# One mistake of each kind, and what names it.
KINDS = {
    "unknown key": ("model.embeding_dim=3", "unknown key 'model.embeding_dim'"),
    "unknown section": ("modle.name=x", "unknown key 'modle'"),
    "type": ("train.batch_size=many", "'train.batch_size' is 'many'"),
    "range": ("model.diffusion.edge_keep_prob=2", "'model.diffusion.edge_keep_prob' is 2"),
    "choice": ("graph.kernel=cuda", "'graph.kernel' is 'cuda'"),
    "one setting's rule": ("data.modalities=[a, a]", "data.modalities names one of a, a twice"),
    "metric": ("eval.metric=recall@7", "eval.metric 'recall@7'"),
    "rule inside a section": ("model.diffusion.noise_min=0.5", "model.diffusion.noise_min 0.5 is above"),
    "another of that section": ("model.diffusion.sampling_steps=9", "model.diffusion.sampling_steps 9 exceeds"),
    "rule across sections": ("model.denoiser.noise=hidden", "model.denoiser.noise=hidden cannot be had"),
    "pair": ("cluster.num_workers=[4, 1]", "cluster.num_workers=[4, 1] must give the fewest first"),
    "no value": ("checkpoint.keep", "'checkpoint.keep"),
    "no section": ("epochs=5", "'epochs=5' is not of the form"),
    "no YAML": ("run.seed=[1", "the value of 'run.seed=[1' is not valid YAML"),
    "missing": (None, "'run.path' is missing"),
}


def test_mistakes_of_all_kinds_come_in_one_list():
    overrides = ["data.path=d", "model.diffusion.normalize_input=true", *(one for one, _ in KINDS.values() if one)]
    text = message(overrides)
    for kind, (_, part) in KINDS.items():
        assert part in text, kind
    assert len({part for _, part in KINDS.values() if part in text}) == len(KINDS)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_any_two_kinds_of_mistakes_come_together(first, second):
    overrides = ["data.path=d", "model.diffusion.normalize_input=true"]
    overrides += [one for kind in (first, second) if (one := KINDS[kind][0])]
    overrides += [] if "missing" in (first, second) else ["run.path=r"]
    text = message(overrides)
    assert KINDS[first][1] in text
    assert KINDS[second][1] in text


@pytest.mark.parametrize(
    ("wrong", "silent"),
    [
        ("eval.k=0", "eval.metric"),
        ("model.diffusion.noise_max=x", "noise_min"),
        ("model.diffusion.num_timesteps=0", "sampling_steps"),
        ("model.denoiser.noise=loud", "normalize_input"),
    ],
)
def test_a_wrong_value_brings_no_mistakes_of_others(wrong, silent):
    others = ["eval.metric=recall@7", "model.diffusion.noise_min=0.015", "model.diffusion.sampling_steps=5"]
    text = message([*NEEDED, *(one for one in others if silent in one), wrong])
    assert silent not in text
    assert text.count(": it must be") == 1


def test_every_rule_is_kept_by_the_configuration_itself():
    broken = {"data": {"path": "d", "modalities": ["a", "a"]}, "run": {"path": "r"}, "eval": {"metric": "recall@7"}}
    with pytest.raises(ValueError, match=r"names one of a, a twice; .* eval\.metric 'recall@7'"):
        Config.model_validate(broken)
    assert {key for rule in all_rules(load_config(None, NEEDED)) for key in rule.keys} <= set(Form(Config).settings)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_each_mistake_is_told_where_it_stands(tmp_path):
    base = "train: {epochs: 0, batch_size: 0}\nmodel: {named: x, diffusion: {noise_max: 0.03}}\n"
    write(tmp_path / "base.yaml", base)
    top = "extends: ../base.yaml\ntrain: {batch_size: -1}\ndata: {path: d}\nx: 1\n"
    path = write(tmp_path / "sub" / "top.yaml", top)
    text = message(["eval.k=0", "model.diffusion.noise_min=0.5"], path)
    places = [tmp_path / "sub" / ".." / "base.yaml", path, "command line"]
    told = re.split("|".join(re.escape(f"{place}: ") for place in places), text)
    parts = dict(zip(["nothing", "base", "top", "line"], told, strict=True))
    assert ("'train.epochs' is 0" in parts["base"], "'model.named'" in parts["base"]) == (True, True)
    assert "'train.batch_size' is -1" in parts["top"]
    assert "unknown key 'x'" in parts["top"]
    assert "'run.path' is missing" in parts["top"]
    assert "'eval.k' is 0" in parts["line"]
    assert "model.diffusion.noise_min 0.5 is above model.diffusion.noise_max 0.03" in parts["line"]
    assert "train.batch_size' is 0" not in text


def test_a_mistake_that_the_command_line_mends_is_none(tmp_path):
    path = write(tmp_path / "c.yaml", "train: {epochs: 0}\n")
    assert load_config(path, [*NEEDED, "train.epochs=3"]).train.epochs == 3


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["epochs=5"], "did you mean train.epochs=5?"),
        (["epochs", "5"], "did you mean train.epochs=5?"),
        (["train.epochs", "5"], "did you mean train.epochs=5?"),
        (["train.epochs", "=", "5"], "did you mean train.epochs=5?"),
        (["train.epochs", "=5"], "did you mean train.epochs=5?"),
        (["--epochs", "5"], "did you mean train.epochs=5?"),
        (["--train.epochs=5"], "did you mean train.epochs=5?"),
        (["lr=0.1"], "did you mean train.learning_rate=0.1?"),
        (["batch-size=8"], "did you mean train.batch_size=8 or eval.batch_size=8?"),
        (["seed", "3"], "did you mean run.seed=3?"),
        (["temp=1"], "did you mean model.contrast.temperature=1"),
        (["train:epochs=5"], "is not of the form"),
        (["5"], "a setting is given as section.key=value"),
    ],
)
def test_settings_of_another_form_are_told_the_right_one(words, hint):
    text = message([*NEEDED, *words])
    assert hint in text
    assert text.count("is not of the form") == 1


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("TRAIN.EPOCHS=5", "did you mean 'train'?"),
        ("train.Epochs=5", "did you mean 'epochs'?"),
        ("epochs.train=5", "did you mean 'train.epochs'?"),
        ("model.epochs=5", "did you mean 'train.epochs'?"),
        ("model.modality_projection.visual=matrix", "did you mean 'modality_projection'?"),
    ],
)
def test_unknown_keys_are_told_the_nearest(override, hint):
    assert hint in message([*NEEDED, override])


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        (
            "",
            ["model.name=popularity", "model.embedding_dim=3"],
            ["'model.embedding_dim' is for model.name=diffmm or "],
        ),
        (
            "",
            ["model.name=lightgcn", "model.diffusion.num_timesteps=3"],
            ["for model.name=diffmm or diffkg, not lightgcn"],
        ),
        (
            "model: {name: lightgcn, diffusion: {noise_min: 1}}",
            [],
            ["c.yaml: 'model.diffusion' is for model.name=diffmm"],
        ),
        ("model: {name: [1], num_layers: x}", [], ["'model.name' is [1]: it must be", "'model.num_layers' is 'x'"]),
        ("model: {diffusion: 3}", [], ["c.yaml: 'model.diffusion' is 3: it must be a section with keys under it"]),
        ("", ["model.diffusion=3"], ["'model.diffusion' is a section; set its keys, such as model.diffusion.num_"]),
        ("model: {diffusion: {noise_mim: 1}}", [], ["'model.diffusion.noise_mim'; did you mean 'noise_min'?"]),
        ("model: {noise_min: 1}", [], ["unknown key 'model.noise_min'; did you mean 'model.diffusion.noise_min'?"]),
    ],
)
def test_settings_of_other_models_and_deep_ones(tmp_path, text, overrides, parts):
    (tmp_path / "c.yaml").write_text(f"data: {{path: d}}\nrun: {{path: r}}\n{text}\n")
    told = message(overrides, tmp_path / "c.yaml")
    assert [part for part in parts if part not in told] == [], told
    assert told.count("; ") <= 1 + len(parts)


@pytest.mark.parametrize("section", ["diffusion", "denoiser", "contrast"])
def test_the_former_form_is_told_the_new_key(tmp_path, section):
    """Until version 0.2 the model's sections stood beside the others."""
    keys = [key for key in Form(Config).settings if key.startswith(f"model.{section}.")]
    former = [key.removeprefix("model.") for key in keys]
    told = message([*NEEDED, *(f"{key}=1" for key in former)])
    in_file = write(tmp_path / "c.yaml", f"{section}: {{{', '.join(f'{key.split(chr(46))[1]}: 1' for key in former)}}}")
    for text in (told, message(NEEDED, in_file)):
        for key in former:
            assert f"unknown key '{key}'; did you mean 'model.{key}'?" in text


def test_a_layer_that_names_another_model_begins_the_section_anew(tmp_path):
    base = "data: {path: d}\nrun: {path: r}\nmodel: {embedding_dim: 8, diffusion: {num_timesteps: 9}}\n"
    write(tmp_path / "base.yaml", base)
    light = write(tmp_path / "light.yaml", "extends: base.yaml\nmodel: {name: lightgcn, num_layers: 3}\n")
    config = load_config(light, ["model.embedding_dim=5"])
    assert config.model.model_dump() == {"name": "lightgcn", "embedding_dim": 5, "num_layers": 3}
    assert load_config(light, ["model.name=popularity"]).model.model_dump() == {"name": "popularity"}
    assert load_config(light, ["model.name=lightgcn"]).model.num_layers == 3  # it is the same one
    again = load_config(light, ["model.name=diffmm"]).model
    assert (again.embedding_dim, again.diffusion.num_timesteps) == (64, 5)
    assert load_config(tmp_path / "base.yaml", ["model.name=diffmm"]).model.diffusion.num_timesteps == 9
