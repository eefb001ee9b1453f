"""A plain twin of DiffMM from its equations: dense rows of users, a reverse chain of 2 T dense products, a COO product
per propagation and modality for every batch, Python loops over users in rebuild and evaluation.

Shape suffixes: B batch, U users, I items, N = U + I nodes (users first), D embedding, K list length.
"""

import math
from itertools import combinations, pairwise

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.reference import denoising_losses, diffmm_forward, info_nce, project, reverse_chain


def time_embedding(t_B, width):
    """[cos(t w_j), sin(t w_j)] with w_j = 10000^(-j / (width // 2)), (B, width); odd widths end in 0."""
    half = width // 2
    angles = t_B[:, None] * torch.exp(-math.log(10_000) * torch.arange(half, device=t_B.device) / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class PlainDenoiser(nn.Module):
    """f(x_t, t): affine layers over [x_t, time embedding] with tanh between them, to all items."""

    def __init__(self, num_items, hidden_dims=(1000,), time_embedding_dim=10, dropout=0.0):
        """``dropout`` (0.5 as published) is on x_t, in training only."""
        super().__init__()
        self.dropout = dropout
        self.time_layer = nn.Linear(time_embedding_dim, time_embedding_dim)
        widths = [num_items + time_embedding_dim, *hidden_dims, num_items]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        for layer in (self.time_layer, *self.layers):
            nn.init.xavier_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.001)

    @classmethod
    @torch.no_grad()
    def copied(cls, denoiser, dropout=0.0):
        """One with the weights of a ``Denoiser`` that has all items, on its device."""
        assert denoiser.columns.world.size == 1
        assert denoiser.columns.by_id is None
        assert not denoiser.normalize_input
        hidden_dims = [len(denoiser.input_bias), *(layer.out_features for layer in denoiser.hidden_layers)]
        plain = cls(denoiser.columns.size, hidden_dims, denoiser.time_embedding_dim, dropout)
        time, hidden = denoiser.time_layer.parameters(), denoiser.hidden_layers.parameters()
        first = torch.cat([denoiser.input_weight, denoiser.input_time_weight]).T, denoiser.input_bias
        weights = [*time, *first, *hidden, denoiser.output_weight, denoiser.output_bias]
        for parameter, value in zip(plain.to(denoiser.input_bias.device).parameters(), weights, strict=True):
            parameter.copy_(value)
        return plain

    def forward(self, x_t_BI, t_B):
        """The prediction of the clean rows (B, I) from noisy ones (B, I) at timesteps (B,)."""
        time_emb = self.time_layer(time_embedding(t_B, self.time_layer.in_features))
        hidden = torch.cat([F.dropout(x_t_BI, self.dropout, self.training), time_emb], dim=1)
        for layer in self.layers[:-1]:
            hidden = torch.tanh(layer(hidden))
        return self.layers[-1](hidden)


def denoising_step(
    denoiser, optimizer, schedule, x_start_BI, t_B, noise_BI, modal_items_ID, item_table_ID, signal_weight
):
    """One step of a denoiser on dense rows (B, I); the mean elbo and msi before it, both ().

    G (I, D) and E_i (I, D) have no gradient. The schedule's tables must be on the device of the rows.
    """
    denoiser.train()
    elbo_B, msi_B = denoising_losses(schedule, denoiser, x_start_BI, t_B, noise_BI, modal_items_ID, item_table_ID)
    elbo, msi = elbo_B.mean(), msi_B.mean()
    optimizer.zero_grad()
    (elbo + signal_weight * msi).backward()
    optimizer.step()
    return elbo.detach(), msi.detach()


@torch.no_grad()
def rebuild(denoiser, schedule, x_start_UI, sampling_steps, k, batch_size):
    """The (user, item) pairs of each user's k largest denoised values, by user and falling value, from rows (U, I)."""
    denoiser.eval()
    edges = []
    for start in range(0, len(x_start_UI), batch_size):
        x_BI = x_start_UI[start : start + batch_size]
        if sampling_steps:
            signal = float(schedule.alphas_cumprod[sampling_steps - 1])
            x_BI = math.sqrt(signal) * x_BI + math.sqrt(1 - signal) * torch.randn_like(x_BI)
        x_BI = reverse_chain(schedule, lambda x, t: denoiser(x, torch.full((len(x),), t, device=x.device)), x_BI)
        best_BK = torch.topk(x_BI, min(k, x_BI.shape[1]), dim=1).indices
        for row, best in enumerate(best_BK):
            edges += [(start + row, int(item)) for item in best]
    return edges


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
        "bpr": -F.logsigmoid((rows * items[pos]).sum(dim=1) - (rows * items[neg]).sum(dim=1)).sum() / batch_size,
        "l2": l2_weight * (model.user_embedding.square().sum() + model.item_embedding.square().sum()),
        "contrast": final.new_zeros(()),
    }
    for x, y in [(final, view) for view in views] if anchor == "main" else combinations(views, 2):
        of_users = info_nce(x[:num_users], y[:num_users], users, temperature)
        of_items = info_nce(x[num_users:], y[num_users:], pos, temperature)
        losses["contrast"] = losses["contrast"] + contrast_weight * (of_users + of_items)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


@torch.no_grad()
def evaluate(user_emb, item_emb, train_items_by_user, test_items_by_user, k, batch_size=256):
    """All-ranking recall and ndcg of embeddings (U, D), (I, D) over the users with test items; a list of items each."""
    recall = ndcg = 0.0
    tested = [user for user, items in enumerate(test_items_by_user) if len(items)]
    for start in range(0, len(tested), batch_size):
        users = tested[start : start + batch_size]
        scores_BI = user_emb[users] @ item_emb.T
        for row, user in enumerate(users):
            scores_BI[row, train_items_by_user[user]] = -1e8
        lists = torch.topk(scores_BI, min(k, len(item_emb)), dim=1).indices.tolist()
        for user, ranked in zip(users, lists, strict=True):
            true = set(test_items_by_user[user])
            gains = [1 / math.log2(rank + 2) for rank, item in enumerate(ranked) if item in true]
            recall += len(gains) / len(true)
            ndcg += sum(gains) / sum(1 / math.log2(rank + 2) for rank in range(min(len(true), k)))
    return {f"recall@{k}": recall / max(len(tested), 1), f"ndcg@{k}": ndcg / max(len(tested), 1)}
