"""Commands in pages, and their output: what a page shows is what the program prints."""

import re

_BLOCK = re.compile(r"```console\n(.*?)```", re.S)


def commands_of(page):
    """The commands of a page's console blocks, each with the lines that it prints there."""
    found: list[tuple[str, list[str]]] = []
    for block in _BLOCK.findall(page.read_text()):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def masked(line):
    """A line without what another run changes: numbers, the widths of columns, and how long a rule is."""
    line = re.sub(r"-?\d[\d,.]*", "#", line)
    return re.sub(r"\s+", " ", re.sub(r"─+", "─", line)).strip()


def shape_of(lines):
    """Masked lines, without empty ones."""
    return [text for text in map(masked, lines) if text]
