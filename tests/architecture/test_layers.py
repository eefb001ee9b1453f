"""The rules of CONTRIBUTING.md that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffmm_dist.models.registry import FOLDERS
from tests.support.builders import ROOT

PACKAGE = ROOT / "diffmm_dist"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_imports_follow_the_layers():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


# What may not stand in the sources: code from text, unsafe loading, servers for everyone, and modules of the tests.
FORBIDDEN = [
    r"\beval\(",
    r"\bexec\(",
    r"pickle\.loads?\(",
    r"torch\.load\(",
    r"yaml\.load\((?!.*Loader)",
    r"0\.0\.0\.0",
    r"[\"']tests\.",  # the package stands without its tests
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe(path):
    for pattern in FORBIDDEN:
        assert not re.search(pattern, path.read_text()), pattern


def test_every_model_explains_itself():
    for folder in (PACKAGE / "models").iterdir():
        if folder.is_dir() and folder.name not in ("common", "__pycache__"):
            parts = {"__init__", "settings", "model", "recipe", "costs", "README"}  # costs may be a package
            assert parts <= {path.stem for path in folder.iterdir()}


WITHOUT_MODELS = [
    path
    for path in SOURCES
    if path.relative_to(PACKAGE).parts[0]
    in (
        "training",
        "config",
        "exports",
        "report",
        "bundles",
        "serve",
        "doctor",
        "api.py",
        "cli.py",
        "cli_completion.py",
        "cli_doctor.py",
        "cli_options.py",
        "cli_report.py",
        "cli_serve.py",
        "cli_take.py",
        "cli_usage.py",
    )
    or path in (PACKAGE / "models" / "base.py", PACKAGE / "models" / "recipe.py")
]
# Also what one model alone is made of; prefixes of temporary folders bear the package's name.
OF_MODELS = re.compile(rf"\b({'|'.join(FOLDERS)}|denois(e|ers?|ing)|contrast|gates?)\b(?!-)", re.I)


@pytest.mark.parametrize("path", WITHOUT_MODELS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_serves_every_model_names_none(path):
    found = [line for line in path.read_text().splitlines() if OF_MODELS.search(line)]
    assert found == []


def test_the_core_imports_without_the_large_packages():
    """The worker, and all that it stands on, imports where nothing of the cluster or the graph is installed."""
    missing = "sys.modules.update(dict.fromkeys(['ray', 'dgl', 's3fs', 'tensorboard']))"
    code = f"import sys; {missing}; import diffmm_dist.training.worker, diffmm_dist.cli"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_the_command_line_starts_without_torch():
    code = "import sys, diffmm_dist.cli; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted(PACKAGE.rglob("*.md"))]
LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
FILES = [*SOURCES, *(ROOT / "configs").rglob("*.yaml"), ROOT / "Makefile", ROOT / "launch.py"]
MENTIONS = [(path, page) for path in FILES for page in re.findall(r"docs/[\w/-]+(?:\.(?:md|json))?", path.read_text())]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda value: str(value).rsplit("/", 1)[-1])
def test_links_between_pages_lead_somewhere(page, link):
    assert (page.parent / link).exists()


@pytest.mark.parametrize(("path", "page"), MENTIONS, ids=lambda value: str(value).rsplit("/", 1)[-1])
def test_pages_that_sources_mention_exist(path, page):
    assert (ROOT / page).exists()
