"""Configurations that somebody wrote to do harm, or a disk has damaged: one sentence, at once, and nothing else."""

import os
import time

import pytest

from diffmm_dist.config.yaml_text import parse
from diffmm_dist.errors import UserError
from diffmm_dist.runs.config import config_from_text, load_config

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
MERGES = "m0: &m0 {k: 1}\n" + "".join(f"m{i + 1}: &m{i + 1} {{<<: [*m{i}, *m{i}]}}\n" for i in range(40))
HOSTILE = {
    "aliases that multiply": LAUGHS,
    "merges that multiply": MERGES,
    "lists nested deep": "[" * 5000,
    "maps nested deep": "{a: " * 5000,
    "blocks nested deep": "- " * 5000,
    "an alias inside itself": "a: &a [*a]",
    "a NUL": 'a: "\\0"',
    "half a character": 'a: "\\ud800"',
    "a control character": "a: \x1b[2J",
    "a value that its tag does not fit": "a: !!bool x",
    "a time that is none": "a: !!timestamp y",
    "a date that does not exist": "a: 2001-13-45",
    "a tag that runs code": "a: !!python/object/apply:os.system [ls]",
    "a number without end": "a: 0x" + "f" * 10_000,
    "a number in base 60 without end": "a: 1" + ":59" * 9_000,
    "a value without end": "a: " + "x" * 100_000,
    "a text without end": "x" * 300_000,
    "a key that is a list": "? [1, 2]\n: 3",
    "a key set twice": "a: 1\na: 2",
    "tabs": "a:\n\tb: 1",
    "two documents": "a: 1\n---\nb: 2",
    "an unknown alias": "a: *nope",
    "a merge of no map": "a: {<<: 1}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_one_short_sentence_at_once(kind):
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        config_from_text(HOSTILE[kind], source="c.yaml")
    assert str(error.value).startswith("c.yaml is not valid YAML: ")
    assert len(str(error.value)) < 300
    assert time.monotonic() - started < 20, "a bound, not a time: without it this takes minutes or for ever"
    with pytest.raises(UserError, match="is not valid YAML"):
        load_config(None, [f"data.path={HOSTILE[kind]}"])


def test_keys_are_text_and_each_is_kept():
    assert parse("{1: a, true: b, null: c, 2020-01-01: d}") == {"1": "a", "true": "b", "null": "c", "2020-01-01": "d"}


def test_what_a_merge_brings_in_yields_to_what_stands_there():
    text = "a: &b {k: 1, l: 1}\nt: &t {<<: *b, k: 2}\nz: {<<: *t}\nq: {<<: [*t, *b], l: 3}"
    assert parse(text)["z"] == {"k": 2, "l": 1}
    assert parse(text)["q"] == {"k": 2, "l": 3}


def many(folder, path):
    for number in range(30):
        (folder / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml")
    path.write_text("extends: 0.yaml")


def through_a_link(folder, path):
    path.write_text("extends: link.yaml")
    (folder / "link.yaml").symlink_to(path)


PLACES = {
    "device": lambda folder, path: path.symlink_to("/dev/zero"),
    "pipe": lambda folder, path: os.mkfifo(path),
    "folder": lambda folder, path: path.mkdir(),
    "itself": lambda folder, path: path.write_text("extends: c.yaml"),
    "itself through a link": through_a_link,
    "links in a circle": lambda folder, path: path.symlink_to(path),
    "nothing": lambda folder, path: None,
    "no text": lambda folder, path: path.write_bytes(bytes(range(128, 256))),
    "too large": lambda folder, path: path.write_text("#" * 300_000),
    "many": many,
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("extended", [False, True])
def test_a_configuration_is_a_regular_file_of_sensible_size(tmp_path, kind, extended):
    path = tmp_path / "c.yaml"
    PLACES[kind](tmp_path, path)
    top = tmp_path / "top.yaml"
    top.write_text("extends: c.yaml")
    with pytest.raises(UserError) as error:
        load_config(top if extended else path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a\0b.yaml", "\ud800.yaml"])
def test_names_that_no_file_has(tmp_path, name):
    with pytest.raises(UserError):
        load_config(str(tmp_path / name))
