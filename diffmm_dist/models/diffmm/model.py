"""DiffMM's recommendation network (equations and deviations in README.md).

Symbols: E_u, E_i ID embeddings; e^m row-normalised projected features; kappa = softmax(w) modality
weights; A^ the real graph, A^_m the generated graph of modality m.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmm_dist.data.training import TrainingData
from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.errors import UserError
from diffmm_dist.graph.hetero import REAL, HeteroGraph, Kernel
from diffmm_dist.graph.layout import Layout, StepReading
from diffmm_dist.graph.propagate import Rows, propagate, propagate_tables, propagate_to_users, select, sum_of_layers
from diffmm_dist.graph.relation import Relation
from diffmm_dist.graph.targets import Targets
from diffmm_dist.models.base import GeneratedGraph
from diffmm_dist.models.common.denoising import Diffusion, DiffusionSettings, new_denoiser
from diffmm_dist.models.common.denoising_shard import DenoisingShard
from diffmm_dist.models.common.projection import PROJECTIONS, check_modalities
from diffmm_dist.models.common.tables import EmbeddingTables
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.rows import normalize_rows, weighted_sum
from diffmm_dist.sparse import CSR


class DiffMM(EmbeddingTables):
    """DiffMM.

    Args:
        data: the training data, with the features of at least one modality.
        graph: has the real relation.
        seed: of the initial values and of the edge drop.
        embedding_dim: d.
        num_layers: L.
        modality_projection: ``matrix`` or ``affine``, or one of them for each modality.
        residual_weight: omega.
        modal_graph_weight: lambda_adj.
        diffusion: settings of the denoisers.
        num_item_shards: over how many workers each denoiser is spread.
        layout: how tables propagate; by rows by default. The graph is that of the layout.

    Attributes:
        denoising: the denoisers, and what this worker denoises.

    Raises:
        UserError: the data have no modality, the projections do not name each of them, or there are too few items for
            hidden noise.
    """

    def __init__(
        self,
        data: TrainingData,
        graph: HeteroGraph,
        *,
        seed: int,
        embedding_dim: int,
        num_layers: int,
        modality_projection: str | Mapping[str, str],
        residual_weight: float,
        modal_graph_weight: float,
        diffusion: DiffusionSettings,
        num_item_shards: int = 1,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(data.shard, seed=seed, embedding_dim=embedding_dim, layout=layout)
        self.modalities = tuple(data.features)
        self.data = data
        self.diffusion = diffusion
        shard = data.shard
        rows = DenoisingShard.of(
            data.interactions, shard.axis("users"), shard.all_items, shard.world, num_column_shards=num_item_shards
        )
        self._seed = seed
        self.graph = graph
        self._num_layers = num_layers
        self._residual_weight = residual_weight
        self._modal_graph_weight = modal_graph_weight
        if diffusion.noise == "hidden" and data.shard.num_items < diffusion.denoiser_hidden_dims[0]:
            raise UserError(
                f"denoiser.noise=hidden needs at least as many items as the first hidden layer is wide, but there are "
                f"{data.shard.num_items} items for {diffusion.denoiser_hidden_dims[0]}; set it to exact"
            )
        kinds = _projection_of_each(self.modalities, modality_projection)
        stream = RandomStream.of(seed, "init")
        self.modality_logits = nn.Parameter(torch.full((len(self.modalities),), 1 / len(self.modalities)))
        self.projections = nn.ModuleDict()
        self.denoisers = nn.ModuleDict()
        for name, features in data.features.items():
            self.projections[name] = PROJECTIONS[kinds[name]](
                features.shape[1], embedding_dim, stream.child("projection", name)
            )
            denoiser = new_denoiser(rows, diffusion)
            denoiser.initialize(stream.child("denoiser", name))
            self.denoisers[name] = denoiser
        denoisers = {name: self.denoiser(name) for name in self.modalities}
        self.denoising = Diffusion(diffusion, diffusion.schedule(rows.ids.device), rows, denoisers, "users")
        num_users, topk = data.shard.users.own.size, min(diffusion.rebuild_topk, data.shard.num_items)
        self.generated_items: Tensor
        self.generated_epoch: Tensor
        self.register_buffer("generated_items", torch.zeros(num_users, len(self.modalities), topk, dtype=torch.int64))
        self.register_buffer("generated_epoch", torch.tensor(-1))

    @property
    def kernel(self) -> Kernel:
        """The graph's kernel."""
        return self.graph.kernel

    def row_owners(self) -> dict[str, Ownership]:
        """Return the owners of the ID tables, of the generated edges, and of denoisers that are spread over workers."""
        owners = super().row_owners() | {"generated_items": self.shard.users}
        rows = self.denoising.shard
        if rows.mesh.items.size > 1:
            names = [f"denoisers.{modality}.{name}" for modality in self.modalities for name in Denoiser.PER_ITEM]
            owners |= dict.fromkeys(names, rows.columns.ownership)
        return owners

    def projected(self, modality: str) -> Tensor:
        """Return G^m, the projected features of own items (I, d)."""
        rows: Tensor = self.projections[modality](self.data.features[modality])
        return rows

    def denoiser(self, modality: str) -> Denoiser:
        """Return the denoiser of a modality."""
        denoiser = self.denoisers[modality]
        assert isinstance(denoiser, Denoiser)
        return denoiser

    def modality_weights(self) -> Tensor:
        """Return kappa (M,)."""
        return F.softmax(self.modality_logits, dim=0)

    def forward(
        self, *, with_views: bool = True, reading: StepReading | None = None, whole_views: bool = True
    ) -> tuple[Rows, dict[str, Rows]]:
        """Return the final embeddings H and, if asked for, the contrastive view C^m of each modality.

        Args:
            with_views: compute the views.
            reading: what of them will be read: the final embeddings are those of own users and local items then, and
                other rows may be anything. All own rows by default.
            whole_views: all rows of the views will be read, not the same ones alone.

        The aggregates X^m = A^ [E_u; e^m] and Y^m = A^ [X^m_u; E_i] enter H only through their kappa-weighted sums X
        and Y, and propagation is linear with sum kappa = 1. So with e the weighted sum of the e^m, X_u is the user
        half of A^ [E_u; e], and X + Y = A^ [E_u + X_u; E_i + e]: one and a half products instead of two per modality.
        Z^m = A^_m [E_u; E_i] and the view's first layer A^_m [E_u; e^m] share what users send to items.
        """
        own_modal_items = [normalize_rows(self.projected(name)) for name in self.modalities]
        users, items, entered = self.entered(own_modal_items)
        ids, modal_items = (users, items), dict(zip(self.modalities, entered, strict=True))
        kappa = self.modality_weights()
        modal_mean = weighted_sum(kappa, list(modal_items.values()))
        x_users = propagate_to_users(self.graph, REAL, ids[0], modal_mean)
        x_and_y = propagate(self.graph, REAL, ids[0] + x_users, ids[1] + modal_mean)
        of_generated = {
            name: propagate_tables(self.graph, generated(name), ids[0], [ids[1], rows] if with_views else [ids[1]])
            for name, rows in modal_items.items()
        }
        z = [products[0] for products in of_generated.values()]
        weights = self._modal_graph_weight * kappa
        first = (
            weighted_sum(weights, [users for users, _ in z], base=x_and_y[0]),
            weighted_sum(weights, [items for _, items in z], base=x_and_y[1]),
        )
        whole = self.layout.whole
        of_final = whole if reading is None else reading.local
        of_views = whole if reading is None or whole_views else reading.own
        targets = Targets.of(self.graph.relations[REAL], of_final.rows, of_final.edges)
        layers = sum_of_layers(self.graph, first, num_layers=self._num_layers, targets=targets)
        # Not all modalities at once, their columns side by side: putting them there takes longer than one product saves
        # (docs/benchmarks/propagate.md).
        views = {
            name: sum_of_layers(
                self.graph, products[1], num_layers=self._num_layers, targets=None if whole_views else targets
            )
            for name, products in of_generated.items()
            if with_views
        }
        layers, first, *left = self.layout.leave(
            [layers, select(first, of_final.rows), *views.values()], [of_final, of_final, *[of_views] * len(views)]
        )
        final = self._with_residual(layers[0], first[0]), self._with_residual(layers[1], first[1])
        placed = map(of_views.place, left)
        return of_final.place(final), dict(zip(views, placed, strict=True))

    def _with_residual(self, layers: Tensor, first: Tensor) -> Tensor:
        """Return layers + omega normalised first."""
        return torch.add(layers, normalize_rows(first), alpha=self._residual_weight)

    @torch.no_grad()
    def embeddings(self) -> Rows:
        """Return the final embeddings, without gradient."""
        final, _ = self.forward(with_views=False)
        return final

    def use_generated_items(self, epoch: int) -> None:
        """Build A^_m of every modality from ``generated_items`` and drop its entries for an epoch."""
        self.generated_epoch.fill_(epoch)
        relations = {}
        for index, name in enumerate(self.modalities):
            relation = Relation.normalized(self.layout.pairs(self.generated_edges(index)), self.layout.shard)
            stream = RandomStream.of(self._seed, "edge_drop", epoch, name)
            relations[generated(name)] = relation.dropped(self.diffusion.edge_keep_prob, stream)
        self.graph = self.graph.with_relations(relations)

    def generated_edges(self, index: int) -> CSR:
        """Return the generated edges (own users x item ids) of the modality with this index."""
        items = self.generated_items[:, index]
        users = torch.arange(items.shape[0], device=items.device)[:, None].expand_as(items)
        return CSR.from_pairs(
            users.reshape(-1), items.reshape(-1), num_rows=items.shape[0], num_columns=self.shard.num_items
        )

    def generated_graphs(self) -> list[GeneratedGraph]:
        """Return the generated graph of every modality, before edges are dropped; values need a world of one."""
        if (epoch := int(self.generated_epoch)) < 0:
            return []
        found = []
        for index, name in enumerate(self.modalities):
            edges = self.generated_edges(index)
            values = partial(self.denoising.values_at, edges, name, seed=self._seed, epoch=epoch)
            known = values if self.shard.world.size == 1 else None
            found.append(GeneratedGraph(name, "users", edges, self.data.interactions, known))
        return found

    def restored(self) -> None:
        """Rebuild the generated graphs that the loaded state was trained with."""
        if (epoch := int(self.generated_epoch)) >= 0:
            self.use_generated_items(epoch)


def generated(modality: str) -> str:
    """Return the name of a modality's generated relation."""
    return f"generated_{modality}"


def _projection_of_each(modalities: Sequence[str], choice: str | Mapping[str, str]) -> Mapping[str, str]:
    check_modalities(modalities, model="diffmm")
    if isinstance(choice, str):
        return dict.fromkeys(modalities, choice)
    if set(choice) != set(modalities):
        raise UserError(
            f"model.modality_projection names {', '.join(choice)} but the modalities are {', '.join(modalities)}; "
            "name each of them once"
        )
    return choice
