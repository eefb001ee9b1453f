"""The second view generator: hard concrete gates on every entry of the graph (README.md, "Gates").

Shape suffixes: N own nodes, users then items, D embedding, V entries of the graph.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmm_dist.graph.entries import propagate_entries, row_sums, sums_of_ends
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.propagate import Rows
from diffmm_dist.models.common.projection import AffineProjection
from diffmm_dist.parallel.random import RandomStream

_LARGEST_SCALE = 10.0  # of D^-1/2, so that rows of almost closed gates stay bounded
_ADDED_TO_SUMS = 1e-6  # in training, where rows of closed gates have a gradient


@dataclass(frozen=True)
class HardConcrete:
    """The gate's distribution (Louizos, Welling and Kingma, ICLR 2018).

    Attributes:
        gamma: lower end of the stretched interval, below 0.
        zeta: its upper end, above 1.
    """

    gamma: float
    zeta: float

    def sample(self, log_a: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Return clip(s (zeta - gamma) + gamma, 0, 1) with s = sigmoid((logit(r) + log a) / beta), r the noise.

        Computed in the noise's type, float64, and rounded to that of ``log_a``.
        """
        return self._stretched(torch.sigmoid((torch.logit(noise) + log_a.to(noise.dtype)) / temperature)).to(
            log_a.dtype
        )

    def middle(self, log_a: Tensor) -> Tensor:
        """Return the gate without noise, s = sigmoid(log a)."""
        return self._stretched(torch.sigmoid(log_a))

    def open_prob(self, log_a: Tensor, temperature: float) -> Tensor:
        """Return the probability that a gate is not 0: sigmoid(log a - beta ln(-gamma / zeta))."""
        return torch.sigmoid(log_a - temperature * math.log(-self.gamma / self.zeta))

    def _stretched(self, share: Tensor) -> Tensor:
        return (share * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)


class GateNetwork(nn.Module):
    """log a(i, j) = att [ReLU(nb(x_i)) || ReLU(self(x_j))] of each entry (i, j), i the row.

    ``att`` is affine and nothing follows it, so log a is a number of the row plus one of the column: it is computed on
    the nodes, and only sums of two numbers on the entries.
    """

    def __init__(self, width: int, stream: RandomStream) -> None:
        super().__init__()
        self.row = AffineProjection(width, width, stream.child("row"))
        self.column = AffineProjection(width, width, stream.child("column"))
        self.attention = AffineProjection(2 * width, 1, stream.child("attention"))

    def forward(self, graph: HeteroGraph, rows: Rows) -> Tensor:
        """Return log a, (V,); every worker calls it at the same time."""
        nodes, num_users = torch.cat(rows), rows[0].shape[0]
        of_row, of_column = self.attention.weight[0].chunk(2)
        row_N = F.relu(self.row(nodes)) @ of_row + self.attention.bias
        column_N = F.relu(self.column(nodes)) @ of_column
        return sums_of_ends(
            graph.relations[REAL],
            (row_N[:num_users], row_N[num_users:]),
            (column_N[:num_users], column_N[num_users:]),
        )


@dataclass(frozen=True)
class GatedPass:
    """One pass through the gated graph.

    Attributes:
        rows: x_0 + ... + x_L of own users and own items.
        log_a: of each layer, (V,).
        gates: of each layer, (V,).
    """

    rows: Rows
    log_a: list[Tensor]
    gates: list[Tensor]


class GateGenerator(nn.Module):
    """x_{l+1} = C_l M_l C_l x_l with gates M_l of x_l, and C_l = min(D^-1/2, 10) of the sums D of their rows.

    Args:
        seed: of the initial values.
        embedding_dim: d.
        num_layers: L.
        distribution: of the gates.
    """

    def __init__(self, *, seed: int, embedding_dim: int, num_layers: int, distribution: HardConcrete) -> None:
        super().__init__()
        stream = RandomStream.of(seed, "init").child("gates")
        self.distribution = distribution
        self.layers = nn.ModuleList(GateNetwork(embedding_dim, stream.child(layer)) for layer in range(num_layers))

    def train_pass(self, graph: HeteroGraph, rows: Rows, noise: list[Tensor], temperature: float) -> GatedPass:
        """Return the pass that trains the gates, from rows that get no gradient.

        Args:
            graph: has the real relation.
            rows: x_0 of own users and own items.
            noise: r of each layer, float64 (V,), within (0, 1).
            temperature: beta.
        """
        gated = GatedPass(rows, [], [])
        for network, noise_V in zip(self.layers, noise, strict=True):
            log_a = network(graph, rows)
            gates = self.distribution.sample(log_a, noise_V, temperature)
            rows = _normalized_product(graph, gates, rows, added=_ADDED_TO_SUMS)
            gated = _with_layer(gated, rows, log_a, gates)
        return gated

    def view(self, graph: HeteroGraph, rows: Rows) -> GatedPass:
        """Return the second view of tables: gates without noise that get no gradient, while the tables do."""
        gated = GatedPass(rows, [], [])
        for network in self.layers:
            with torch.no_grad():
                log_a = network(graph, rows)
                gates = self.distribution.middle(log_a)
            rows = _normalized_product(graph, gates, rows, added=0.0)
            gated = _with_layer(gated, rows, log_a, gates)
        return gated


def normalizers(graph: HeteroGraph, gates: Tensor, *, added: float) -> Rows:
    """Return C = min((D + added)^-1/2, 10) of own users (U, 1) and own items (I, 1); D sums each row's gates."""
    sums = row_sums(graph, graph.relations[REAL], gates)
    users, items = ((rows + added).rsqrt().clamp(max=_LARGEST_SCALE) for rows in sums)
    return users, items


def _normalized_product(graph: HeteroGraph, gates: Tensor, rows: Rows, *, added: float) -> Rows:
    """Return C M C [user rows; item rows]; scaling the rows before and after sends no scales to the other workers."""
    scales = normalizers(graph, gates, added=added)
    scaled = scales[0] * rows[0], scales[1] * rows[1]
    users, items = propagate_entries(graph, graph.relations[REAL], gates, scaled)
    return scales[0] * users, scales[1] * items


def _with_layer(gated: GatedPass, rows: Rows, log_a: Tensor, gates: Tensor) -> GatedPass:
    total = gated.rows[0] + rows[0], gated.rows[1] + rows[1]
    return GatedPass(total, [*gated.log_a, log_a], [*gated.gates, gates])
