"""Every command and every piece of code in a page runs in a test, or says what it needs; all of them can be read."""

import re

import pytest

from docs.hooks.command_line import reference
from tests.support.builders import ROOT
from tests.support.commands import COMMANDS, mistake_of_whole
from tests.support.pages import CODE, DATA, PAGES, RUN_BY, blocks_of, name_of, without_blocks

OURS = re.compile(r"(?:python launch\.py|\bdiffmm-dist) +((?!--)[^|#&<>]*)")
# A command in the running text, not the mere name of one: it says at least what it does with what.
INLINE = re.compile(r"`python launch\.py ((?:bench|train|prepare|partition|export) [^`]*(?:--|=)[^`]*)`")
IN_PROSE = re.compile(r"^(?: {4}|\t).*(?:python launch\.py|diffmm-dist |make [a-z]+|^ *import )", re.M)
BENCHMARKS = [page for page in PAGES if page.parent.name == "benchmarks"]
in_pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


def mistakes_in(page, *, runs):
    """What is wrong with the blocks of a page: no language, or neither a mark nor a test that runs them."""
    for block in blocks_of(page):
        first = block.text.partition("\n")[0]
        if block.language not in (*CODE, *DATA):
            yield f"no language behind the fence of: {first}"
        if block.language in CODE and not (block.needs or runs or of_the_gate(block)):
            yield f"no test runs this, and no comment says what it needs: {first}"


def of_the_gate(block):
    """Whether .ci/run runs all commands of a block."""
    made = [re.fullmatch(r"make (\w+)", line) for line in block.text.splitlines()]
    return all(one and re.search(rf"make .*\b{one[1]}$", (ROOT / ".ci" / "run").read_text(), re.M) for one in made)


@in_pages
def test_every_block_runs_in_a_test_or_says_what_it_needs(page):
    assert list(mistakes_in(page, runs=name_of(page) in RUN_BY)) == []
    assert IN_PROSE.findall(without_blocks(page.read_text())) == []


@pytest.mark.parametrize(("page", "test"), RUN_BY.items())
def test_the_test_that_runs_a_page_names_it(page, test):
    assert (ROOT / page).exists()
    assert page.rpartition("/")[2] in (ROOT / test).read_text()


@in_pages
def test_every_command_is_read_by_the_command_line(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = [
        command for block in blocks_of(page) if block.language in ("console", "sh") for command, _ in block.commands()
    ]
    whole = [text for command in shown for text in OURS.findall(command)]
    whole += INLINE.findall(page.read_text()) if page in BENCHMARKS else []
    assert {mistake_of_whole(text.strip()) for text in whole} - {None} == set()


@pytest.mark.parametrize("page", BENCHMARKS, ids=name_of)
def test_the_commands_of_benchmarks_say_what_they_need(page):
    text = without_blocks(page.read_text())
    first = INLINE.search(text)
    assert first is None or "<!-- needs: " in text[: first.start()]


def test_the_reference_of_the_command_line_is_up_to_date():
    if COMMANDS["inspect"].params[0].help is None:
        pytest.skip("the oldest releases of typer lose what arguments say of themselves beside a new click")
    assert (ROOT / "docs" / "command-line.md").read_text() == reference()


@pytest.mark.parametrize(("block", "said"), [
    ("```\nls\n```", "no language"), ("```sh\nls\n```", "no test runs this"),
    ("<!-- needs: a GPU -->\n\n```sh\nls\n```", "no test runs this"), ("```python\n1\n```", "no test runs this"),
    ("```sh\nmake demo\nmake nothing\n```", "no test runs this"),
])  # fmt: skip
def test_a_block_without_a_mark_is_found(block, said, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{block}\n")
    (mistake,) = mistakes_in(page, runs=False)
    assert said in mistake


@pytest.mark.parametrize(("command", "said"), [
    ("train --config configs/none.yaml", "cannot read"), ("train x.yaml train.epoch=3", "did you mean 'epochs'?"),
    ("prepare tables x.csv --out d --user u", "item"), ("bench denoise --sizes tiktok --out x.json", "--sizes"),
    ("recommend b --k three", "three"), ("trains", "no command"),
])  # fmt: skip
def test_a_command_that_cannot_be_read_is_found(command, said):
    assert said in mistake_of_whole(command)
