"""Two tables that are ranked with in the first two stages, and two that learn from them in the third."""

import torch
from torch import Tensor, nn

from diffmm_dist.models.common.initialization import xavier_table
from diffmm_dist.models.common.tables import EmbeddingTables
from diffmm_dist.parallel.random import RandomStream


class Toy(EmbeddingTables):
    """ID embeddings scaled column by column, and students of them.

    ``target_users`` and ``target_items`` are saved; ``target_norm`` follows from them, and is made again.
    """

    def __init__(self, shard, *, seed, embedding_dim):
        super().__init__(shard, seed=seed, embedding_dim=embedding_dim)
        stream = RandomStream.of(seed, "student")
        self.student_users = xavier_table(shard.num_users, embedding_dim, stream.child("users"), ids=shard.user_ids)
        self.student_items = xavier_table(shard.num_items, embedding_dim, stream.child("items"), ids=shard.own_item_ids)
        self.scale = nn.Parameter(torch.ones(embedding_dim))
        self.register_buffer("target_users", torch.zeros_like(self.user_embedding))
        self.register_buffer("target_items", torch.zeros_like(self.item_embedding))
        self.begun = []

    def row_owners(self):
        users, items = self.shard.users, self.shard.items
        return {
            **super().row_owners(),
            **dict.fromkeys(("student_users", "target_users"), users),
            **dict.fromkeys(("student_items", "target_items"), items),
        }

    def scaled(self) -> tuple[Tensor, Tensor]:
        return self.user_embedding * self.scale, self.item_embedding * self.scale

    def begin_refine(self):
        self.begun.append(self.stage)

    @torch.no_grad()
    def begin_student(self):
        self.begun.append(self.stage)
        users, items = self.scaled()
        self.target_users.copy_(users)
        self.target_items.copy_(items)
        self.restored()

    def restored(self):
        assert self.stage in ("warm", "refine", "student")
        self.target_norm = self.target_items.norm(dim=1) if self.stage == "student" else None

    @torch.no_grad()
    def embeddings(self):
        if self.stage == "student":
            return self.student_users.clone(), self.student_items.clone()
        return self.scaled()
