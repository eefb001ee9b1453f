"""The equations of propagation as in the papers, on dense matrices; relation.py and propagate.py are the fast forms.

Shape suffixes: U users, I items, N = U + I nodes (users first), D embedding.
"""

import torch
from torch import Tensor


def normalized_adjacency(interactions_UI: Tensor) -> Tensor:
    """Return D^-1/2 (A + I) D^-1/2 of the bipartite graph, (N, N) (Kipf and Welling, ICLR 2017, equation 2)."""
    num_users, num_items = interactions_UI.shape
    adjacency_NN = torch.eye(num_users + num_items)
    adjacency_NN[:num_users, num_users:] = interactions_UI
    adjacency_NN[num_users:, :num_users] = interactions_UI.T
    scale_N = adjacency_NN.sum(dim=1).pow(-0.5)
    return scale_N[:, None] * adjacency_NN * scale_N


def layer_sum(adjacency_NN: Tensor, rows_ND: Tensor, *, num_layers: int) -> Tensor:
    """Return sum_{l=0..L} A^l rows, (N, D) (LightGCN, He et al., SIGIR 2020, equation 8, all weights 1)."""
    total_ND, layer_ND = rows_ND, rows_ND
    for _ in range(num_layers):
        layer_ND = adjacency_NN @ layer_ND
        total_ND = total_ND + layer_ND
    return total_ND
