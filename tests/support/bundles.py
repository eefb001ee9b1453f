"""Small bundles in memory."""

import numpy as np
import pyarrow as pa

from diffmm_dist.bundles.bundle import Bundle
from diffmm_dist.bundles.files import FORMAT_NAME, Marker
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.bundles.recommender import Recommender
from diffmm_dist.bundles.rows import Rows


def random_array(num_rows, width, seed=0):
    return np.random.default_rng(seed).standard_normal((num_rows, width)).astype(np.float32)


def pairs_of(rows, items, *, num_rows, num_items):
    return Pairs.of(np.array(rows, np.int64), np.array(items, np.int64), num_rows=num_rows, num_items=num_items)


def random_pairs(num_rows, num_items, share=0.3, seed=0):
    found = np.random.default_rng(seed).random((num_rows, num_items)) < share
    return pairs_of(*np.nonzero(found), num_rows=num_rows, num_items=num_items)


def marker_of(num_users, num_items, width):
    """What bundle.json says of a bundle that lies nowhere."""
    return Marker(
        format=FORMAT_NAME, version=1, model="a model", best_epoch=0, num_users=num_users, num_items=num_items,
        num_seen=0, embedding_dim=width, dataset="", files={},
    )  # fmt: skip


def recommender(num_users=5, num_items=4, seen=None, ids=None, item_ids=None, width=3, content=None):
    """A recommender of random embeddings: users 100, 101, ... and items "item 0", "item 1", ..."""
    return Recommender(
        Bundle(
            pa.chunked_array([ids if ids is not None else pa.array(range(100, 100 + num_users))]),
            pa.chunked_array([item_ids if item_ids is not None else pa.array([f"item {i}" for i in range(num_items)])]),
            Rows([random_array(num_users, width, 1)], width),
            Rows([random_array(num_items, width, 2)], width),
            seen or pairs_of([], [], num_rows=num_users, num_items=num_items),
            marker_of(num_users, num_items, width),
        ),
        content,
    )
