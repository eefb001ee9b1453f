"""PromptMM's student: ID tables, propagated or as they are (equations in README.md).

Shape suffixes: U own users, I own items, D embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.propagate import Rows, propagate
from diffmm_dist.models.common.projection import AffineProjection
from diffmm_dist.models.common.tables import EmbeddingTables
from diffmm_dist.models.promptmm.layers import Dropout, dropout_of, mean_of_layers, sequential_layers
from diffmm_dist.models.promptmm.narrow import narrowed, narrowing
from diffmm_dist.models.promptmm.teacher import FeatureProjection
from diffmm_dist.parallel.collectives import gather_owned
from diffmm_dist.parallel.halo import Halo, extended, localize
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.shard import AllRows, Shard, joined
from diffmm_dist.rows import normalize_rows

Kind = Literal["lightgcn", "mm_light"]
TRAFFIC = "nodes"


@dataclass(frozen=True)
class StudentSettings:
    """What the student is.

    Attributes:
        kind: ``lightgcn``, or ``mm_light``, which adds the teacher's item features.
        num_layers: L_S, 0 for tables as they are.
        modal_weight: c, of ``mm_light``.
        dropout_prob: of the teacher's features in ``mm_light``.
        released: propagates as the released program does.
    """

    kind: Kind
    num_layers: int
    modal_weight: float
    dropout_prob: float
    released: bool


class Student(EmbeddingTables):
    """The student.

    Args:
        shard: what this worker owns.
        graph: has the real relation, without self loops, normalised by ``row_root``.
        seed: of the initial values.
        embedding_dim: D.
        modal_dim: width of the teacher's features, of ``mm_light``.
        modalities: the teacher's, likewise.
        settings: what it is.
    """

    def __init__(
        self,
        shard: Shard,
        graph: HeteroGraph,
        *,
        seed: int,
        embedding_dim: int,
        modal_dim: int,
        modalities: tuple[str, ...],
        settings: StudentSettings,
    ) -> None:
        stream = RandomStream.of(seed, "student")
        super().__init__(shard, seed=stream.key, embedding_dim=embedding_dim)
        self.graph = graph
        self.settings = settings
        self.projections = nn.ModuleDict()
        if settings.kind == "mm_light":
            for name in modalities:
                projection = FeatureProjection(modal_dim, embedding_dim, stream.child("projection", name))
                self.projections[name] = projection

    @property
    def tables(self) -> list[nn.Parameter]:
        """The ID tables."""
        return [self.user_embedding, self.item_embedding]

    @property
    def replicas(self) -> list[nn.Parameter]:
        """The parameters that every worker has whole."""
        return list(self.projections.parameters())

    @torch.no_grad()
    def begin_with(self, rows: Rows) -> None:
        """Start from a teacher's embeddings of own users and own items, or the nearest ones of the student's width.

        Every worker calls it at the same time. Columns beyond the teacher's keep their random values: in zeros a user
        and an item would never move each other.
        """
        width, dim = self.user_embedding.shape[1], rows[0].shape[1]
        if width < dim:
            rows = narrowed(rows, narrowing(rows, width=width, world=self.shard.world))
        for table, values in zip(self.tables, rows, strict=True):
            table[:, :dim] = values

    def begin(self) -> None:
        """Plan where rows are met, the first time; every worker calls it at the same time."""
        if self.settings.released and self.settings.kind == "lightgcn":
            _ = self._places

    def dropout(self, stream: RandomStream) -> Dropout:
        """Return the dropout of the teacher's features in a step."""
        width = self.item_embedding.shape[1]
        ids, prob = self.shard.own_item_ids, self.settings.dropout_prob
        return dropout_of(stream, "student_dropout", ids, width=width, dropout_prob=prob)

    def forward(self, modal_items: Mapping[str, Tensor], dropout: Dropout | None = None) -> Rows:
        """Return the final embeddings of own users and own items.

        Args:
            modal_items: the teacher's f_i^m, (I, D') each; only ``mm_light`` looks at them.
            dropout: factors of each modality's features.
        """
        if self.settings.kind == "lightgcn":
            return self._layer_mean()
        tables: Rows = (self.user_embedding, self.item_embedding)
        layers = sequential_layers(self.graph, tables, num_layers=self.settings.num_layers, softmax=True)
        users, items = mean_of_layers(layers)
        for name, rows in modal_items.items():
            projection = self.projections[name]
            assert isinstance(projection, AffineProjection)
            projected: Tensor = projection(rows)
            projected = projected if dropout is None else projected * dropout(name)
            items = torch.add(items, normalize_rows(projected), alpha=self.settings.modal_weight)
        return users, items

    @torch.no_grad()
    def embeddings(self) -> Rows:
        """Return the final embeddings of a student that needs no teacher."""
        return self.forward({})

    def _layer_mean(self) -> Rows:
        """Return the mean of the layers A^l s, l = 0 .. L_S, with A = [[0, N_u], [N_i, 0]]."""
        rows: Rows = (self.user_embedding, self.item_embedding)
        if self.settings.released:
            rows = rows[0] * 2, rows[1] * 2  # two names of one table, added up
        layers = [rows]
        for _ in range(self.settings.num_layers):
            met = self._misplaced(layers[-1]) if self.settings.released else layers[-1]
            layers.append(propagate(self.graph, REAL, *met))
        return mean_of_layers(layers)

    def _misplaced(self, rows: Rows) -> Rows:
        """Return the rows that the released program's matrix meets in place of own users and own items.

        That matrix is [[N_u, 0], [0, N_i]], its columns the items and then the users, multiplied by the rows of users
        and then items: where item i is meant it meets row i of that stack, where user u is meant row I + u.
        """
        local = extended(torch.cat(rows), self._places[0])
        return local.index_select(0, self._places[1]), local.index_select(0, self._places[2])

    @cached_property
    def _places(self) -> tuple[Halo, Tensor, Tensor]:
        """How the rows of the stack are reached: where own users are meant, and where own items are."""
        shard = self.shard
        user_ids = gather_owned(shard.user_ids, shard.users, shard.world, purpose=TRAFFIC)
        nodes = joined([AllRows(shard.users, user_ids), shard.all_items])
        wanted = torch.cat([shard.user_ids + shard.num_items, shard.own_item_ids])
        halo, local = localize(nodes.rows[wanted], nodes.ownership, shard.world, purpose=TRAFFIC)
        user_places, item_places = local.split([shard.user_ids.numel(), shard.own_item_ids.numel()])
        return halo, user_places, item_places


class TwiceAdamW(AdamW):
    """AdamW that steps each parameter twice with the same moments, as one that has two names in the optimiser.

    p <- (p (1 - lr wd) - delta) (1 - lr wd) - delta, delta = lr m^ / (sqrt(v^) + eps).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step of AdamW, and then the same again."""
        result = super().step(closure)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    continue
                number = state["step"].double()  # a tensor: as a number of Python's a GPU would be waited for
                mean = state["exp_avg"] / (1 - beta1**number)
                root = (state["exp_avg_sq"] / (1 - beta2**number)).sqrt_().add_(group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(mean, root, value=-group["lr"])
        return result
