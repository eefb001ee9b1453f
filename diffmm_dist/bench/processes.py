"""Processes of this machine, from Linux's own tables."""

from pathlib import Path


def descendants(pid: int) -> set[int]:
    """Return a process and all that it has started and that still belong to it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found
