"""Plain twins that are made of the package's equations: dense, and one formula after the other."""

import torch
import torch.nn.functional as F

from diffmm_dist.evaluation.equations import mrr, ndcg, precision, ranked, recall, retrieved_ndcg
from diffmm_dist.graph.equations import layer_sum
from diffmm_dist.losses.equations import unit


def dense(pattern):
    """A CSR pattern as a dense 0/1 matrix, built entry by entry."""
    out = torch.zeros(pattern.num_rows, pattern.num_columns)
    for row in range(pattern.num_rows):
        for place in range(int(pattern.indptr[row]), int(pattern.indptr[row + 1])):
            out[row, pattern.indices[place]] = 1
    return out


def project(features, weight, bias, kind):
    return F.leaky_relu(features @ weight, 0.2) if kind == "matrix" else features @ weight.T + bias


def diffmm_forward(
    user_table, item_table, projected, logits, real, generated, *, num_layers, residual_weight, modal_graph_weight
):
    """The equations of "recommend", literally: two products per modality, then the layers and the views."""
    num_users = user_table.shape[0]
    kappa = torch.softmax(logits, dim=0)
    ids = torch.cat([user_table, item_table])
    first, views = torch.zeros_like(ids), []
    for weight, rows, graph in zip(kappa, projected, generated, strict=True):
        e = unit(rows)
        x = real @ torch.cat([user_table, e])
        y = real @ torch.cat([x[:num_users], item_table])
        z = graph @ ids
        first = first + weight * (x + y + modal_graph_weight * z)
        views.append(layer_sum(real, graph @ torch.cat([user_table, e]), num_layers=num_layers))
    final = layer_sum(real, first, num_layers=num_layers) + residual_weight * unit(first)
    return final, views


def topk(scores, k):
    """Lists by falling score, ties by the lower column, one row at a time."""
    return torch.tensor([ranked(row, k) for row in scores.tolist()])


def ranking_metrics(scores, truth, masked, k, longest=None):
    """Every metric from its definition, one user at a time; users without true items are left out.

    That of PromptMM's release is there with the largest cut-off, ``longest``, on which it depends.
    """
    names = ("recall", "ndcg", "precision", "hit_rate", "mrr", *(["ndcg_retrieved"] if longest else []))
    sums = dict.fromkeys(names, 0.0)
    shown, num_users = set(), 0
    for user, row in enumerate(scores.tolist()):
        true = {item for item, value in enumerate(truth[user].tolist()) if value}
        if not true:
            continue
        num_users += 1
        candidates = [item for item in range(len(row)) if not masked[user, item]]
        best = [candidates[place] for place in ranked([row[item] for item in candidates], longest or k)]
        items = best[:k]
        shown.update(items)
        ranks = [rank for rank, item in enumerate(items, start=1) if item in true]
        sums["recall"] += recall(ranks, num_true=len(true))
        sums["ndcg"] += ndcg(ranks, num_true=len(true), k=k)
        sums["precision"] += precision(ranks, k=k)
        sums["hit_rate"] += bool(ranks)
        sums["mrr"] += mrr(ranks)
        if longest:
            num_retrieved = sum(item in true for item in best)
            sums["ndcg_retrieved"] += retrieved_ndcg(ranks, num_retrieved=num_retrieved, k=k)
    result = {f"{name}@{k}": value / max(num_users, 1) for name, value in sums.items()}
    return result | {f"coverage@{k}": len(shown) / scores.shape[1]}
