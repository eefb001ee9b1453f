"""What teacher and student both do: half-steps one after the other, the mean of layers, dropout of features."""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.propagate import Rows, items_from_users, users_from_items
from diffmm_dist.parallel.random import RandomStream

Dropout = Callable[[str], Tensor]  # from a modality to the factors of its items' rows, (I, D)


def there_and_back(graph: HeteroGraph, item_rows: Tensor, *, softmax: bool = False) -> Rows:
    """Return u = N_u i and N_i u, from the new u; with ``softmax`` of the rows of both, of u before it goes on."""
    users = users_from_items(graph, REAL, item_rows)
    users = F.softmax(users, dim=1) if softmax else users
    items = items_from_users(graph, REAL, users)
    return users, F.softmax(items, dim=1) if softmax else items


def sequential_layers(graph: HeteroGraph, tables: Rows, *, num_layers: int, softmax: bool) -> list[Rows]:
    """Return the layers 0 .. L, each there and back from the one before; with ``softmax`` the last one is softmaxed."""
    layers = [tables]
    for number in range(1, num_layers + 1):
        layers.append(there_and_back(graph, layers[-1][1], softmax=softmax and number == num_layers))
    return layers


def mean_of_layers(layers: Sequence[Rows]) -> Rows:
    """Return the mean of layers, of both sides."""
    users, items = (reduce(torch.add, rows) / len(layers) for rows in zip(*layers, strict=True))
    return users, items


def dropout_of(stream: RandomStream, purpose: str, item_ids: Tensor, *, width: int, dropout_prob: float) -> Dropout:
    """Return the dropout of a step, keyed by modality, item and column.

    Args:
        stream: of the step.
        purpose: whose dropout it is.
        item_ids: of own items, int64 (I,).
        width: D.
        dropout_prob: of each value.
    """
    return lambda modality: stream.child(purpose, modality).dropout_rows(item_ids, width, keep_prob=1 - dropout_prob)
