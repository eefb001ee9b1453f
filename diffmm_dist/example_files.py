"""The configurations and cluster files that come with the program, wherever it is installed."""

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
    target = Path(settle_local(folder))
    source = _source()
    files = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for name in FOLDERS
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    changed = {path: data for path, data in files.items() if not _holds(target / path, data)}
    in_the_way = [path for path in changed if (target / path).exists()]
    if in_the_way and not force:
        raise UserError(
            f"{', '.join(in_the_way)} in {folder} would be replaced; choose another folder, or pass --force"
        )
    for path, data in changed.items():
        storage.write_bytes(str(target / path), data)
    return sorted(files)


def _source() -> Path:
    """Return where the folders lie: in the installed package, or beside it in a clone."""
    installed = PACKAGE / "examples"
    return installed if installed.is_dir() else PACKAGE.parent


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data
