"""The equations of propagation as in the papers, on dense matrices; relation.py and propagate.py are the fast forms.

Shape suffixes: U users, I items, N = U + I nodes (users first), D embedding.
"""

import torch
from torch import Tensor

from diffmm_dist.graph.relation import Normalizer


def normalized_adjacency(
    interactions_UI: Tensor, *, normalizer: Normalizer = "symmetric", self_loops: bool = True
) -> Tensor:
    """Return the bipartite graph's matrix, (N, N), with D the sums of the rows of A, or of A + I.

    D^-1/2 A D^-1/2 is that of Kipf and Welling, ICLR 2017, equation 2; the others are D^-1 A, D^-1/2 A (PromptMM) and
    A. Empty rows stay.
    """
    num_users, num_items = interactions_UI.shape
    adjacency_NN = torch.eye(num_users + num_items) * self_loops
    adjacency_NN[:num_users, num_users:] = interactions_UI
    adjacency_NN[num_users:, :num_users] = interactions_UI.T
    degree_N = adjacency_NN.sum(dim=1).clamp(min=1)
    if normalizer == "symmetric":
        return adjacency_NN / degree_N.sqrt()[:, None] / degree_N.sqrt()
    powers = {"row": 1.0, "row_root": 0.5, "none": 0.0}
    return adjacency_NN / degree_N[:, None] ** powers[normalizer]


def layer_sum(adjacency_NN: Tensor, rows_ND: Tensor, *, num_layers: int) -> Tensor:
    """Return sum_{l=0..L} A^l rows, (N, D) (LightGCN, He et al., SIGIR 2020, equation 8, all weights 1)."""
    total_ND, layer_ND = rows_ND, rows_ND
    for _ in range(num_layers):
        layer_ND = adjacency_NN @ layer_ND
        total_ND = total_ND + layer_ND
    return total_ND


def relational_attention(
    rows_ND: Tensor, edges_E3: Tensor, relations_RD: Tensor, weight_2DD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_h + sum_t alpha(h, r, t) x_t of each node (N, D), the scores (E,) and alpha (E,) (DiffKG, "network").

    The score of an edge (h, r, t) is LeakyReLU_0.2([x_h || x_t] W . e_r), and alpha their softmax over the edges of h.

    Args:
        rows_ND: x.
        edges_E3: head, relation and tail of each edge, int64.
        relations_RD: e.
        weight_2DD: W, (2 D, D).
    """
    heads, relations, tails = edges_E3.T
    both_E2D = torch.cat([rows_ND[heads], rows_ND[tails]], dim=1)
    scores_E = torch.nn.functional.leaky_relu((both_E2D @ weight_2DD * relations_RD[relations]).sum(dim=1), 0.2)
    attention_E, out = torch.zeros_like(scores_E), [row for row in rows_ND]
    for head in heads.unique().tolist():
        own = heads == head
        attention_E = attention_E.masked_scatter(own, torch.softmax(scores_E[own], dim=0))
        out[head] = rows_ND[head] + attention_E[own] @ rows_ND[tails[own]]
    return torch.stack(out), scores_E, attention_E
