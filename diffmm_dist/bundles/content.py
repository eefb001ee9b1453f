"""Items that are only features: an embedding from a map that `export` has learned (docs/cold-start.md).

``content.arrow`` holds a row for each feature: its modality, its mean over the items, the standard deviation of its
modality, and its weights (d,); and before them a row without a modality, the embedding b of an item without any:

    e = b + f W^T,

f being the features of each modality, divided by their length, less the means, divided by the deviation; side by side
and divided by their length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from diffmm_dist.bundles.files import Floats, Marker, read_table
from diffmm_dist.data.checks import check_finite
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.storage import join
from diffmm_dist.words import shown

CONTENT = "content.arrow"


def content_schema(width: int) -> pa.Schema:
    """Return the schema of content.arrow for embeddings of a width."""
    return pa.schema(
        [
            pa.field("modality", pa.string()),
            pa.field("mean", pa.float32()),
            pa.field("deviation", pa.float32()),
            pa.field("weights", pa.list_(pa.float32(), width)),
        ]
    )


class Modality(NamedTuple):
    """What is known of the features of a modality, each item's divided by their length.

    Attributes:
        mean: of each, float32 (width,).
        deviation: the standard deviation of all of them from their means.
    """

    mean: Floats
    deviation: np.float32


def directions(features: Mapping[str, Floats], modalities: Mapping[str, Modality]) -> Floats:
    """Return f: the features of all modalities side by side, as directions, float32 (n, features).

    Args:
        features: (n, width) by modality.
        modalities: in the order of f.
    """
    parts = [(unit(features[name]) - mean) / deviation for name, (mean, deviation) in modalities.items()]
    return unit(np.concatenate(parts, axis=1))


def unit(rows: Floats) -> Floats:
    """Return rows divided by their lengths; a row of zeros stays as it is."""
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)  # first by this, for squares to be neither inf nor 0
    largest[largest == 0] = 1
    scaled: Floats = np.divide(rows, largest, dtype=np.float32)
    lengths: Floats = np.linalg.norm(scaled, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    found: Floats = np.divide(scaled, lengths, dtype=np.float32)
    return found


@dataclass(frozen=True, eq=False)
class ContentMap:
    """A map from features to embeddings.

    Attributes:
        base: b, float32 (d,).
        modalities: by name, in the order of f.
        weights: W, float32 (d, features).
    """

    base: Floats
    modalities: Mapping[str, Modality]
    weights: Floats

    def items(self, features: Any) -> Floats:
        """Return embeddings of items, float32 (n, d).

        Args:
            features: (n, width) by modality, or that array alone where there is one modality.

        Raises:
            UserError: a modality is missing or not known, or the features are of another width or not finite.
        """
        is_mapping = isinstance(features, Mapping)
        tables = features if is_mapping else {next(iter(self.modalities)): features}
        names = sorted(self.modalities)
        if sorted(tables) != names or (not is_mapping and len(names) > 1):
            given = ", ".join(map(str, tables)) if is_mapping else "one array"
            raise UserError(f"features of {', '.join(names)} are needed, by name, and {given or 'none'} are given")
        rows = {name: self._rows(name, tables[name]) for name in self.modalities}
        counts = {name: len(table) for name, table in rows.items()}
        if len(set(counts.values())) > 1:
            described = ", ".join(f"{name} of {count:,}" for name, count in counts.items())
            raise UserError(f"the modalities have features of different numbers of items: {described}")
        return self.base + directions(rows, self.modalities) @ self.weights.T

    def _rows(self, name: str, values: Any) -> Floats:
        width = len(self.modalities[name].mean)
        try:
            rows = np.asarray(values)
            rows = rows.astype(np.float32, casting="same_kind" if rows.dtype.kind in "fc" else "unsafe")
        except (TypeError, ValueError) as error:
            raise UserError(f"modality '{name}': {shown(type(values).__name__)} is no array of numbers") from error
        if rows.ndim != 2 or rows.shape[1] != width:
            raise UserError(f"modality '{name}' has {width} features an item; an array of (n, {width}) is needed")
        check_finite(rows, modality=name)
        return rows


def content_table(found: ContentMap) -> pa.Table:
    """Return a map as content.arrow holds it."""
    columns = found.modalities.items()
    weights = np.concatenate([found.base[None, :], found.weights.T])
    return pa.Table.from_arrays(
        [
            pa.array(["", *(name for name, one in columns for _ in one.mean)], pa.string()),
            pa.array(np.concatenate([np.zeros(1, np.float32), *(one.mean for _, one in columns)])),
            pa.array([1.0, *(float(one.deviation) for _, one in columns for _ in one.mean)], pa.float32()),
            pa.FixedSizeListArray.from_arrays(pa.array(weights.reshape(-1)), weights.shape[1]),
        ],
        schema=content_schema(weights.shape[1]),
    )


def read_content(uri: str, marker: Marker) -> ContentMap | None:
    """Read the map of a bundle, comparing it with its checksum; None where it has none.

    Raises:
        DamagedError: it is not what was exported.
    """
    rows, width = marker.get("further", {}).get(CONTENT), marker["embedding_dim"]
    if rows is None:
        return None
    table = read_table(uri, CONTENT, marker, [content_schema(width)], rows)
    names = np.array(table.column("modality").to_pylist(), object)
    means, deviations = (table.column(name).to_numpy() for name in ("mean", "deviation"))
    weights = table.column("weights").combine_chunks().flatten().to_numpy().reshape(-1, width)
    order = list(dict.fromkeys(names.tolist()))
    is_sorted = names.tolist() == [name for name in order for _ in range(int((names == name).sum()))]
    is_sound = all(np.isfinite(values).all() for values in (means, deviations, weights)) and (deviations > 0).all()
    if not is_sorted or not is_sound or order[:1] != [""] or (names == "").sum() != 1 or len(order) == 1:
        raise DamagedError(f"{join(uri, CONTENT)} is damaged: it is no map of features; export the run again")
    modalities = {}
    for name in order[1:]:
        of_name = names == name
        modalities[name] = Modality(means[of_name], deviations[of_name][0])
    return ContentMap(weights[0], modalities, np.ascontiguousarray(weights[1:].T))
