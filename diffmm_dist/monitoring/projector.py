"""The files in which TensorBoard's projector finds embeddings; they are plain text."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from diffmm_dist.safe_text import visible

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_CONFIG = """embeddings {{
  tensor_name: "{name}"
  tensor_path: "{name}/vectors.tsv"
  metadata_path: "{name}/labels.tsv"
}}
"""


def write_projector(
    folder: Path, name: str, vectors: "npt.NDArray[np.float32]", labels: Mapping[str, Sequence[str]]
) -> None:
    """Write embeddings below a folder of events, in place of those that are there.

    Args:
        folder: of the events.
        name: what the projector and the folder below call them.
        vectors: one a row, float32 (N, d).
        labels: what each row is, N texts each, by the names of at least two columns.
    """
    import numpy as np

    below = folder / name
    below.mkdir(parents=True, exist_ok=True)
    columns = [list(map(visible, column)) for column in labels.values()]
    lines = ["\t".join(cells) for cells in zip(*columns, strict=True)]
    table = "\n".join(["\t".join(labels), *lines, ""])
    write_whole(below / "vectors.tsv", lambda file: np.savetxt(file, vectors, fmt="%.6g", delimiter="\t"))
    write_whole(below / "labels.tsv", lambda file: file.write(table.encode()))
    write_whole(folder / "projector_config.pbtxt", lambda file: file.write(_CONFIG.format(name=name).encode()))


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that it is there whole or not at all, in place of one of the name."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # it may be a link
    with partial.open("xb") as file:
        write(file)
    partial.replace(path)
