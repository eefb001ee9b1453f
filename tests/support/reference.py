"""The plain twin of every operation: dense, and one formula after the other as models/diffmm/README.md has them."""

import math

import torch
import torch.nn.functional as F


def dense(pattern):
    """A CSR pattern as a dense 0/1 matrix, built entry by entry."""
    out = torch.zeros(pattern.num_rows, pattern.num_columns)
    for row in range(pattern.num_rows):
        for place in range(int(pattern.indptr[row]), int(pattern.indptr[row + 1])):
            out[row, pattern.indices[place]] = 1
    return out


def normalized_adjacency(interactions):
    """D^-1/2 (A + I) D^-1/2 of the bipartite graph, (U + I) x (U + I)."""
    num_users, num_items = interactions.shape
    adjacency = torch.zeros(num_users + num_items, num_users + num_items)
    adjacency[:num_users, num_users:] = interactions
    adjacency[num_users:, :num_users] = interactions.T
    adjacency += torch.eye(num_users + num_items)
    scale = adjacency.sum(dim=1).pow(-0.5)
    return scale[:, None] * adjacency * scale


def layer_sum(adjacency, rows, num_layers):
    """sum_{l=0..L} A^l rows."""
    total, layer = rows, rows
    for _ in range(num_layers):
        layer = adjacency @ layer
        total = total + layer
    return total


def project(features, weight, bias, kind):
    return F.leaky_relu(features @ weight, 0.2) if kind == "matrix" else features @ weight.T + bias


def diffmm_forward(
    user_table, item_table, projected, logits, real, generated, *, num_layers, residual_weight, modal_graph_weight
):
    """The equations of "recommend", literally: two products per modality, then the layers and the views."""
    num_users = user_table.shape[0]
    kappa = torch.softmax(logits, dim=0)
    ids = torch.cat([user_table, item_table])
    first, views = 0, []
    for weight, rows, graph in zip(kappa, projected, generated, strict=True):
        e = unit(rows)
        x = real @ torch.cat([user_table, e])
        y = real @ torch.cat([x[:num_users], item_table])
        z = graph @ ids
        first = first + weight * (x + y + modal_graph_weight * z)
        views.append(layer_sum(real, graph @ torch.cat([user_table, e]), num_layers))
    final = layer_sum(real, first, num_layers) + residual_weight * unit(first)
    return final, views


def bpr(users, pos, neg, divisor):
    differences = [float((u @ p - u @ n).detach()) for u, p, n in zip(users, pos, neg, strict=True)]
    return -sum(math.log(1 / (1 + math.exp(-difference))) for difference in differences) / divisor


def unit(rows):
    """Rows divided by their norms; a row of zeros stays one."""
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def info_nce(anchors, targets, nodes, temperature):
    """Mean over the batch of -log(exp(cos(x_n, y_n) / tau) / sum_j exp(cos(x_n, y_j) / tau))."""
    x, y = unit(anchors), unit(targets)
    similarities = torch.exp(x[nodes] @ y.T / temperature)
    positives = similarities[torch.arange(len(nodes)), nodes]
    return -(positives / similarities.sum(dim=1)).log().mean()


def reverse_chain(schedule, predict, x, posterior_noise=None):
    """x <- coef1 f(x, t) + coef2 x from t = T - 1 down to 0, with posterior noise by step if given."""
    for t in range(schedule.num_timesteps - 1, -1, -1):
        x = float(schedule.posterior_mean_coef1[t]) * predict(x, t) + float(schedule.posterior_mean_coef2[t]) * x
        if posterior_noise is not None and t > 0:
            x = x + math.sqrt(float(schedule.posterior_variance[t])) * posterior_noise[t]
    return x


def denoising_losses(schedule, predict, x_start, t, noise, modal_items, item_table):
    """(elbo, msi) of each row, from dense rows."""
    signal = schedule.sqrt_alphas_cumprod[t][:, None].float() * x_start
    x_t = signal + schedule.sqrt_one_minus_alphas_cumprod[t][:, None].float() * noise
    prediction = predict(x_t, t)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    weights = torch.where(t > 0, snr[(t - 1).clamp(min=0)] - snr[t], torch.ones(()).double()).float()
    elbo = weights * (x_start - prediction).square().mean(dim=1)
    msi = (prediction @ modal_items - x_start @ item_table).square().mean(dim=1)
    return elbo, msi


def topk(scores, k):
    """Lists by falling score, ties by the lower column, one row at a time."""
    lists = []
    for row in scores.tolist():
        lists.append(sorted(range(len(row)), key=lambda column: (-row[column], column))[:k])
    return torch.tensor(lists)


def ranking_metrics(scores, truth, masked, k):
    """Every metric from its definition, one user at a time; users without true items are left out."""
    sums = dict.fromkeys(("recall", "ndcg", "precision", "hit_rate", "mrr"), 0.0)
    shown, num_users = set(), 0
    for user, row in enumerate(scores.tolist()):
        true = {item for item, value in enumerate(truth[user].tolist()) if value}
        if not true:
            continue
        num_users += 1
        candidates = [item for item in range(len(row)) if not masked[user, item]]
        ranked = sorted(candidates, key=lambda item: (-row[item], item))[:k]
        shown.update(ranked)
        ranks = [rank for rank, item in enumerate(ranked, start=1) if item in true]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(true), k) + 1))
        sums["recall"] += len(ranks) / len(true)
        sums["ndcg"] += sum(1 / math.log2(rank + 1) for rank in ranks) / ideal
        sums["precision"] += len(ranks) / k
        sums["hit_rate"] += bool(ranks)
        sums["mrr"] += 1 / ranks[0] if ranks else 0
    result = {f"{name}@{k}": value / max(num_users, 1) for name, value in sums.items()}
    return result | {f"coverage@{k}": len(shown) / scores.shape[1]}
