"""Pictures as SVG."""

from typing import Any

from diffmm_dist import storage
from diffmm_dist.errors import UserError


def pyplot() -> Any:
    """Return matplotlib, drawing SVG.

    Raises:
        UserError: it is not installed.
    """
    try:
        import matplotlib as mpl

        mpl.use("svg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise UserError("--plot needs matplotlib; pip install matplotlib, or leave it out") from error
    return plt


def save(figure: Any, path: str) -> None:
    """Write a figure, the same bytes whenever it is drawn, and forget it."""
    with storage.replacing_file(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot().close(figure)
