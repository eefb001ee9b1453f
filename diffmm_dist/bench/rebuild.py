"""Rebuilding a generated graph: the reverse chain of every user and the best items.

Symbols: U users, I items, h hidden, T steps, n batches of users. FLOP of ours: the one product over the items 2 U I h,
the h x h product of the weights 2 I h^2, and the chain in the hidden layer 2 (T - 1) U h^2. Bytes: the output weights
once for every batch of users, and both tables once for their product; blocks of denoised values stay in the cache. The
plain twin takes 4 T U I h, reads both tables in every step of every batch, and writes and reads five arrays of U x I in
every step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmm_dist.bench.denoisers import new_denoiser, new_schedule
from diffmm_dist.bench.operations import FLOAT, Case, Operation, Variant
from diffmm_dist.bench.plain import PlainDenoiser, is_affordable, rebuild
from diffmm_dist.bench.problems import STREAM, normal_rows, random_rows
from diffmm_dist.diffusion import gaussian
from diffmm_dist.diffusion.gaussian import ReverseChain
from diffmm_dist.evaluation.topk import merge_topk
from diffmm_dist.models.common.work import product_flop


@dataclass(frozen=True)
class RebuildSize:
    """U, I, h, T, the items to keep, users of a batch, and the observed items of each user."""

    users: int
    items: int
    hidden: int = 1000
    timesteps: int = 5
    topk: int = 1
    batch: int = 2048
    per_user: int = 6


PRESETS = {
    "tiktok": RebuildSize(users=9308, items=6710),
    "large": RebuildSize(users=10_000, items=100_000),
}


class Problem:
    """A denoiser with published settings and random rows."""

    def __init__(self, size: RebuildSize, device: torch.device) -> None:
        self.denoiser = new_denoiser(size.items, size.hidden, device)
        self.schedule = new_schedule(size.timesteps)
        self.rows = random_rows(size.users, size.items, size.per_user, device)
        self._users = torch.arange(size.users, device=device)
        self._hidden_BH = normal_rows("hidden", min(size.batch, size.users), size.hidden, device).tanh_()
        self._size = size

    def ours(self) -> Tensor:
        """Rebuild as RebuildPhase does; return the items (U, k)."""
        chain = ReverseChain(self.schedule, self.denoiser)
        blocks = []
        for users in self._users.split(self._size.batch):
            _, items = merge_topk(chain.denoise(self.rows.select(users), users, STREAM), self._size.topk)
            blocks.append(items)
        return torch.cat(blocks)

    def by_plain(self) -> list[tuple[int, int]]:
        """Return the pairs (user, item) of the plain twin, the dense rows made on the way."""
        twin, size = PlainDenoiser.copied(self.denoiser), self._size
        return rebuild(twin, self.schedule, self.rows.dense(), k=size.topk, batch_size=size.batch)

    def same_edges(self) -> float:
        """Return the share of edges that both have."""
        ours = {(user, item) for user, items in enumerate(self.ours().tolist()) for item in items}
        return len(ours.intersection(self.by_plain())) / len(ours)

    @torch.no_grad()
    def product(self) -> None:
        """Multiply as many hidden rows with the output weights, in the same blocks, and forget the results."""
        for users in self._users.split(self._size.batch):
            step = max(1, gaussian.BLOCK_ELEMENTS // users.numel())
            hidden_BH = self._hidden_BH[: users.numel()]
            for start in range(0, self._size.items, step):
                torch.mm(hidden_BH, self.denoiser.output_weight[start : start + step].T)


def operations(size: RebuildSize, device: torch.device) -> Iterator[Operation]:
    """Yield the rebuild of one modality."""
    problem = Problem(size, device)
    floor = product_flop(size.users, size.items, size.hidden)
    table = size.items * size.hidden
    chain = 2 * size.hidden * (table + (size.timesteps - 1) * size.users * size.hidden)
    swept = -(-size.users // size.batch) * table
    variants = {
        "ours": Variant(problem.ours, floor + chain, FLOAT * (swept + 2 * table)),
        "one product": Variant(problem.product, floor, FLOAT * swept),
    }
    values = size.users * size.items
    if not is_affordable(device, num_values=values):
        yield Operation("rebuild", variants)
        return
    num_bytes = FLOAT * size.timesteps * (2 * swept + 10 * values)
    variants["plain"] = Variant(problem.by_plain, 2 * size.timesteps * floor, num_bytes)
    yield Operation("rebuild", variants, lambda: {"same_edges": problem.same_edges()})


CASE = Case("rebuild", PRESETS, operations)
