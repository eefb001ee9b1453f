"""A plain twin of DiffMM's recommendation network from its equations: a COO product per propagation and modality for
every batch. The plain denoiser, rebuild and evaluation are in ``diffmm_dist/bench/plain.py``.

Shape suffixes: B batch, U users, I items, N = U + I nodes (users first), D embedding.
"""

from itertools import combinations

import torch
from torch import nn

from diffmm_dist.losses.equations import bpr, info_nce, l2
from tests.support.reference import diffmm_forward, project


def adjacency(users, items, num_users, num_items):
    """D^-1/2 (A + I) D^-1/2 of the edges (E,), (E,): coalesced COO (N, N); an edge given twice counts once."""
    size = (num_users + num_items, num_users + num_items)
    loops = torch.arange(size[0], device=users.device)
    places = torch.stack([torch.cat([users, items + num_users, loops]), torch.cat([items + num_users, users, loops])])
    ones = torch.ones(places.shape[1], device=users.device)
    places = torch.sparse_coo_tensor(places, ones, size, check_invariants=True).coalesce().indices()
    scale = torch.bincount(places[0]).float().pow(-0.5)
    values = scale[places[0]] * scale[places[1]]
    return torch.sparse_coo_tensor(places, values, size, check_invariants=True).coalesce()


class PlainDiffMM(nn.Module):
    """The recommendation network; its parameters have the names that they have in ``DiffMM``."""

    def __init__(self, num_users, features, projection, embedding_dim, **settings):
        """Of features (I, width) by modality; ``projection`` is ``matrix`` or ``affine``.

        The settings are num_layers, residual_weight and modal_graph_weight.
        """
        super().__init__()
        self.features, self.projection, self.settings = features, projection, settings
        num_items = len(next(iter(features.values())))
        self.user_embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_users, embedding_dim)))
        self.item_embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_items, embedding_dim)))
        self.modality_logits = nn.Parameter(torch.full((len(features),), 1 / len(features)))
        self.projections = nn.ModuleDict()
        for name, rows in features.items():
            matrix = nn.init.xavier_uniform_(torch.empty(rows.shape[1], embedding_dim))
            affine = nn.Linear(rows.shape[1], embedding_dim)
            self.projections[name] = affine if projection == "affine" else nn.ParameterDict({"weight": matrix})

    def projected(self, modality):
        """G^m, the projected features (I, D)."""
        layer = self.projections[modality]
        return project(self.features[modality], layer.weight, getattr(layer, "bias", None), self.projection)

    def forward(self, real, generated):
        """H (N, D) and each modality's C^m (N, D) from the real graph and a generated one per modality, COO (N, N)."""
        projected = [self.projected(name) for name in self.features]
        return diffmm_forward(
            self.user_embedding, self.item_embedding, projected, self.modality_logits, real, generated, **self.settings
        )


def recommend_step(
    model, optimizer, real, generated, users, pos, neg, *, batch_size, l2_weight, contrast_weight, temperature, anchor
):
    """One step on users, positive and negative items, (B,) each; the weighted bpr, l2 and contrast before it, all ().

    ``batch_size`` is the nominal one, ``anchor`` is ``main`` or ``modal``.
    """
    num_users = len(model.user_embedding)
    final, views = model(real, generated)
    rows, items = final[users], final[num_users:]
    losses = {
        "bpr": bpr(rows, items[pos], items[neg], divisor=batch_size),
        "l2": l2_weight * l2(model.user_embedding, model.item_embedding),
        "contrast": final.new_zeros(()),
    }
    for x, y in [(final, view) for view in views] if anchor == "main" else combinations(views, 2):
        of_users = info_nce(x[:num_users], y[:num_users], users, temperature=temperature)
        of_items = info_nce(x[num_users:], y[num_users:], pos, temperature=temperature)
        losses["contrast"] = losses["contrast"] + contrast_weight * (of_users + of_items)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}
