"""The pages of the project, their blocks of code, and where these run: what a page shows is what the program prints.

A block of commands runs in a test, by itself or with its page, or has a comment before it that says what it needs:

    <!-- needs: a Kubernetes cluster -->
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.builders import ROOT

PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "cluster" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "diffmm_dist" / "models").glob("*/README.md")),
]  # fmt: skip
CODE = ("console", "python", "sh")  # languages of what can be run
DATA = ("csv", "json", "text", "yaml")

# Which test runs the blocks of a page that have no mark; it names the page.
RUN_BY = {
    "README.md": "tests/unit/test_pages_run.py",
    "docs/adding-a-model.md": "tests/unit/test_docs_example.py",
    "docs/api.md": "tests/unit/test_pages_run.py",
    "docs/data-format.md": "tests/unit/test_pages_run.py",
    "docs/doctor.md": "tests/unit/test_doctor.py",
    "docs/features.md": "tests/integration/test_features_from_content.py",
    "docs/quickstart.md": "tests/unit/test_pages_run.py",
    "docs/serving.md": "tests/integration/test_serve.py",
    "docs/take-home.md": "tests/unit/test_pages_run.py",
    "docs/tutorial.md": "tests/integration/test_tutorial.py",
}

_BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>[^\n]+) -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"\n]+)")?\n(?P<text>.*?)^```$',
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: behind the fence.
        text: what stands in it.
        needs: why no test runs it, empty if one does.
        title: the file that it is; empty if it is none.
    """

    language: str
    text: str
    needs: str
    title: str

    def commands(self) -> list[tuple[str, list[str]]]:
        """Return the commands of a shell's block, continued lines joined, each with the lines that it prints there."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            if self.language == "sh":
                command = re.sub(r"(^|\s+)#( .*)?$", "", line)
                found += [(command, [])] if command.strip() else []
            elif line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
        return found


def name_of(page: Path) -> str:
    """Return a page's path in the project."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(*(one[part] or "" for part in ("language", "text", "needs", "title"))) for one in found]


def without_blocks(text: str) -> str:
    """Return a page's text without its fenced blocks, and without the marks before them."""
    return _BLOCK.sub("", text)


def commands_of(page: Path) -> list[tuple[str, list[str]]]:
    """Return the commands of a page's blocks that run in tests, each with the lines that it prints there."""
    shells = (one for one in blocks_of(page) if one.language in ("console", "sh") and not one.needs)
    return [command for block in shells for command in block.commands()]


def masked(line: str) -> str:
    """Return a line without what another run changes: numbers, the widths of columns, and how long a rule is."""
    line = re.sub(r"-?\d[\d,.]*", "#", line)
    return re.sub(r"\s+", " ", re.sub(r"─+", "─", line)).strip()


def shape_of(lines: list[str]) -> list[str]:
    """Return masked lines, without empty ones."""
    return [text for text in map(masked, lines) if text]
