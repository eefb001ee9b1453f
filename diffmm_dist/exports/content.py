"""What `export` learns for items that are only features (docs/cold-start.md).

The features of an item are taken as directions: of each modality f_m, divided by its length, less the mean of all
items, divided by the standard deviation; side by side, and divided by their length once more: f. A projection of these
onto embeddings is learned from the trained items: W of (d, features) and b minimise

    sum over items of n_i^(1/2) |e_i - b - f_i W^T|^2 + r |W|^2

with n_i the number of users who know an item: few interactions say little about it. Then what predictions have beyond
their mean is scaled until the scores of known items, predicted so, vary as much as their real ones, and the mean
embedding is added, where each item counts as often as users know it.

Features are read in blocks, three times; what is held are arrays of (items, d) and the normal equations.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist.bundles.content import CONTENT, ContentMap, Modality, content_table, directions, unit
from diffmm_dist.bundles.files import Floats, Ints
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.data.dataset import Dataset

_RIDGE = 1e-2  # of the mean of the diagonal
_ITEMS_PER_BLOCK = 8192
Doubles = npt.NDArray[np.float64]


def content_tables(
    dataset: Dataset, item_rows: Ints, user_embeddings: Floats, item_embeddings: Floats, seen: Pairs
) -> dict[str, pa.Table]:
    """Return the table of the map by the file that it goes to; none where the dataset has no features.

    Args:
        dataset: what the run was trained on.
        item_rows: the row in the dataset of each item, in the order of the bundle.
        user_embeddings: in the order of the bundle, float32 (U, d).
        item_embeddings: likewise, float32 (I, d).
        seen: what users know, in rows of the bundle.
    """
    if not dataset.manifest.modalities:
        return {}
    place = np.argsort(item_rows)  # of the dataset's rows in the bundle
    found = learned_content(_Blocks(dataset), user_embeddings, item_embeddings[place], _by_item(seen, place))
    return {CONTENT: content_table(found)}


def _by_item(seen: Pairs, place: Ints) -> Pairs:
    """Return the users who know each item, items in the rows of the dataset."""
    return Pairs.of(seen.items, seen.rows(), num_rows=len(place), num_items=len(seen.counts)).take(place)


class _Blocks:
    """The features of a dataset's items, some rows at a time."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.names = list(dataset.manifest.modalities)

    def __iter__(self) -> Iterator[tuple[slice, dict[str, Floats]]]:
        start = 0
        for parts in zip(*(self._recut(name) for name in self.names), strict=True):
            yield slice(start, start + len(parts[0])), dict(zip(self.names, parts, strict=True))
            start += len(parts[0])

    def _recut(self, name: str) -> Iterator[Floats]:
        """Yield a modality's features in blocks of one size, whatever the size of those that are read.

        Ranges of rows would not do: a file is read from its beginning for each.
        """
        kept, count = [], 0
        for _, rows in self._dataset.stream_features(name):
            kept.append(rows.astype(np.float32))
            count += len(rows)
            if count >= _ITEMS_PER_BLOCK:
                together = np.concatenate(kept)
                whole = count - count % _ITEMS_PER_BLOCK
                yield from np.split(together[:whole], whole // _ITEMS_PER_BLOCK)
                kept, count = [together[whole:]], count - whole
        if count:
            yield np.concatenate(kept)


def learned_content(blocks: _Blocks, users: Floats, items: Floats, known_by: Pairs) -> ContentMap:
    """Return the map that fits the items best.

    Args:
        blocks: the features of consecutive items, as often as they are asked for.
        users: embeddings (U, d).
        items: embeddings (I, d).
        known_by: the users who know each item.
    """
    modalities = _centres(blocks)
    doubles = items.astype(np.float64)
    weights = _projection(blocks, modalities, doubles, np.sqrt(known_by.counts))
    predicted = np.concatenate([directions(features, modalities) @ weights.T for _, features in blocks])
    share = known_by.counts / max(int(known_by.counts.sum()), 1)
    mean: Doubles = share @ doubles
    centre: Doubles = share @ predicted
    gram: Doubles = users.T.astype(np.float64) @ users.astype(np.float64)
    real, ours = (_spread(rows - middle, gram, share) for rows, middle in ((doubles, mean), (predicted, centre)))
    scale = np.sqrt(real / ours) if ours > 0 else 0.0
    return ContentMap((mean - scale * centre).astype(np.float32), modalities, (scale * weights).astype(np.float32))


def _spread(rows: Doubles, gram: Doubles, count: Doubles) -> float:
    """Return the mean square, over items and users, of scores."""
    return float(count @ np.einsum("id,de,ie->i", rows, gram, rows, optimize=True))


def _centres(blocks: _Blocks) -> dict[str, Modality]:
    """Return the mean and the standard deviation of each modality, of features divided by their lengths."""
    sums: dict[str, Doubles] = {}
    squares = dict.fromkeys(blocks.names, 0.0)
    total = 0
    for rows, features in blocks:
        total += rows.stop - rows.start
        for name, values in features.items():
            lengthless = unit(values).astype(np.float64)
            sums[name] = sums.get(name, np.zeros(values.shape[1])) + lengthless.sum(axis=0)
            squares[name] += float((lengthless**2).sum())
    found = {}
    for name, of_columns in sums.items():
        mean = of_columns / total
        variance = squares[name] / (total * len(mean)) - float((mean**2).mean())
        deviation = np.sqrt(variance) if variance > 1e-12 else 1.0  # features that are all the same say nothing
        found[name] = Modality(mean.astype(np.float32), np.float32(deviation))
    return found


def _projection(blocks: _Blocks, modalities: Mapping[str, Modality], items: Doubles, weight: Doubles) -> Doubles:
    """Return W, (d, features), by the normal equations.

    Args:
        blocks: the features of consecutive items.
        modalities: what is known of each.
        items: embeddings (I, d).
        weight: of each item.
    """
    width = sum(len(modality.mean) for modality in modalities.values())
    gram, moment = np.zeros((width, width)), np.zeros((width, items.shape[1]))
    sum_f: Doubles = np.zeros(width)
    for rows, features in blocks:
        found = directions(features, modalities).astype(np.float64)
        weighted = found * weight[rows, None]
        gram += weighted.T @ found
        moment += weighted.T @ items[rows]
        sum_f += weighted.sum(axis=0)
    total = max(float(weight.sum()), 1.0)
    gram -= np.outer(sum_f, sum_f) / total  # of what features and embeddings have beyond their weighted means
    moment -= np.outer(sum_f, weight @ items) / total
    ridge = _RIDGE * float(np.trace(gram)) / width or 1.0  # features that say nothing
    return np.linalg.solve(gram + max(ridge, 1e-12) * np.eye(width), moment).T.astype(np.float64)
