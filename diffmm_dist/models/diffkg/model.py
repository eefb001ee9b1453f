"""DiffKG's network (equations and deviations in README.md).

Symbols: E_u, E_e tables of users and of nodes, the items first among these; E_r, W relations and what attention maps
with; K the knowledge graph, K_s sampled from it, K_d generated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffmm_dist.data.knowledge import ENTITIES, Facts
from diffmm_dist.data.training import TrainingData
from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.graph.attention import TypedEdges, attention_of, relational_attention
from diffmm_dist.graph.hetero import REAL, HeteroGraph, Kernel
from diffmm_dist.graph.propagate import Rows, sum_of_layers
from diffmm_dist.losses.regularization import squared_norm
from diffmm_dist.models.base import AttendedFacts, GeneratedGraph, Recommender
from diffmm_dist.models.common.denoising import Diffusion, DiffusionSettings, new_denoiser
from diffmm_dist.models.common.denoising_shard import DenoisingShard
from diffmm_dist.models.common.initialization import fill_uniform, xavier_table
from diffmm_dist.models.diffkg.generated import dropped, generated_facts, united
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import AllRows, OwnRows
from diffmm_dist.rows import normalize_rows

ViewName = Literal["generated", "original"]
Dropout = Callable[[int, int], Tensor]  # from the hop and the number of own heads to factors (heads, d)
SAMPLED = "sampled_facts"  # stream that K_s is drawn from
_RELU_GAIN = math.sqrt(2)


@dataclass(frozen=True)
class KnowledgeSettings:
    """Settings of the knowledge graph and of the views; see the configuration reference."""

    num_hops: int
    residual_weight: float
    max_facts: int | None
    message_dropout_prob: float
    mode: Literal["corrected", "released"]
    main: ViewName
    evaluated: Literal["main", "generated", "original"]
    with_original: bool
    rows: Literal["entities", "items"]

    @property
    def auxiliary(self) -> ViewName:
        """The view that is not the main one."""
        return "original" if self.main == "generated" else "generated"

    @property
    def trained_views(self) -> tuple[ViewName, ViewName]:
        """What the main and the auxiliary view of the training are: as released, both the sampled graph."""
        return ("original", "original") if self.mode == "released" else (self.main, self.auxiliary)

    @property
    def evaluated_view(self) -> ViewName:
        """What is evaluated."""
        return self.main if self.evaluated == "main" else self.evaluated

    @property
    def reads_generated(self) -> bool:
        """Whether the generated graph has any effect."""
        return "generated" in (*self.trained_views, self.evaluated_view)


@dataclass(frozen=True, eq=False)
class View:
    """A graph to attend over.

    Attributes:
        facts: its facts.
        to_nodes: their edges to all own nodes, for every hop but the last.
        to_items: those to own items alone, since nothing else of the last hop is read.
    """

    facts: Facts
    to_nodes: TypedEdges | None
    to_items: TypedEdges


class DiffKG(Recommender):
    """DiffKG.

    Args:
        data: the training data, with a knowledge graph.
        graph: has the real relation.
        seed: of the initial values, of the sampled graph and of the edge drop.
        embedding_dim: d.
        num_layers: L.
        settings: of the knowledge graph and the views.
        diffusion: settings of the denoiser.
        num_column_shards: over how many workers the denoiser is spread.
        sampled: the facts of K_s; drawn by default.

    Attributes:
        denoising: the denoiser, and what this worker denoises.
    """

    def __init__(
        self,
        data: TrainingData,
        graph: HeteroGraph,
        *,
        seed: int,
        embedding_dim: int,
        num_layers: int,
        settings: KnowledgeSettings,
        diffusion: DiffusionSettings,
        num_column_shards: int = 1,
        sampled: Facts | None = None,
    ) -> None:
        super().__init__()
        assert data.knowledge is not None
        self.data, self.shard, self.knowledge = data, data.shard, data.knowledge
        self.settings = settings
        self.graph = graph
        self._seed = seed
        self._num_layers = num_layers
        self._make_tables(embedding_dim, RandomStream.of(seed, "init"))
        self._num_types = 2 * self.knowledge.num_relations
        facts = sampled or self.knowledge.capped(settings.max_facts, RandomStream.of(seed, SAMPLED))
        self.views: dict[ViewName, View] = {}
        self._use("original", facts)
        self.denoiser = self._make_denoiser(diffusion, num_column_shards)
        topk = min(diffusion.rebuild_topk, self.knowledge.num_nodes)
        num_items, rows = self.shard.items.own.size, self.denoising.shard.own
        self.item_tails: Tensor
        self.entity_tails: Tensor
        self.generated_epoch: Tensor
        self.register_buffer("item_tails", torch.full((num_items, topk), -1))
        self.register_buffer("entity_tails", torch.full((rows.stop - rows.start - num_items, topk), -1))
        self.register_buffer("generated_epoch", torch.tensor(-1))

    def _make_tables(self, width: int, stream: RandomStream) -> None:
        shard, knowledge = self.shard, self.knowledge
        num_items, num_nodes = shard.items.own.size, knowledge.num_nodes
        own = knowledge.own_ids
        self.user_embedding = xavier_table(shard.num_users, width, stream.child("user_embedding"), ids=shard.user_ids)
        of_nodes = stream.child("entity_embedding")
        # Two parameters of one table, since what a worker saves of one must be a range of its rows.
        self.item_embedding = xavier_table(num_nodes, width, of_nodes, ids=own[:num_items])
        self.entity_embedding = xavier_table(num_nodes, width, of_nodes, ids=own[num_items:])
        self.relation_embedding = xavier_table(2 * knowledge.num_relations, width, stream.child("relation_embedding"))
        self.attention_weight = nn.Parameter(torch.empty(2 * width, width))
        fill_uniform(self.attention_weight, _RELU_GAIN * math.sqrt(6 / (3 * width)), stream.child("attention_weight"))

    def _make_denoiser(self, diffusion: DiffusionSettings, num_column_shards: int) -> Denoiser:
        knowledge, world = self.knowledge, self.shard.world
        pairs, own = knowledge.facts.pairs, knowledge.nodes.own
        if self.settings.rows == "items":
            pairs, own = pairs.first(self.shard.items.own.size), OwnRows(self.shard.items, self.shard.own_item_ids)
        columns = Ownership.even(knowledge.num_nodes, rank=world.rank, size=world.size)
        rows = DenoisingShard.of(
            pairs,
            own,
            AllRows(columns, knowledge.by_row),
            world,
            num_column_shards=num_column_shards,
            tables=self.shard.items,
        )
        denoiser = new_denoiser(rows, diffusion)
        denoiser.initialize(RandomStream.of(self._seed, "init", "denoiser"))
        schedule = diffusion.schedule(rows.ids.device)
        self.denoising = Diffusion(diffusion, schedule, rows, {"": denoiser}, self.settings.rows)
        return denoiser

    @property
    def kernel(self) -> Kernel:
        """The graph's kernel."""
        return self.graph.kernel

    @property
    def tables(self) -> list[nn.Parameter]:
        """E_u and E_e, of which a worker has its own rows."""
        return [self.user_embedding, self.item_embedding, self.entity_embedding]

    @property
    def replicas(self) -> list[nn.Parameter]:
        """E_r and W, which every worker has."""
        return [self.relation_embedding, self.attention_weight]

    def row_owners(self) -> dict[str, Ownership]:
        """Return the owners of tables, of the generated graph, and of a denoiser that is spread over workers."""
        owners = {
            "user_embedding": self.shard.users,
            "item_embedding": self.shard.items,
            "item_tails": self.shard.items,
        }
        if ENTITIES in self.shard.further:
            entities = self.shard.further[ENTITIES].ownership
            owners["entity_embedding"] = entities
            if self.settings.rows == "entities":
                owners["entity_tails"] = entities
        rows = self.denoising.shard
        if rows.mesh.items.size > 1:
            owners |= dict.fromkeys((f"denoiser.{name}" for name in Denoiser.PER_ITEM), rows.columns.ownership)
        return owners

    def squared_norm(self) -> Tensor:
        """Return this worker's share of |E_u|^2 + |E_e|^2 + |E_r|^2 + |W|^2."""
        return squared_norm(*self.tables) + squared_norm(*self.replicas) / self.shard.world.size

    def node_rows(self) -> Tensor:
        """Return E_e of own nodes, (own nodes, d)."""
        return torch.cat([self.item_embedding, self.entity_embedding])

    def attend(self, view: View, *, dropout: Dropout | None = None, to_all: bool = False) -> Tensor:
        """Return o of own items, (I, d), or of all own nodes: what the hops give, summed with falling weights.

        Args:
            view: the graph.
            dropout: factors on the result of each hop; none by default.
            to_all: return o of all own nodes, which the view must have edges to.
        """
        hops = self._edges_of_hops(view, to_all=to_all)
        head_maps, tail_maps = self._maps()
        rows = self.node_rows()
        total = rows if to_all else self.item_embedding
        for hop, edges in enumerate(hops):
            rows = relational_attention(self.graph, edges, rows, head_maps, tail_maps)
            if dropout is not None:
                rows = rows * dropout(hop, rows.shape[0])
            rows = normalize_rows(rows)
            total = self.settings.residual_weight * total + rows[: total.shape[0]]
        return total

    def _maps(self) -> tuple[Tensor, Tensor]:
        """Return what attention multiplies heads and tails with, (R, d) each: e_r W_1^T and e_r W_2^T."""
        first, second = self.attention_weight.chunk(2)
        return self.relation_embedding @ first.T, self.relation_embedding @ second.T

    def _edges_of_hops(self, view: View, *, to_all: bool) -> Sequence[TypedEdges]:
        last = view.to_nodes if to_all else view.to_items
        hops = [view.to_nodes] * (self.settings.num_hops - 1) + [last]
        assert None not in hops
        return [edges for edges in hops if edges is not None]

    def forward(self, name: ViewName, *, dropout: Dropout | None = None) -> Rows:
        """Return H of own users and own items over one view."""
        items = self.attend(self._view(name), dropout=dropout)
        return sum_of_layers(self.graph, (self.user_embedding, items), num_layers=self._num_layers)

    @torch.no_grad()
    def embeddings(self) -> Rows:
        """Return the final embeddings, without gradient."""
        return self.forward(self.settings.evaluated_view)

    @torch.no_grad()
    def further_embeddings(self) -> dict[str, Tensor]:
        """Return o of own entities that are no items, over the view that is evaluated."""
        if ENTITIES not in self.shard.further:
            return {}
        view = self._with_all_nodes(self._view(self.settings.evaluated_view).facts)
        return {ENTITIES: self.attend(view, to_all=True)[self.shard.items.own.size :]}

    @torch.no_grad()
    def attended_facts(self) -> AttendedFacts:
        """Return the facts of the view that is evaluated; where there are several hops, their mean attention."""
        facts = self._view(self.settings.evaluated_view).facts
        view = self._with_all_nodes(facts)
        assert view.to_nodes is not None
        head_maps, tail_maps = self._maps()
        rows, total = self.node_rows(), facts.relations.new_zeros(facts.pairs.num_entries, dtype=torch.float32)
        for _ in range(self.settings.num_hops):
            local = view.to_nodes.halo.extend(rows)
            total += attention_of(view.to_nodes, local, head_maps, tail_maps).weights
            rows = normalize_rows(relational_attention(self.graph, view.to_nodes, rows, head_maps, tail_maps))
        heads = self.knowledge.own_ids[facts.pairs.row_ids]
        return AttendedFacts(heads, facts.relations, facts.pairs.indices, total / self.settings.num_hops)

    def collaborative_rows(self) -> Tensor:
        """Return P = R^T E_u of own items, (own items, d), without gradient; every worker calls it."""
        relation = self.graph.relations[REAL]
        ones = torch.ones_like(relation.to_items.weights)
        sums = self.graph.neighbor_sum(relation.to_items, self.user_embedding.detach(), ones)
        return relation.halo.fold(sums)

    def keep_tails(self, own_rows: slice, tails: Tensor) -> None:
        """Keep the node ids that some own rows have chosen, int64 (rows, k)."""
        num_items = self.item_tails.shape[0]
        start, stop = own_rows.start, own_rows.stop
        split = min(max(num_items, start), stop) - start
        self.item_tails[start : start + split] = tails[:split]
        self.entity_tails[start + split - num_items : stop - num_items] = tails[split:]

    def use_generated(self, epoch: int) -> tuple[Facts, Facts]:
        """Build K_d from the chosen tails, and drop facts for an epoch; return it before and after the drop."""
        self.generated_epoch.fill_(epoch)
        chosen = self._chosen_facts()
        stream = RandomStream.of(self._seed, "edge_drop", epoch)
        kept = dropped(chosen, self.knowledge, self.denoising.settings.edge_keep_prob, stream)
        self.use_facts(kept)
        return chosen, kept

    def _chosen_facts(self) -> Facts:
        missing = self.knowledge.own_ids.numel() - self.item_tails.shape[0] - self.entity_tails.shape[0]
        none = self.item_tails.new_full((missing, self.item_tails.shape[1]), -1)
        tails = torch.cat([self.item_tails, self.entity_tails, none])
        return generated_facts(self.knowledge, tails, self.shard.world)

    def generated_graphs(self) -> list[GeneratedGraph]:
        """Return K_d before facts are dropped, if the model reads it."""
        if int(self.generated_epoch) < 0:
            return []
        return [GeneratedGraph("", "nodes", self._chosen_facts().pairs, self.knowledge.facts.pairs)]

    def use_facts(self, kept: Facts) -> None:
        """Put K_d in place."""
        self._use("generated", united(kept, self.views["original"].facts) if self.settings.with_original else kept)

    def restored(self) -> None:
        """Rebuild the generated graph that the loaded state was trained with."""
        if (epoch := int(self.generated_epoch)) >= 0:
            self.use_generated(epoch)

    def _view(self, name: ViewName) -> View:
        """Return a view; before there is a generated graph, the sampled one in its place."""
        return self.views.get(name, self.views["original"])

    def _use(self, name: ViewName, facts: Facts) -> None:
        self.views[name] = self._planned(facts, to_all=self.settings.num_hops > 1, name=name)

    def _with_all_nodes(self, facts: Facts) -> View:
        return self._planned(facts, to_all=True, name="exported")

    def _planned(self, facts: Facts, *, to_all: bool, name: str) -> View:
        num_items = self.shard.items.own.size
        pairs = facts.pairs.first(num_items)
        of_items = Facts(pairs, facts.relations[: pairs.num_entries])
        to_items, to_nodes = self._typed(of_items), self._typed(facts) if to_all else None
        edges = {("entity", f"{name}_describes", "item"): to_items.edges}
        if to_nodes is not None:
            edges["entity", f"{name}_relates_to", "entity"] = to_nodes.edges
        # Gradients go the other way, with weights in the order of edges of that type.
        reverse = {(target, f"rev_{kind}", source): one.reversed for (source, kind, target), one in edges.items()}
        self.graph = self.graph.with_further(edges | reverse)
        return View(facts, to_nodes, to_items)

    def _typed(self, facts: Facts) -> TypedEdges:
        return TypedEdges.of(
            facts.pairs,
            facts.relations,
            self.knowledge.nodes,
            self.shard.world,
            num_relations=self._num_types,
            messages=self.shard.messages,
        )
