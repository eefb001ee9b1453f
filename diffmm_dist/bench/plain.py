"""The plain ways that the operations are raced against, straight from the equations.

Dense rows of users, a reverse chain of 2 T dense products, Python loops over users in rebuilding and evaluation.

Shape suffixes: B batch, U users, I items, E time embedding, D embedding, K list length.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.diffusion.equations import elbo, msi, p_sample_loop, q_sample
from diffmm_dist.diffusion.schedule import DiffusionSchedule
from diffmm_dist.evaluation.equations import ndcg, recall

_AFFORDABLE_VALUES = 1 << 27  # of a dense array, 512 MiB; several are held


def is_affordable(device: torch.device, *, num_values: float) -> bool:
    """Return whether the plain way takes part: on the CPU only, and where its largest array is no larger than that."""
    return device.type == "cpu" and num_values <= _AFFORDABLE_VALUES


def time_embedding(t_B: Tensor, width: int) -> Tensor:
    """Return [cos(t w_j), sin(t w_j)] with w_j = 10000^(-j / (width // 2)), (B, width); odd widths end in 0."""
    half = width // 2
    angles_BH = t_B[:, None] * torch.exp(-math.log(10_000) * torch.arange(half, device=t_B.device) / half)
    return F.pad(torch.cat([angles_BH.cos(), angles_BH.sin()], dim=1), (0, width % 2))


class PlainDenoiser(nn.Module):
    """f(x_t, t): affine layers over [x_t, time embedding] with tanh between them, to all items.

    Args:
        num_items: I.
        hidden_dims: width of each hidden layer.
        time_embedding_dim: E.
        dropout: on x_t, in training only.
    """

    def __init__(
        self,
        num_items: int,
        hidden_dims: Sequence[int] = (1000,),
        time_embedding_dim: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.time_layer = nn.Linear(time_embedding_dim, time_embedding_dim)
        widths = [num_items + time_embedding_dim, *hidden_dims, num_items]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.normal_(module.bias, std=0.001)

    @classmethod
    @torch.no_grad()
    def copied(cls, denoiser: Denoiser, dropout: float = 0.0) -> "PlainDenoiser":
        """Return one with the weights of a ``Denoiser`` that has all items, on its device."""
        assert denoiser.columns.world.size == 1
        assert denoiser.columns.by_id is None
        assert not denoiser.normalize_input
        hidden_dims = [len(denoiser.input_bias), *(len(p) for p in denoiser.hidden_layers.parameters() if p.dim() == 1)]
        plain = cls(denoiser.columns.size, hidden_dims, denoiser.time_embedding_dim, dropout)
        time, hidden = denoiser.time_layer.parameters(), denoiser.hidden_layers.parameters()
        first = torch.cat([denoiser.input_weight, denoiser.input_time_weight]).T, denoiser.input_bias
        weights = [*time, *first, *hidden, denoiser.output_weight, denoiser.output_bias]
        for parameter, value in zip(plain.to(denoiser.input_bias.device).parameters(), weights, strict=True):
            parameter.copy_(value)
        return plain

    def forward(self, x_t_BI: Tensor, t_B: Tensor) -> Tensor:
        """Return the prediction of the clean rows (B, I) from noisy ones (B, I) at timesteps (B,)."""
        time_emb_BE = self.time_layer(time_embedding(t_B, self.time_layer.in_features))
        hidden: Tensor = torch.cat([F.dropout(x_t_BI, self.dropout, self.training), time_emb_BE], dim=1)
        *layers, last = self.layers
        for layer in layers:
            hidden = torch.tanh(layer(hidden))
        prediction: Tensor = last(hidden)
        return prediction


def denoising_step(
    denoiser: nn.Module,
    optimizer: Optimizer | None,
    schedule: DiffusionSchedule,
    x_start_BI: Tensor,
    t_B: Tensor,
    noise_BI: Tensor,
    modal_items_ID: Tensor,
    item_table_ID: Tensor,
    signal_weight: float,
) -> tuple[Tensor, Tensor]:
    """Do one step of a denoiser on dense rows; return the mean elbo and msi before it, both ().

    G (I, D) and E_i (I, D) have no gradient. Without an optimiser the weights stay, and the gradients can be looked at.
    The schedule's tables must be on the device of the rows.
    """
    denoiser.train()
    elbo_B, msi_B = denoising_losses(denoiser, schedule, x_start_BI, t_B, noise_BI, modal_items_ID, item_table_ID)
    mean_elbo, mean_msi = elbo_B.mean(), msi_B.mean()
    denoiser.zero_grad()
    (mean_elbo + signal_weight * mean_msi).backward()
    if optimizer is not None:
        optimizer.step()
    return mean_elbo.detach(), mean_msi.detach()


def denoising_losses(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: DiffusionSchedule,
    x_start_BI: Tensor,
    t_B: Tensor,
    noise_BI: Tensor,
    modal_items_ID: Tensor,
    item_table_ID: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return elbo and msi of each row, (B,) each."""
    abar_T = schedule.alphas_cumprod
    prediction_BI = predict(q_sample(x_start_BI, t_B, noise_BI, alphas_cumprod_T=abar_T), t_B)
    return (
        elbo(prediction_BI, x_start_BI, t_B, alphas_cumprod_T=abar_T),
        msi(prediction_BI, x_start_BI, modal_items_ID=modal_items_ID, item_table_ID=item_table_ID),
    )


@torch.no_grad()
def rebuild(
    denoiser: nn.Module,
    schedule: DiffusionSchedule,
    x_start_UI: Tensor,
    *,
    k: int,
    batch_size: int,
    sampling_steps: int = 0,
) -> list[tuple[int, int]]:
    """Return the (user, item) pairs of each user's k largest denoised values, by user and falling value."""
    denoiser.train(False)
    edges = []
    for start in range(0, len(x_start_UI), batch_size):
        x_BI = x_start_UI[start : start + batch_size]
        if sampling_steps:
            t_B = torch.full((len(x_BI),), sampling_steps - 1)
            x_BI = q_sample(x_BI, t_B, torch.randn_like(x_BI), alphas_cumprod_T=schedule.alphas_cumprod)
        x_BI = p_sample_loop(denoiser, x_BI, betas_T=schedule.betas)
        best_BK = torch.topk(x_BI, min(k, x_BI.shape[1]), dim=1).indices
        for row, best in enumerate(best_BK):
            edges += [(start + row, int(item)) for item in best]
    return edges


@torch.no_grad()
def evaluate(
    user_UD: Tensor,
    item_ID: Tensor,
    train_items_by_user: Sequence[Sequence[int]],
    test_items_by_user: Sequence[Sequence[int]],
    k: int,
    batch_size: int = 256,
) -> dict[str, float]:
    """Return all-ranking recall and ndcg over the users with test items."""
    recalls, ndcgs = [], []
    tested = [user for user, items in enumerate(test_items_by_user) if len(items)]
    for start in range(0, len(tested), batch_size):
        users = tested[start : start + batch_size]
        scores_BI = user_UD[users] @ item_ID.T
        for row, user in enumerate(users):
            scores_BI[row, train_items_by_user[user]] = -1e8
        lists = torch.topk(scores_BI, min(k, len(item_ID)), dim=1).indices.tolist()
        for user, items in zip(users, lists, strict=True):
            true = set(test_items_by_user[user])
            ranks = [rank for rank, item in enumerate(items, start=1) if item in true]
            recalls.append(recall(ranks, num_true=len(true)))
            ndcgs.append(ndcg(ranks, num_true=len(true), k=k))
    return {f"{name}@{k}": sum(values) / max(len(values), 1) for name, values in (("recall", recalls), ("ndcg", ndcgs))}
