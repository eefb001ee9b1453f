"""Users and items that training has never seen: how good a bundle's lists are for them, beside simpler ones."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diffmm_dist import storage
from diffmm_dist.bench.held_out import write_without
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.paired import METRICS
from diffmm_dist.bundles.files import Floats, Ints
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.bundles.ranking import topk
from diffmm_dist.bundles.recommender import Filter, Recommender
from diffmm_dist.config.render import flatten
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.schema import Split
from diffmm_dist.evaluation.metrics import NAMES, MetricSums
from diffmm_dist.exports.bundle import export_run
from diffmm_dist.launch.local_job import run_here
from diffmm_dist.runs.config import Config, load_config
from diffmm_dist.sparse import CSR

K = 20
_RESAMPLES = 5000
_PER_BLOCK = 1024
Figures = npt.NDArray[np.float64]


def bench_coldstart(
    config: str, overrides: Sequence[str], *, users: float, items: float, seed: int, folder: str, out: str
) -> dict[str, Any]:
    """Train with everything, without some users, and without some items; measure all lists; write a JSON file.

    Args:
        config: of the runs, which is a file.
        overrides: settings beside it; data.path is the dataset of which users and items are left out.
        users: share of the users that are left out.
        items: share of the items that are left out.
        seed: of what is left out.
        folder: for datasets, runs and bundles; what is there already is gone on with.
        out: the JSON file.

    Returns:
        What was written.

    Raises:
        UserError: the dataset or the configuration cannot be used.
    """
    settings = load_config(config, [*overrides, f"run.path={folder}/unused"])
    dataset = Dataset.open(settings.data.path)
    drawn = np.random.default_rng(seed)
    held_users, held_items = (
        np.sort(drawn.choice(count, max(1, round(share * count)), replace=False))
        for count, share in ((dataset.num_users, users), (dataset.num_items, items))
    )
    recommenders = {}
    for name, rows in (("whole", None), ("users", held_users), ("items", held_items)):
        place = settings.data.path
        if rows is not None:
            place = f"{folder}/data-without-{name}"
            write_without(dataset, place, name, rows)
        words = [*overrides, f"data.path={place}", f"run.path={folder}/run-{name}"]
        recommenders[name] = _trained(load_config(config, words), f"{folder}/bundle-{name}")
    document: dict[str, Any] = {
        "command": command(),
        "machine": machine(),
        "config": json.loads(json.dumps(flatten(settings), default=str)),
        "dataset": {
            "fingerprint": dataset.manifest.fingerprint,
            "users": dataset.num_users,
            "items": dataset.num_items,
        },
        "seed": seed,
        "k": K,
        "fold_in": _fold_in(dataset, held_users, recommenders),
    }
    if dataset.manifest.modalities:
        document["cold_items"] = _cold_items(dataset, held_items, recommenders["items"])
    storage.write_json(out, document)
    return document


def _trained(config: Config, bundle: str) -> Recommender:
    run_here(config)
    export_run(config.run.path, bundle, force=True)
    return Recommender.load(bundle)


def _pairs(dataset: Dataset, *splits: Split) -> Pairs:
    """Return the interactions of some splits together."""
    found = [dataset.interactions(split) for split in splits]
    rows, items = (np.concatenate([getattr(csr, name).numpy() for csr in found]) for name in ("row_ids", "indices"))
    return Pairs.of(rows, items, num_rows=dataset.num_users, num_items=dataset.num_items)


def _fold_in(dataset: Dataset, held: Ints, recommenders: Mapping[str, Recommender]) -> dict[str, Any]:
    """Measure lists of users whom a run has never seen, from their training items, beside a run that has."""
    held = held[(_pairs(dataset, "test").counts[held] > 0) & (_pairs(dataset, "train").counts[held] > 0)]
    history = _pairs(dataset, "train").take(held)
    seen, truth = _pairs(dataset, "train", "valid").take(held), _pairs(dataset, "test").take(held)
    whole, without = recommenders["whole"], recommenders["users"]
    popularity = np.bincount(without.bundle.seen.items, minlength=dataset.num_items)
    similar = _similarities(dataset, None)
    lists = {
        "folded in": without.folded(history, K + int(seen.counts.max()), exclude_seen=True, rule=None).rows,
        "trained with them": whole.lists(held, K, exclude_seen=True, rule=None).rows,
        "folded in, by the run that was trained with them": whole.folded(
            history, K + int(seen.counts.max()), exclude_seen=True, rule=None
        ).rows,
        "popularity": _best_of(lambda block: np.tile(np.float32(popularity), (len(block), 1)), held, seen),
    }
    if similar is not None:
        lists |= {
            f"content kNN, {kind} cosine": _best_of(_neighbours(similar, similar, history, kind), held, seen)
            for kind in ("mean", "highest")
        }
    figures = {name: _figures(_without(rows, seen), truth, dataset.num_items) for name, rows in lists.items()}
    return {
        "users": len(held),
        "lists": {name: _summary(values) for name, values in figures.items()},
        "folded in / trained with them": _ratio(figures["folded in"][0], figures["trained with them"][0]),
    }


def _cold_items(dataset: Dataset, held: Ints, recommender: Recommender) -> dict[str, Any]:
    """Measure lists of items that a run has never seen, among these alone, for users who have interacted with them."""
    every = _pairs(dataset, "train", "valid", "test")
    place = np.full(dataset.num_items, -1)
    place[held] = np.arange(len(held))
    is_held = place[every.items] >= 0
    truth = Pairs.of(
        every.rows()[is_held], place[every.items[is_held]], num_rows=dataset.num_users, num_items=len(held)
    )
    history = recommender.bundle.seen
    users = np.flatnonzero((truth.counts > 0) & (history.counts > 0))
    features = {name: dataset.features(name).numpy()[held] for name in dataset.manifest.modalities}
    ids = [f"cold {row}" for row in held] if not recommender.items.are_numbers else list(-1 - held)
    more = recommender.cold_items(features, ids)
    rule = more.rule(Filter(allowed=ids))
    kept = np.setdiff1d(np.arange(dataset.num_items), held)
    first = len(recommender.items)
    similar = _similarities(dataset, kept)
    assert similar is not None
    nothing = Pairs(np.zeros(len(users) + 1, np.int64), np.empty(0, np.int64))
    lists = {"cold items": more.lists(users, K, exclude_seen=True, rule=rule).rows - first}
    for kind in ("mean", "highest"):
        score = _neighbours(similar[kept], similar[held], history.take(users), kind)
        lists[f"content kNN, {kind} cosine"] = _best_of(score, users, nothing)
    drawn = np.random.default_rng(0)
    lists["random"] = np.stack([drawn.permutation(len(held))[:K] for _ in users])
    figures = {name: _figures(rows, truth.take(users), len(held)) for name, rows in lists.items()}
    strongest = max((name for name in lists if "kNN" in name), key=lambda name: figures[name][0].mean())
    among_all = more.lists(users, K, exclude_seen=True, rule=None).rows
    return {
        "users": len(users),
        "items": len(held),
        "lists": {name: _summary(values) for name, values in figures.items()},
        "cold items / the better kNN": _ratio(figures["cold items"][0], figures[strongest][0]),
        "share of lists of all items": float((among_all >= first).mean()),
    }


def _similarities(dataset: Dataset, kept: Ints | None) -> Floats | None:
    """Return features whose inner products are cosines: of each modality centred, all together; None without any.

    Args:
        dataset: whose items' features are read.
        kept: the items whose mean is the centre, all by default.
    """
    parts = []
    for name in dataset.manifest.modalities:
        rows = dataset.features(name).numpy()
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        parts.append(rows - rows[slice(None) if kept is None else kept].mean(axis=0))
    if not parts:
        return None
    together = np.concatenate([part / max(float(part.std()), 1e-9) for part in parts], axis=1)
    normalized: Floats = together / np.maximum(np.linalg.norm(together, axis=1, keepdims=True), 1e-9)
    return normalized


def _neighbours(known: Floats, candidates: Floats, history: Pairs, kind: str) -> Any:
    """Return what scores candidates for a block of users by their cosines to what a user knows."""

    def scores(block: Ints) -> Floats:
        found = np.empty((len(block), len(candidates)), np.float32)
        for place, user in enumerate(block):
            cosines = known[history.of_row(int(user))] @ candidates.T
            found[place] = cosines.mean(axis=0) if kind == "mean" else cosines.max(axis=0)
        return found

    return scores


def _best_of(scores: Any, users: Ints, seen: Pairs) -> Ints:
    """Return the best candidates of each user by a function of blocks of places, without what is seen: (users, K)."""
    found = []
    for start in range(0, len(users), _PER_BLOCK):
        block = np.arange(start, min(start + _PER_BLOCK, len(users)))
        table, known = scores(block), seen.take(block)
        table[known.rows(), known.items] = -np.inf
        lists = topk(table, K)
        found.append(np.where(lists.scores > -np.inf, lists.rows, -1))
    return np.concatenate(found)


def _without(lists: Ints, seen: Pairs) -> Ints:
    """Return the first K of each list that the user has not seen."""
    found = np.full((len(lists), K), -1)
    for row, listed in enumerate(lists):
        kept = listed[(listed >= 0) & ~np.isin(listed, seen.of_row(row))][:K]
        found[row, : len(kept)] = kept
    return found


def _figures(lists: Ints, truth: Pairs, num_items: int) -> Figures:
    """Return recall and ndcg at K of each user, (2, users)."""
    sums = MetricSums([K], num_items=num_items, device=torch.device("cpu"))
    wanted = CSR(torch.from_numpy(truth.indptr), torch.from_numpy(truth.items), num_items)
    of_users = sums.per_user(torch.from_numpy(lists[:, :num_items]), wanted)[0]
    found: Figures = of_users[:, [NAMES.index(metric) for metric in METRICS]].T.numpy()
    return found


def _summary(figures: Figures) -> dict[str, float]:
    return {f"recall@{K}": float(figures[0].mean()), f"ndcg@{K}": float(figures[1].mean())}


def _ratio(first: Figures, second: Figures) -> dict[str, float]:
    """Return the ratio of two means, and the middle 95 % of it over resamples of the users."""
    drawn = np.random.default_rng(0).integers(0, len(first), (_RESAMPLES, len(first)))
    ratios = first[drawn].mean(axis=1) / np.maximum(second[drawn].mean(axis=1), 1e-12)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return {"ratio": float(first.mean() / max(second.mean(), 1e-12)), "low": float(low), "high": float(high)}
