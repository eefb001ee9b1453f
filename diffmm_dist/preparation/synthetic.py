"""A seeded synthetic dataset whose modality features really carry the users' tastes, at any size.

Every item has one style per modality; its features are that style's centre plus noise, so a style can be read off the
features but not off the item's number. Every user likes a few styles of each modality. An interaction picks a modality,
one of the user's styles in it, and an item of that style by popularity, which follows a power law; a small share
ignores taste. So the modalities complement each other, and popularity alone explains little.

Users and items are generated in chunks, each from its own generator: memory is bounded by O(U + I) counters and one
chunk, whatever the number of interactions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist.data.schema import SPLITS
from diffmm_dist.data.writer import DatasetWriter, dataset_writer
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.synthetic_knowledge import KnowledgeSpec, write_knowledge

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_INTERACTIONS_PER_CHUNK = 1_000_000
_ROWS_PER_CHUNK = 16_384
_STYLES_PER_USER = 2
_POPULARITY_EXPONENT = 0.6
_ACTIVITY_SIGMA = 0.7
_TASTELESS_SHARE = 0.1
_FEATURE_NOISE = 0.5
_TASTE_ROUNDS = 8
_MIN_PER_USER = 3  # one for each split
_HELD_OUT_SHARE = 0.1
_LARGEST_WIDTH = 16_384


class _Purpose(IntEnum):
    """What a random generator is for; part of its seed."""

    CATALOGUE = 1
    ACTIVITY = 2
    INTERACTIONS = 3
    CENTRES = 4
    FEATURES = 5
    KNOWLEDGE = 6


@dataclass(frozen=True)
class SyntheticSpec:
    """What to generate.

    Attributes:
        num_users: U.
        num_items: I.
        num_interactions: of all splits together, met exactly.
        modalities: width of the features by modality.
        seed: the same seed gives the same dataset.
        knowledge: a knowledge graph about the items, if there is to be one.
    """

    num_users: int
    num_items: int
    num_interactions: int
    modalities: Mapping[str, int]
    seed: int
    knowledge: KnowledgeSpec | None = None

    def check(self) -> None:
        """Raise a ``UserError`` if no such dataset exists."""
        wrong = []
        least, most = self.num_users * _MIN_PER_USER, self.num_users * (self.num_items // 2)
        if self.num_users < 1 or self.num_items < 2 * _MIN_PER_USER:
            wrong.append(
                f"synthetic data needs at least 1 user and {2 * _MIN_PER_USER} items; raise --users or --items"
            )
        elif not least <= self.num_interactions <= most:
            wrong.append(
                f"{self.num_interactions} interactions do not fit {self.num_users} users and {self.num_items} items; "
                f"choose between {least} (three each) and {most} (half of all pairs)"
            )
        wrong += [
            f"modality '{name}:{width}' must be a name and a width from 1 to {_LARGEST_WIDTH}, as in visual:64"
            for name, width in self.modalities.items()
            if not (name.isidentifier() and 1 <= width <= _LARGEST_WIDTH)
        ]
        wrong += self.knowledge.mistakes() if self.knowledge else ()
        if wrong:
            raise UserError("; ".join(wrong))

    def generator(self, *purpose: int) -> np.random.Generator:
        """Return the random generator of one purpose."""
        return np.random.default_rng([self.seed, *purpose])


@dataclass(frozen=True)
class _Catalogue:
    """Items grouped by style, once per modality, for drawing by popularity inside a style: G modalities, S styles.

    Attributes:
        styles: style of each item, (G, I).
        order: items sorted by style, (G, I).
        cumulative: running popularity in that order, from 0, (G, I + 1).
        bounds: where each style starts and ends in that order, (G, S + 1).
    """

    styles: Ints
    order: Ints
    cumulative: Floats
    bounds: Ints


def generate(spec: SyntheticSpec, out: str, *, force: bool = False) -> None:
    """Write a synthetic dataset.

    Raises:
        UserError: the sizes do not fit each other, or the place is taken.
    """
    spec.check()
    catalogue = _catalogue(spec)
    counts = _interactions_per_user(spec)
    groups, facts = list(spec.modalities) or ["style"], spec.knowledge
    axes = facts.axes(groups) if facts else None
    with dataset_writer(out, num_users=spec.num_users, num_items=spec.num_items, axes=axes, force=force) as writer:
        writer.made_by = {
            "importer": "synthetic",
            "seed": spec.seed,
            "interactions": spec.num_interactions,
            "modalities": dict(spec.modalities),
        }
        for chunk, users in enumerate(_user_chunks(counts)):
            _write_users(writer, spec, catalogue, counts, users, spec.generator(_Purpose.INTERACTIONS, chunk))
        for index, (name, width) in enumerate(spec.modalities.items()):
            _write_features(writer, spec, name, width, index, catalogue.styles[index])
        if facts:
            writer.made_by |= {"entities": facts.num_entities, "facts": facts.num_facts}
            write_knowledge(writer, facts, catalogue.styles, groups, spec.generator(_Purpose.KNOWLEDGE))
        for kind, total in (("users", spec.num_users), ("items", spec.num_items)):
            for start in range(0, total, _ROWS_PER_CHUNK):
                numbers = range(start, min(start + _ROWS_PER_CHUNK, total))
                writer.add_ids(kind, pa.array([f"{kind[:-1]}_{number}" for number in numbers]))


def _catalogue(spec: SyntheticSpec) -> _Catalogue:
    random = spec.generator(_Purpose.CATALOGUE)
    num_groups = max(1, len(spec.modalities))  # without modalities tastes exist but nothing shows them
    num_styles = int(np.clip(spec.num_items // 40, 2, 64))
    popularity = random.permutation((np.arange(spec.num_items) + 1.0) ** -_POPULARITY_EXPONENT)
    styles = random.integers(num_styles, size=(num_groups, spec.num_items))
    order = np.argsort(styles, axis=1, kind="stable")
    cumulative = np.zeros((num_groups, spec.num_items + 1))
    np.cumsum(popularity[order], axis=1, out=cumulative[:, 1:])
    counts = np.stack([np.bincount(row, minlength=num_styles) for row in styles])
    bounds = np.concatenate([np.zeros((num_groups, 1), np.int64), np.cumsum(counts, axis=1)], axis=1)
    return _Catalogue(styles, order, cumulative, bounds)


def _interactions_per_user(spec: SyntheticSpec) -> Ints:
    """Return log-normal activities that sum to the wanted total, each between the minimum and half of all items."""
    weights = spec.generator(_Purpose.ACTIVITY).lognormal(sigma=_ACTIVITY_SIGMA, size=spec.num_users)
    counts = np.full(spec.num_users, _MIN_PER_USER, dtype=np.int64)
    room = spec.num_items // 2 - counts
    counts += np.minimum(_share_out(spec.num_interactions - int(counts.sum()), weights), room)
    rest = spec.num_interactions - int(counts.sum())
    counts += _share_out(rest, (spec.num_items // 2 - counts).astype(np.float64))
    return counts


def _share_out(total: int, weights: Floats) -> Ints:
    """Split a total in proportion to weights, into whole numbers that sum to it."""
    if total == 0:
        return np.zeros(weights.size, dtype=np.int64)
    edges = np.rint(np.cumsum(weights) * (total / weights.sum())).astype(np.int64)
    edges[-1] = total
    shares: Ints = np.diff(edges, prepend=0)
    return shares


def _user_chunks(counts: Ints) -> list[range]:
    """Cut the users into consecutive ranges of about one chunk of interactions each."""
    chunk_of_user = (np.cumsum(counts) - 1) // _INTERACTIONS_PER_CHUNK
    starts = np.flatnonzero(np.diff(chunk_of_user, prepend=-1)).tolist()
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], counts.size], strict=True)]


def _write_users(
    writer: DatasetWriter,
    spec: SyntheticSpec,
    catalogue: _Catalogue,
    counts: Ints,
    users: range,
    random: np.random.Generator,
) -> None:
    wanted = counts[users.start : users.stop]
    keys = _draw_distinct(catalogue, wanted, spec.num_items, random)
    rows, items = keys // spec.num_items, keys % spec.num_items
    shuffled = np.lexsort((random.random(keys.size), rows))  # a random order inside each user
    rows, items = rows[shuffled], items[shuffled]
    place = np.arange(keys.size) - np.repeat(np.cumsum(wanted) - wanted, wanted)
    held_out = np.maximum(1, np.rint(wanted * _HELD_OUT_SHARE).astype(np.int64))[rows]
    split = np.where(place < held_out, 2, np.where(place < 2 * held_out, 1, 0))
    for index, name in enumerate(SPLITS):
        chosen = split == index
        chosen_keys = np.sort(rows[chosen] * spec.num_items + items[chosen])
        writer.add_interactions(name, chosen_keys // spec.num_items + users.start, chosen_keys % spec.num_items)


def _draw_distinct(catalogue: _Catalogue, wanted: Ints, num_items: int, random: np.random.Generator) -> Ints:
    """Return ascending keys ``row * I + item`` with ``wanted[row]`` distinct items per row."""
    num_groups, num_styles = catalogue.bounds.shape[0], catalogue.bounds.shape[1] - 1
    liked = random.integers(num_styles, size=(wanted.size, num_groups, _STYLES_PER_USER))
    keys = np.empty(0, dtype=np.int64)
    missing = wanted
    round_number = 0
    while missing.any():
        rows = np.repeat(np.arange(wanted.size), missing)
        if round_number < _TASTE_ROUNDS:
            items = _draw_by_taste(catalogue, liked, rows, random)
        else:  # the liked styles are used up; every row is at most half full, so this ends quickly
            items = random.integers(num_items, size=rows.size)
        keys = np.union1d(keys, rows * num_items + items)
        missing = wanted - np.bincount(keys // num_items, minlength=wanted.size)
        round_number += 1
    return keys


def _draw_by_taste(catalogue: _Catalogue, liked: Ints, rows: Ints, random: np.random.Generator) -> Ints:
    group = random.integers(catalogue.bounds.shape[0], size=rows.size)
    style = liked[rows, group, random.integers(_STYLES_PER_USER, size=rows.size)]
    start, stop = catalogue.bounds[group, style], catalogue.bounds[group, style + 1]
    tasteless = (random.random(rows.size) < _TASTELESS_SHARE) | (start == stop)
    start, stop = np.where(tasteless, 0, start), np.where(tasteless, catalogue.order.shape[1], stop)
    items = np.empty(rows.size, dtype=np.int64)
    for index in range(catalogue.bounds.shape[0]):  # over modalities
        mine = np.flatnonzero(group == index)
        running = catalogue.cumulative[index]
        low, high = running[start[mine]], running[stop[mine]]
        place = np.searchsorted(running, low + random.random(mine.size) * (high - low), side="right") - 1
        items[mine] = catalogue.order[index, np.clip(place, start[mine], stop[mine] - 1)]
    return items


def _write_features(
    writer: DatasetWriter, spec: SyntheticSpec, name: str, width: int, index: int, styles: Ints
) -> None:
    centres = spec.generator(_Purpose.CENTRES, index).standard_normal((int(styles.max()) + 1, width), dtype=np.float32)
    for chunk, start in enumerate(range(0, spec.num_items, _ROWS_PER_CHUNK)):
        own = styles[start : start + _ROWS_PER_CHUNK]
        noise = spec.generator(_Purpose.FEATURES, index, chunk).standard_normal((own.size, width), dtype=np.float32)
        writer.add_features(name, centres[own] + np.float32(_FEATURE_NOISE) * noise)
