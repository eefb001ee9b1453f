"""The first view generator: a variational graph autoencoder whose decoder says which edges stay (README.md, "Pruning").

Shape suffixes: U own users, I own items, D embedding, V entries of the graph, E own edges, B pairs of a batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmm_dist.graph.entries import Entries, edge_blocks, entry_values, num_entries
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.propagate import Rows, sum_of_layers
from diffmm_dist.losses.regularization import squared_norm
from diffmm_dist.models.common.initialization import xavier_table
from diffmm_dist.models.common.projection import AffineProjection
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.shard import Shard


class Perceptron(nn.Module):
    """W_1 ReLU(W_0 x + b_0) + b_1."""

    def __init__(self, width: int, out_width: int, stream: RandomStream) -> None:
        super().__init__()
        self.hidden = AffineProjection(width, width, stream.child("hidden"))
        self.output = AffineProjection(width, out_width, stream.child("output"))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the output's rows."""
        output: Tensor = self.output(F.relu(self.hidden(rows)))
        return output


class PruningGenerator(nn.Module):
    """q(z | A^) = N(mu(G), sigma(G)^2) with G = sum_l A^^l E', and a decoder of pairs of nodes.

    Args:
        shard: what this worker owns.
        seed: of the initial values.
        embedding_dim: d.
        num_layers: L.

    Attributes:
        user_embedding: E'_u, own rows (U, d).
        item_embedding: E'_i, own rows (I, d).
    """

    def __init__(self, shard: Shard, *, seed: int, embedding_dim: int, num_layers: int) -> None:
        super().__init__()
        self._num_layers = num_layers
        stream = RandomStream.of(seed, "init").child("pruning")
        tables = {"user": (shard.num_users, shard.user_ids), "item": (shard.num_items, shard.own_item_ids)}
        self.user_embedding, self.item_embedding = (
            xavier_table(rows, embedding_dim, stream.child(f"{side}_embedding"), ids=ids)
            for side, (rows, ids) in tables.items()
        )
        self.mean = Perceptron(embedding_dim, embedding_dim, stream.child("mean"))
        self.std = Perceptron(embedding_dim, embedding_dim, stream.child("std"))
        self.decoder = Perceptron(embedding_dim, 1, stream.child("decoder"))

    def replicas(self) -> list[nn.Parameter]:
        """Return what every worker has whole."""
        return [*self.encoder_replicas(), *self.decoder.parameters()]

    def encoder_replicas(self) -> list[nn.Parameter]:
        """Return what every worker has whole of the encoder."""
        return [*self.mean.parameters(), *self.std.parameters()]

    def encode(self, graph: HeteroGraph) -> tuple[Tensor, Tensor]:
        """Return mu and sigma of own nodes, users then items, (U + I, D)."""
        state = torch.cat(sum_of_layers(graph, (self.user_embedding, self.item_embedding), num_layers=self._num_layers))
        return self.mean(state), F.softplus(self.std(state))

    def decode(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the logit that two nodes are joined: D(z_i * z_j), (pairs,) from (pairs, D) each."""
        logits: Tensor = self.decoder(F.relu(left * right))
        return logits[:, 0]

    def encoder_norm(self, *, with_replicas: bool) -> Tensor:
        """Return this worker's share of the squared norm of the encoder, the decoder left out.

        Args:
            with_replicas: count what every worker has whole; one worker does.
        """
        replicas = self.encoder_replicas() if with_replicas else []
        return squared_norm(self.user_embedding, self.item_embedding, *replicas)

    @torch.no_grad()
    def prune(self, graph: HeteroGraph, latents: Rows) -> tuple[Tensor, Tensor]:
        """Return the values of the first view, (V,), and the share of entries that it keeps, float64 ().

        An entry stays where q = sigmoid(D(z_i * z_j)) >= 1/2; the values of A^ that stay are divided by the share that
        does. Nothing is left where none stays. Every worker calls it at the same time.

        Args:
            graph: has the real relation.
            latents: z of own users and own items.
        """
        relation = graph.relations[REAL]
        users, items = latents
        items_L = relation.halo.extend(items)
        values = entry_values(relation).to(users.dtype)
        kept = torch.empty(num_entries(relation), dtype=torch.bool, device=users.device)
        entries = Entries.of(kept, relation)
        for block, block_users, block_items in edge_blocks(relation, users.shape[1]):
            entries.to_users[block] = self.decode(users[block_users], items_L[block_items]) >= 0
        entries.to_items.copy_(entries.to_users)  # z_i * z_j is z_j * z_i
        entries.user_loops.copy_(self.decode(users, users) >= 0)
        entries.item_loops.copy_(self.decode(items, items) >= 0)
        counts = torch.stack([kept.sum(), torch.full((), kept.numel(), device=kept.device)])
        num_kept, total = all_reduce_sum(counts, relation.shard.world).double()
        share = num_kept / total
        return values.mul_(kept).div_(torch.where(share > 0, share, 1.0).to(values.dtype)), share


def kl_of_standard_normal(mean: Tensor, std: Tensor, *, smallest_std: float) -> Tensor:
    """Return sum over nodes of KL(N(mean, std^2) || N(0, 1)) = -1/2 sum_d (1 + 2 ln std - mean^2 - std^2)."""
    log_std = std.clamp(min=smallest_std).log()
    return -0.5 * (1 + 2 * log_std - mean.square() - std.square()).sum()
