"""The control groups that this process is in, versions 1 and 2: its own and those around it, whose limits hold too.

Standard library only.
"""

import re
from collections.abc import Iterator
from pathlib import Path


def own_groups(controller: str, *, root: Path = Path("/")) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those around it, innermost first.

    Args:
        controller: such as ``cpu`` or ``memory``; of version 2, which has one tree for all, it makes no difference.
        root: where ``proc`` and the mounted control groups are.
    """
    own = _paths(root, controller)
    for version, mounted, place in _mounts(root, controller):
        if version in own:
            yield from _up_to(root / place.lstrip("/"), _below(own[version], mounted))


def text_of(path: Path) -> str:
    """Return what a file of the kernel says, nothing if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _paths(root: Path, controller: str) -> dict[str, str]:
    """Return the paths of this process's control groups, of version 2 and of a controller of version 1."""
    own = {}
    for line in text_of(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            own["cgroup2"] = path
        elif controller in controllers.split(","):
            own["cgroup"] = path
    return own


def _mounts(root: Path, controller: str) -> Iterator[tuple[str, str, str]]:
    """Yield where control groups that may limit something are mounted: version, group at the top, and place."""
    for line in text_of(root / "proc/self/mountinfo").splitlines():
        place, _, described = line.partition(" - ")
        fields, (kind, *more) = place.split(), described.split() or [""]
        of_controller = kind == "cgroup" and controller in (more or [""])[-1].split(",")
        if len(fields) > 4 and (kind == "cgroup2" or of_controller):
            yield kind, _unescaped(fields[3]), _unescaped(fields[4])


def _unescaped(path: str) -> str:
    r"""Return a path of mountinfo, in which a blank is \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _below(group: str, mounted: str) -> str:
    """Return a group's path below the group that is mounted; the mounted one itself if the group is not inside it."""
    inside = group == mounted or group.startswith(mounted.rstrip("/") + "/")
    relative = group[len(mounted.rstrip("/")) :].strip("/") if inside else ""
    return "" if ".." in relative.split("/") else relative


def _up_to(top: Path, relative: str) -> Iterator[Path]:
    """Yield a folder and those above it, up to ``top``; one that cannot be seen from here has no files."""
    folder = top / relative
    while folder != top:
        yield folder
        folder = folder.parent
    yield top
