"""What TensorBoard's projector is given of a run."""

from pathlib import Path


def items_of(run):
    """Vectors and numbers of training interactions, by item."""
    folder = Path(run) / "tensorboard" / "items"
    names, *labels = [line.split("\t") for line in (folder / "labels.tsv").read_text().splitlines()]
    assert names == ["item", "training interactions"]
    vectors = [list(map(float, line.split("\t"))) for line in (folder / "vectors.tsv").read_text().splitlines()]
    return {item: (vector, int(count)) for (item, count), vector in zip(labels, vectors, strict=True)}
