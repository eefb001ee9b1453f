"""The configurations and cluster files that come with the program, wherever it is installed."""

import os
from pathlib import Path

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.places import settle_local

PACKAGE = Path(__file__).parent
FOLDERS = ("configs", "cluster")


def write_examples(folder: str, *, force: bool) -> list[str]:
    """Write the example files into a folder.

    Files that are there and equal stay; nothing is written if another file is in the way.

    Args:
        folder: on a disk; made if it is not there.
        force: replace files of these names that differ.

    Returns:
        The paths of all files, relative to the folder.

    Raises:
        UserError: files differ from those that are there, or cannot be written.
    """
    target = Path(settle_local(folder)).resolve()
    source = _source()
    files = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for name in FOLDERS
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    changed = {path: data for path, data in files.items() if not _holds(target / path, data)}
    odd = sorted({str(above) for path in files for above in _above(target / path, target) if _is_no_folder(above)})
    if odd:
        raise UserError(f"{', '.join(odd)} should be folders and are not; choose another folder")
    in_the_way = [path for path in changed if os.path.lexists(target / path)]
    if any((target / path).is_dir() for path in in_the_way) or (in_the_way and not force):
        raise UserError(
            f"{', '.join(in_the_way)} in {folder} would be replaced; choose another folder, or pass --force for files"
        )
    for path, data in changed.items():
        storage.write_bytes(str(target / path), data)
    return sorted(files)


def _source() -> Path:
    """Return where the folders lie: in the installed package, or beside it in a clone."""
    installed = PACKAGE / "examples"
    return installed if installed.is_dir() else PACKAGE.parent


def _above(path: Path, target: Path) -> list[Path]:
    """Return the folders between a file and the target, both of them without the file itself."""
    return [above for above in path.parents if above == target or target in above.parents]


def _is_no_folder(path: Path) -> bool:
    """Tell a file in a folder's place, or a link that leads elsewhere, from a folder and from nothing."""
    return os.path.lexists(path) and (path.is_symlink() or not path.is_dir())


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and not path.is_symlink() and path.read_bytes() == data
