"""Names in the pages: what they call by name exists, in the tree, the schema, the command line or the sources."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.support.builders import ROOT
from tests.support.commands import FIRST_WORDS, OPTIONS, SETTINGS, mistake_of_command, mistake_of_setting, refusal_of
from tests.support.pages import PAGES, blocks_of, without_blocks

PACKAGE = ROOT / "diffmm_dist"
NAMING = [page for page in PAGES if page.parent.name != "benchmarks"]  # what stands there is of the day it was measured
# What belongs to others: programs, systems, Python, the data that people bring, and the flags of the published program.
FOREIGN = {
    "kill", "docker", "compose", "make", "assert", "eval", "home", "user", "item", "OTHER", "acoustic", "textual",
    "taskset", "env_vars", "strptime", "DatasetDict", "save_to_disk", "M_MMAP_MAX", "backoffLimit", "envFrom",
    "maxReplicas", "minReplicas", "nolock", "local_lock",
}  # fmt: skip
PUBLISHED_FLAGS = re.compile(r"(?<=\| published flag \| key \|\n)(?:\|.*\n)+")


def text_of(page):
    """A page without what the published program calls its own things, which stands in a table's first column."""
    text = page.read_text()
    return PUBLISHED_FLAGS.sub(lambda table: re.sub(r"^\|[^|]*\|", "|", table[0], flags=re.M), text)


def spans(page):
    """What stands between backticks, outside of blocks of code."""
    text = without_blocks(text_of(page))
    return sorted({" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)})


@cache
def words_of_the_sources():
    """Every name and every word of a string in the sources, but not what only a docstring or a comment says."""
    found = set()
    for path in [*PACKAGE.rglob("*.py"), ROOT / "launch.py", *(ROOT / "tests").rglob("*.py")]:
        if path == Path(__file__):
            continue
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            found |= {getattr(node, field) for field in ("id", "attr", "name", "arg", "module")
                      if isinstance(getattr(node, field, None), str)}  # fmt: skip
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found |= set(re.findall(r"\w+", node.value))
    names = {part for key in SETTINGS for part in key.split(".")}
    files = {part for path in tree_of_the_project() for part in re.split(r"[/.]", path)}
    return found | names | files | set(re.findall(r"\w+", (ROOT / "pyproject.toml").read_text()))


@cache
def tree_of_the_project():
    """Every file and folder of the project, as paths from its root."""
    skipped = {".git", ".venv", "runs", "datasets", "bundles"}
    found = set()
    for path in ROOT.iterdir():
        if path.name not in skipped and not path.name.startswith(".venv"):
            found |= {str(inner.relative_to(ROOT)) for inner in [path, *path.rglob("*")]}
    return found


def exists(text, page=None):
    """Whether a path, perhaps with stars in it, is one from the root, the package, the tests or the page."""
    bases = [ROOT, PACKAGE, ROOT / "tests", *([page.parent] if page else [])]
    pattern = text.strip("/")
    if not pattern.strip("."):
        return False
    deep = "" if "/" in pattern else "**/"  # of a name alone it does not matter in which folder of the package it is
    found = [any(base.glob(f"{pattern}{suffix}")) for base in bases for suffix in ("", ".py")]
    return any(found) or any(any(base.glob(f"{deep}{pattern}")) for base in (PACKAGE, ROOT / "tests"))


def is_of_module(text):
    """Whether a text is a name of a module of the package, such as data.batches.EpochBatches."""
    module = text.replace(".", "/").rpartition("/")[0]
    return "/" in module and exists(module)


def all_words_known(text):
    """Whether the sources know every word of a text, but for placeholders in capitals and single letters."""
    text = re.sub(r"<\w+>|\b[A-Z]{2,}\b|\*\w*|\w*\*", " ", text)
    words = {word for word in re.findall(r"[A-Za-z_]\w*", text) if len(word) > 2}
    return words <= words_of_the_sources() | FOREIGN


def mistake_of(span, page):
    """What a span calls by a name that does not exist, or None."""
    for start in ("python launch.py ", "launch.py ", "diffmm-dist "):
        if span.startswith(start):
            return mistake_of_command(span.removeprefix(start).partition(" > ")[0])
    if span.startswith("bash "):
        return None if (ROOT / span.split()[1]).exists() else f"no file {span}"
    if span.startswith("make "):
        return None if re.search(rf"^{span.split()[1]}:", (ROOT / "Makefile").read_text(), re.M) else f"no {span}"
    if span.startswith("--"):
        return None if span.split()[0].partition("=")[0] in OPTIONS else f"no option {span}"
    words = span.split()
    if words[0] in FIRST_WORDS and len(words) > 1:
        return mistake_of_command(span)
    if not is_of_module(span) and (mistake := mistake_of_setting(span)):
        return mistake
    if re.fullmatch(r"[\w./*-]+", span) and exists(span, page):
        return None
    if re.match(r"(tests|docs|configs|cluster|diffmm_dist)/", span) or span.endswith(".py"):
        return f"no file {span}"
    return None if all_words_known(span) else f"nothing is called {span}"


@pytest.mark.parametrize("page", NAMING, ids=lambda page: str(page.relative_to(ROOT)))
def test_everything_that_a_page_names_exists(page):
    mistakes = {mistake_of(span, page) for span in spans(page)}
    assert mistakes - {None} == set()


def leaves(tree, above=()):
    """The settings of a tree, each by its dotted key."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, name))
        else:
            yield ".".join((*above, name)), value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_section_of_settings_that_a_page_shows_is_valid(page):
    for block in blocks_of(page):
        for key, value in leaves(yaml.safe_load(block.text) if block.language == "yaml" else {}):
            assert refusal_of(key, yaml.safe_dump(value, default_flow_style=True)) is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("span", [
    "q_samples", "models/diffmm/nets.py", "tests/golden/none.npz", "train.epoch", "train.epochs=0",
    "eval.metric=recall",
    "--no-such", "launch.py trains", "bench denoise --in x", "make tests", "python launch.py train --cfg x",
    "Dataset.streams_epoch",
    "recommend BUNDLE --everyone", "no_such_function()", "data.batches.EpochBatch", "bash .ci/runs slow", "tests/speed",
])  # fmt: skip
def test_a_name_that_does_not_exist_is_found(span):
    assert mistake_of(span, ROOT / "README.md") is not None
