"""PromptMM's teacher and its prompt (equations and deviations in README.md).

Symbols: N_u, N_i the graph's halves, rows divided by the root of their degrees; c prompt tokens; p = affine(c) prompts;
X^m features; f0^m reduced features; f_u^m, f_i^m what they propagate to; h final embeddings.

Shape suffixes: U own users, I own items, D embedding, F feature width, P = D + 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.propagate import Rows, users_from_items
from diffmm_dist.host_rows import Table, transposed_product
from diffmm_dist.models.common.initialization import fill_uniform
from diffmm_dist.models.common.projection import AffineProjection
from diffmm_dist.models.common.tables import EmbeddingTables
from diffmm_dist.models.promptmm.layers import (
    Dropout,
    dropout_of,
    mean_of_layers,
    sequential_layers,
    there_and_back,
)
from diffmm_dist.models.promptmm.tokens import TRAFFIC, principal_components
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.rows import normalize_rows

_SMALLEST_NORM = 1e-12
Readout = Literal["softmax", "mean"]


class Views(NamedTuple):
    """What a teacher knows of own users and own items.

    Attributes:
        final: h_u (U, D) and h_i (I, D).
        modal: f_u^m and f_i^m, by modality.
    """

    final: Rows
    modal: Mapping[str, Rows]


@dataclass(frozen=True)
class TeacherSettings:
    """What the teacher is.

    Attributes:
        num_layers: L_T.
        readout: ``softmax`` takes that of the rows of the last layer, as published; ``mean`` leaves them.
        dropout_prob: of reduced features.
        modal_weight: c.
        soft_prompt_weight: of the normalised prompt on ID embeddings.
        feature_prompt_weight: of the normalised prompt on features.
    """

    num_layers: int
    readout: Readout
    dropout_prob: float
    modal_weight: float
    soft_prompt_weight: float
    feature_prompt_weight: float


class FeatureProjection(AffineProjection):
    """X W^T + b, weights Xavier-uniform, bias uniform within 1 / sqrt(width)."""

    def __init__(self, width: int, embedding_dim: int, stream: RandomStream) -> None:
        super().__init__(width, embedding_dim, stream)
        fill_uniform(self.weight, math.sqrt(6 / (width + embedding_dim)), stream.child("weight"))


class PromptTeacher(EmbeddingTables):
    """The teacher with its prompt.

    Args:
        data: the training data, with the features of at least one modality.
        graph: has the real relation, without self loops, normalised by ``row_root``.
        seed: of the initial values.
        embedding_dim: D.
        settings: what it is.

    Attributes:
        item_tokens: c_i, (I, D); zeros until ``prepare`` or a checkpoint fills them.
        user_tokens: c_u = N_u c_i, (U, D).
    """

    def __init__(
        self, data: TrainingData, graph: HeteroGraph, *, seed: int, embedding_dim: int, settings: TeacherSettings
    ) -> None:
        super().__init__(data.shard, seed=seed, embedding_dim=embedding_dim)
        stream = RandomStream.of(seed, "init")
        self.graph = graph
        self.settings = settings
        self.modalities = tuple(data.features)
        self._features = data.features
        self.projections = nn.ModuleDict()
        for name, features in data.features.items():
            self.projections[name] = FeatureProjection(
                features.shape[1], embedding_dim, stream.child("projection", name)
            )
        self.prompt_user = AffineProjection(embedding_dim, embedding_dim, stream.child("prompt_user"))
        self.prompt_item = AffineProjection(embedding_dim, embedding_dim, stream.child("prompt_item"))
        self.item_tokens: Tensor
        self.user_tokens: Tensor
        self.register_buffer("item_tokens", torch.zeros_like(self.item_embedding))
        self.register_buffer("user_tokens", torch.zeros_like(self.user_embedding), persistent=False)
        self._moments: dict[str, Tensor] = {}
        self._roots: dict[str, Tensor] = {}

    def row_owners(self) -> dict[str, Ownership]:
        """Return the owners of the ID tables and of the items' tokens."""
        return super().row_owners() | {"item_tokens": self.shard.items}

    @property
    def prompt(self) -> list[nn.Parameter]:
        """The prompt's parameters."""
        return [*self.prompt_user.parameters(), *self.prompt_item.parameters()]

    @property
    def replicas(self) -> list[nn.Parameter]:
        """The parameters that every worker has whole."""
        return [*self.projections.parameters(), *self.prompt]

    def projection(self, modality: str) -> FeatureProjection:
        """Return the map of a modality's features."""
        projection = self.projections[modality]
        assert isinstance(projection, FeatureProjection)
        return projection

    def features(self, modality: str) -> Table:
        """Return X^m of own items, (I, F)."""
        return self._features[modality]

    def prepare(self) -> None:
        """Make the tokens: the mean over the modalities of their features' principal components."""
        shard, width = self.shard, self.item_embedding.shape[1]
        tokens = [
            principal_components(
                self.features(name), num_components=width, num_items=shard.num_items, world=shard.world
            )
            for name in self.modalities
        ]
        self.use_tokens(torch.stack(tokens).mean(dim=0))

    @torch.no_grad()
    def use_tokens(self, item_tokens: Tensor) -> None:
        """Take the items' tokens, and make what follows from them."""
        self.item_tokens.copy_(item_tokens)
        self.user_tokens.copy_(users_from_items(self.graph, REAL, self.item_tokens))
        extended = _with_ones(self.item_tokens)
        self._moments, self._roots = {}, {}
        for name in self.modalities:
            moments_PF = all_reduce_sum(
                transposed_product(extended, self.features(name)), self.shard.world, purpose=TRAFFIC
            )
            self._moments[name] = moments_PF
            self._roots[name] = torch.linalg.qr(moments_PF.double().T, mode="r").R.to(moments_PF.dtype)

    def prompts(self) -> Rows:
        """Return p_u (U, D) and p_i (I, D)."""
        users: Tensor = self.prompt_user(self.user_tokens)
        items: Tensor = self.prompt_item(self.item_tokens)
        return users, items

    def reduced(self, modality: str, prompt_ID: Tensor) -> Tensor:
        """Return f0^m = X W^T + b + rate * rownorm(Q) W^T with Q = p_i (p_i^T X), before dropout, (I, D).

        With p_i = [c_i 1] A^T, A = [weight bias] of the prompt's affine map, p_i^T X = A M, and M = [c_i 1]^T X is
        constant. So Q W^T = p_i (A M W^T), and |Q_i| = |p_i A R^T| with M^T = O R, O orthogonal: no product with the
        features but the one of X W^T, nothing of their width for each item, and nothing that the workers would have to
        add up. (A M M^T A^T would serve too, but where features are nearly parallel its rounding leaves negative
        squares.)

        Args:
            modality: m.
            prompt_ID: p_i.
        """
        rows_ID: Tensor = self.projection(modality)(self.features(modality))
        return rows_ID + self.prompted(modality, prompt_ID)

    def prompted(self, modality: str, prompt_ID: Tensor, *, held: bool = False) -> Tensor:
        """Return rate * rownorm(Q) W^T, (I, D); no gradient goes to W where the teacher is held."""
        moments_PF, weight_DF = self._moments[modality], self.projection(modality).weight
        weight_DF = weight_DF.detach() if held else weight_DF
        prompt_DP = torch.cat([self.prompt_item.weight, self.prompt_item.bias[:, None]], dim=1)
        root_DP = prompt_DP @ self._roots[modality].T
        norms_I1: Tensor = torch.linalg.vector_norm(prompt_ID @ root_DP, dim=1, keepdim=True)
        scales_I1 = self.settings.feature_prompt_weight / norms_I1.clamp(min=_SMALLEST_NORM)
        projected_ID: Tensor = prompt_ID @ (prompt_DP @ (moments_PF @ weight_DF.T))
        return projected_ID * scales_I1

    def forward(self, dropout: Dropout | None = None) -> Views:
        """Return what it knows, with the dropout factors of each modality's reduced features, or without."""
        prompts = self.prompts()
        reduced = {name: self.reduced(name, prompts[1]) for name in self.modalities}
        if dropout is not None:
            reduced = {name: rows * dropout(name) for name, rows in reduced.items()}
        return self.views(self.prompted_tables(prompts), reduced)

    def prompted_tables(self, prompts: Rows, *, held: bool = False) -> Rows:
        """Return u_0 = E_u + rate * rownorm(p_u) and i_0 likewise; no gradient goes to E where the teacher is held."""
        rate = self.settings.soft_prompt_weight
        tables: Rows = (self.user_embedding, self.item_embedding)
        tables = (tables[0].detach(), tables[1].detach()) if held else tables
        users, items = (
            torch.add(table, normalize_rows(prompt), alpha=rate) for table, prompt in zip(tables, prompts, strict=True)
        )
        return users, items

    def views(self, tables: Rows, reduced: Mapping[str, Tensor]) -> Views:
        """Return what it knows from u_0, i_0 and f0^m.

        u_l = N_u i_{l-1} and i_l = N_i u_l, from the new u_l; in the last layer of the ``softmax`` read-out both are
        softmaxed. f_u^m = N_u f0^m and f_i^m = N_i f_u^m.
        """
        modal = self.modal(reduced)
        return Views(self.final(self.layer_mean(tables), modal), modal)

    def modal(self, reduced: Mapping[str, Tensor]) -> dict[str, Rows]:
        """Return f_u^m and f_i^m of each modality from f0^m."""
        return {name: there_and_back(self.graph, rows) for name, rows in reduced.items()}

    def dropout(self, stream: RandomStream) -> Dropout:
        """Return the dropout of a step's reduced features."""
        width = self.item_embedding.shape[1]
        ids, prob = self.shard.own_item_ids, self.settings.dropout_prob
        return dropout_of(stream, "dropout", ids, width=width, dropout_prob=prob)

    def layers(self, tables: Rows) -> list[Rows]:
        """Return the layers 0 .. L_T of the ID embeddings."""
        settings = self.settings
        softmax = settings.readout == "softmax"
        return sequential_layers(self.graph, tables, num_layers=settings.num_layers, softmax=softmax)

    def layer_mean(self, tables: Rows) -> Rows:
        """Return their mean."""
        return mean_of_layers(self.layers(tables))

    def final(self, means: Rows, modal: Mapping[str, Rows]) -> Rows:
        """Return h = layers' mean + c sum_m rownorm(f^m)."""
        sides = zip(means, *modal.values(), strict=True)
        users, items = (
            reduce(lambda rows, more: torch.add(rows, normalize_rows(more), alpha=self.settings.modal_weight), side)
            for side in sides
        )
        return users, items

    @torch.no_grad()
    def embeddings(self) -> Rows:
        """Return h, without gradient and without dropout."""
        return self.forward().final

    def restored(self) -> None:
        """Make again what follows from the tokens."""
        self.use_tokens(self.item_tokens)


def _with_ones(rows_ID: Tensor) -> Tensor:
    return F.pad(rows_ID, (0, 1), value=1.0)
