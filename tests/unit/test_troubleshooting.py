"""Every sentence of docs/troubleshooting.md is one that the program says."""

import ast
import re

import pytest

from tests.support.builders import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
SAID = re.findall(r"^### (.+)$", PAGE.read_text(), re.M)
VARIES = "…"


def template(node):
    """A text of the sources with … for each value that is put into it; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%s|%d", VARIES, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else VARIES for part in node.values)
    return None


TEMPLATES = {
    text
    for path in sorted((ROOT / "diffmm_dist").rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if (text := template(node)) is not None and len(text) > 8
}


def is_said(sentence):
    """Whether a text of the sources has all pieces of a sentence, in their order."""
    pieces = [piece.strip() for piece in sentence.split(VARIES)]
    pattern = re.compile(".*".join(map(re.escape, filter(None, pieces))))
    return any(pattern.search(text) for text in TEMPLATES)


def test_there_are_many():
    assert len(SAID) > 40
    assert len(set(SAID)) == len(SAID)


@pytest.mark.parametrize("sentence", SAID)
def test_the_program_says_it(sentence):
    assert is_said(sentence)


@pytest.mark.parametrize("sentence", [
    "run … has not ended; run its `train` command again", "the bundle lacks …", "… already exists; pass --force",
])  # fmt: skip
def test_another_sentence_is_not_taken_for_one(sentence):
    assert not is_said(sentence)
