"""Users who are only a list of items: an embedding from the items alone, without training (docs/cold-start.md).

A new user's embedding p is the ridge regression whose scores are 1 for the items N of the history and 0 for others:

    p minimises the sum over all items of (p . v_i - [i in N])^2 + r |p|^2,    p = (V^T V + r)^-1 sum of v_i over N,

with r the mean of the diagonal of V^T V, and then times r, which changes no order and brings scores to the scale of
inner products of embeddings.
"""

import numpy as np
import numpy.typing as npt

from diffmm_dist.bundles.files import Floats
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.bundles.rows import Rows


class FoldIn:
    """Makes embeddings of lists of items.

    Args:
        item_rows: embeddings of items V, (I, d).
    """

    def __init__(self, item_rows: Rows) -> None:
        self._items = item_rows
        gram: npt.NDArray[np.float64] = np.zeros((item_rows.width, item_rows.width))
        for _, block in item_rows.blocks():
            doubles = block.astype(np.float64)
            gram += doubles.T @ doubles
        ridge = float(np.trace(gram)) / len(gram) or 1.0  # embeddings of zeros
        self._solve = ridge * np.linalg.inv(gram + ridge * np.eye(len(gram)))

    def users(self, histories: Pairs) -> Floats:
        """Return an embedding for each history, float32 (histories, d); that of an empty one is zero."""
        rows = self._items.take(histories.items)
        sums: npt.NDArray[np.float64] = np.zeros((len(histories.counts), self._items.width))
        some = histories.counts > 0
        if some.any():
            sums[some] = np.add.reduceat(rows, histories.indptr[:-1][some], axis=0)
        return (sums @ self._solve).astype(np.float32)
