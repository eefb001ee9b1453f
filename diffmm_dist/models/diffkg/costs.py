"""What DiffKG costs: memory (models/common/costs.py), work and traffic (models/common/work.py).

Symbols: N_e nodes, F facts of the file, I items, E interactions, L layers, H hops, d embedding, W workers, B batch.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from diffmm_dist.data.knowledge import ENTITIES, RELATIONS, TABLE
from diffmm_dist.diffusion.denoiser import TRAFFIC as DENOISER
from diffmm_dist.graph import relation
from diffmm_dist.losses import contrastive
from diffmm_dist.models.base import PhaseContext
from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import ADAM_KEEPS, FLOAT, INT, ModelMemory, Parts, Share
from diffmm_dist.models.common.denoising import DiffusionSettings
from diffmm_dist.models.common.denoising_costs import (
    Denoising,
    denoise_work,
    denoiser_traffic,
    denoising_step,
    largest_weight,
    rebuild_step,
    rebuild_work,
    rows_of_group,
    topk,
    weight_bytes,
)
from diffmm_dist.models.common.work import (
    ADAM_ACCESSES,
    EXCHANGES_PER_PRODUCT,
    Cuts,
    Traffic,
    Work,
    contrast_exchanges,
    contrast_flop,
    contrast_traffic,
    gathered_bytes,
    num_anchors,
    ranking_exchanges,
    real_rows_sent,
    sent_bytes,
)
from diffmm_dist.models.diffkg.model import SAMPLED, KnowledgeSettings
from diffmm_dist.models.diffkg.phases import ContrastSettings
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World

_READ_INTS = 13  # of a fact in each direction while one of each pair is found
_FACT_INTS = 4  # of a fact of the whole graph, in each direction: tail, relation, key, row
_EDGE_INTS = 12  # of a fact of a view: both directions, pairs of ends and relations, their orders
_CHOSEN_INTS = 10  # of a chosen fact while its graph is built
_ITEM_HEADS = 0.5  # of generated facts, which count both ways and have an item at one end at least
_LOCAL_TABLES = 2  # rows x d of own nodes and the halo: values and their gradients
_ROW_TABLES = 6  # rows x d that a view's hop holds for its heads' gradients: before and after, normalised, factors
_EDGE_FLOATS = 6  # of a fact in a hop: scores, weights and their gradients
_LAYER_TABLES = 4  # node rows of both views while the contrast finds its gradients
_HOP_EXCHANGES = 2  # rows of others' nodes, and their gradients
_REPLICAS_EXCHANGES = 1  # the sum of the gradients of the relations
_ROW_ACCESSES = 40  # of each node's row in a step, besides gathered ones


def num_nodes(share: Share) -> int:
    """Return N_e."""
    return share.num_items + share.counts.get(ENTITIES, 0)


def denoised(share: Share, settings: KnowledgeSettings) -> Share:
    """Return what is denoised as denoising_costs.py counts it."""
    nodes, facts = num_nodes(share), 2 * share.table_rows.get(TABLE, 0)
    rows = share.num_items if settings.rows == "items" else nodes
    return Share.even(
        num_users=rows, num_items=nodes, num_interactions=facts, held_out=0, num_workers=share.num_workers
    )


def _sampled(share: Share, settings: KnowledgeSettings) -> int:
    """Return how many facts the sampled graph has at most, of all workers."""
    facts = 2 * share.table_rows.get(TABLE, 0)
    return facts if settings.max_facts is None else min(facts, settings.max_facts * num_nodes(share))


def memory(
    share: Share,
    denoising: Denoising,
    diffusion: DiffusionSettings,
    settings: KnowledgeSettings,
    *,
    embedding_dim: int,
    contrast: ContrastSettings,
    dgl: bool,
    propagate_every: int = 1,
) -> ModelMemory:
    """Return what DiffKG needs.

    Args:
        share: the data.
        denoising: sizes of the denoiser.
        diffusion: its settings.
        settings: of the knowledge graph.
        embedding_dim: d.
        contrast: of the views.
        dgl: whether DGL may propagate.
        propagate_every: batches of interactions that a step covers.
    """
    of_rows, row = denoised(share, settings), embedding_dim * FLOAT
    columns = -(-of_rows.num_items // denoising.item_shards)
    denoiser = weight_bytes(columns, diffusion)
    own_nodes = -(-num_nodes(share) // share.num_workers)
    table = (share.users + own_nodes) * row
    relations = 2 * share.counts.get(RELATIONS, 0) * row
    chosen = 2 * topk(of_rows, diffusion) * of_rows.users
    views = _views(share, settings, chosen * diffusion.edge_keep_prob, dgl=dgl)
    hops = _hop_bytes(share, settings, row)
    kept = {
        "interactions": costs.interactions(share),
        "graph": costs.graph(share, dgl=dgl),
        "facts": of_rows.interactions * _FACT_INTS * INT + num_nodes(share) * 3 * INT,
        "views": views,
        "tables": ADAM_KEEPS * (table + relations),
        "denoiser": ADAM_KEEPS * denoiser if settings.reads_generated else denoiser,
        "denoised rows": 0 if denoising.item_shards == 1 else rows_of_group(of_rows, denoising),
    }
    step = _ranking_step(share, denoising, contrast, hops, row, propagate_every)
    batch, gradients = denoising.batch_size * propagate_every, table + relations
    phases = {"recommend": costs.ranking_phase(share, gradients=gradients, step=step, dim=embedding_dim, batch=batch)}
    if settings.reads_generated:
        building = {"generated graph": chosen * _CHOSEN_INTS * INT + views}
        phases = _denoiser_phases(of_rows, denoising, diffusion, columns, building, row) | phases
    return ModelMemory(
        kept=kept,
        phases=phases,
        embedding=hops + 3 * (share.users + share.items) * row,
        width=embedding_dim,
        trained=denoiser + table + relations,
        largest=max(largest_weight(columns, diffusion), table),
        reading={"facts": of_rows.interactions * _READ_INTS * INT},
    )


def _ranking_step(
    share: Share, denoising: Denoising, contrast: ContrastSettings, hops: int, row: int, propagate_every: int
) -> Parts:
    """Return what views, with so many bytes of hops each, and their contrast hold for their gradients."""
    contrasted, nodes = contrast.contrastive_weight > 0, max(share.users, share.items)
    anchors = num_anchors(denoising.batch_size, contrast.max_nodes)
    table = (share.users + share.items) * row
    if contrast.negatives == "batch":
        kept, similar = 0, 2 * propagate_every * costs.similarities(anchors, min(nodes, anchors))
    else:
        kept, similar = (propagate_every - 1) * table, costs.similarities(anchors, nodes)
    return {
        "views": (1 + contrasted) * (hops + _LAYER_TABLES * table) + contrasted * kept,
        "similarities": contrasted * similar,
    }


def _denoiser_phases(
    of_rows: Share, denoising: Denoising, diffusion: DiffusionSettings, columns: int, building: Parts, row: int
) -> dict[str, Parts]:
    """Return what denoise and rebuild need on top, the latter while rows are denoised or their graph is built."""
    denoiser = weight_bytes(columns, diffusion)
    messages = denoiser if of_rows.num_workers > denoising.item_shards else 0  # all gradients side by side
    step = denoising_step(of_rows, denoising, diffusion, columns, row // FLOAT)
    return {
        "denoise": {"gradients": denoiser + messages, "signal": 2 * columns * row, **step},
        "rebuild": costs.largest(rebuild_step(of_rows, denoising, diffusion, columns), building),
    }


def _views(share: Share, settings: KnowledgeSettings, generated: float, *, dgl: bool) -> int:
    """Return the bytes of the sampled graph and of a generated one with so many facts."""
    facts = -(-_sampled(share, settings) // share.num_workers) + generated
    to_items = _hops(share, settings)[-1].edges + generated * _ITEM_HEADS
    planned = to_items + facts * (settings.num_hops > 1)  # the last hop is of items alone
    return int(facts * _FACT_INTS + planned * (_EDGE_INTS + costs.DGL_INTS * dgl)) * INT


class Hop(NamedTuple):
    """Whom a worker's heads attend to in one hop over the sampled graph.

    Attributes:
        heads: own heads.
        edges: their facts.
    """

    heads: int
    edges: int


def _hops(share: Share, settings: KnowledgeSettings) -> list[Hop]:
    """Return a view's hops, of which the last one is of items alone."""
    own_nodes = -(-num_nodes(share) // share.num_workers)
    edges = -(-_sampled(share, settings) // share.num_workers)
    of_items = edges if settings.max_facts is None else min(edges, share.items * settings.max_facts)
    return [Hop(own_nodes, edges)] * (settings.num_hops - 1) + [Hop(share.items, of_items)]


def _hop_bytes(share: Share, settings: KnowledgeSettings, row: int) -> int:
    """Return the bytes that a view's hops hold for their gradients."""
    total, own_nodes = 0, -(-num_nodes(share) // share.num_workers)
    for hop in _hops(share, settings):
        halo = min(hop.edges, num_nodes(share) - own_nodes)
        total += (_LOCAL_TABLES * (own_nodes + halo) + _ROW_TABLES * hop.heads) * row
        total += hop.edges * _EDGE_FLOATS * FLOAT
    return total


def work(
    share: Share,
    denoising: Denoising,
    diffusion: DiffusionSettings,
    settings: KnowledgeSettings,
    *,
    embedding_dim: int,
    num_layers: int,
    contrast: ContrastSettings,
    propagate_every: int = 1,
) -> Mapping[str, Work]:
    """Return what one worker does in an epoch, by phase.

    Args:
        share: the data.
        denoising: sizes of the denoiser.
        diffusion: its settings.
        settings: of the knowledge graph.
        embedding_dim: d.
        num_layers: L.
        contrast: of the views.
        propagate_every: batches of interactions that a step covers.
    """
    contrasted = contrast.contrastive_weight > 0
    size, dim, views = share.num_workers, embedding_dim, 1 + contrasted
    step_size = denoising.batch_size * propagate_every
    steps = -(-share.num_interactions // step_size)
    nodes, interacting = num_nodes(share) / size, (share.num_users + share.num_items) / size
    edges = share.num_interactions * num_layers * views + _sampled(share, settings) * settings.num_hops * views
    anchors = num_anchors(denoising.batch_size, contrast.max_nodes)
    compared = anchors / size if contrast.negatives == "batch" else interacting / 2
    flops = propagate_every * contrasted * contrast_flop(2 * anchors, compared, dim)
    moved = gathered_bytes(edges / size, dim)
    moved += (nodes * (ADAM_ACCESSES + settings.num_hops * views * 10) + interacting * _ROW_ACCESSES) * dim * FLOAT
    of_products = views * (num_layers * EXCHANGES_PER_PRODUCT + settings.num_hops * _HOP_EXCHANGES)
    of_contrast = contrast_exchanges(2 * contrasted * propagate_every, in_batch=contrast.negatives == "batch")
    exchanges = steps * (of_products + of_contrast + _REPLICAS_EXCHANGES) + ranking_exchanges(
        steps, step_size, contrasted=contrasted, sampled=anchors < denoising.batch_size
    )
    recommend = Work(steps, steps * flops, steps * moved, exchanges if size > 1 else 0)
    if not settings.reads_generated:
        return {"recommend": recommend}
    of_rows = denoised(share, settings)
    return {
        "denoise": denoise_work(of_rows, denoising, diffusion, dim),
        "rebuild": rebuild_work(of_rows, denoising, diffusion),
        "recommend": recommend,
    }


def traffic(
    cuts: Cuts,
    diffusion: DiffusionSettings,
    settings: KnowledgeSettings,
    *,
    embedding_dim: int,
    num_layers: int,
    contrast: ContrastSettings,
    column_shards: int,
) -> list[Traffic]:
    """Return what each worker sends in the first step, before there is a generated graph: both views are K_s.

    Args:
        cuts: the data and how they are cut.
        diffusion: settings of the denoiser.
        settings: of the knowledge graph.
        embedding_dim: d.
        num_layers: L.
        contrast: of the views.
        column_shards: over how many workers the denoiser is spread.
    """
    contrasted = contrast.contrastive_weight > 0
    views, dim = 1 + contrasted, embedding_dim
    hops = _hop_rows(cuts, settings)
    terms = [0] * len(cuts.shards)
    if contrasted:
        in_batch = contrast.negatives == "batch"
        terms = contrast_traffic(cuts, dim, in_batch=in_batch, max_nodes=contrast.max_nodes)
    recommend = [
        {
            relation.TRAFFIC: views
            * (sent_bytes(cuts, num_layers * sum(rows), dim) + of_hops * dim * cuts.value_bytes),
            contrastive.TRAFFIC: of_terms,
        }
        for rows, of_hops, of_terms in zip(real_rows_sent(cuts), hops, terms, strict=True)
    ]
    if not settings.reads_generated:
        return [{"recommend": sent} for sent in recommend]
    denoiser = _denoiser(cuts, diffusion, settings, dim, column_shards)
    return [
        {"recommend": sent, "denoise": {DENOISER: of_denoiser}}
        for sent, of_denoiser in zip(recommend, denoiser, strict=True)
    ]


def _hop_rows(cuts: Cuts, settings: KnowledgeSettings) -> list[int]:
    """Return the rows that each worker sends in all hops of a view: its own ones, and gradients of its halo's."""
    knowledge, shards = cuts.data.knowledge, cuts.shards
    assert knowledge is not None
    facts = knowledge.capped(settings.max_facts, RandomStream.of(cuts.seed, SAMPLED))
    heads, tails = knowledge.own_ids[facts.pairs.row_ids], facts.pairs.indices
    owner = torch.empty(knowledge.num_nodes, dtype=torch.int64)
    for rank, shard in enumerate(shards):
        owner[shard.own_item_ids] = rank
        if ENTITIES in shard.further:
            owner[shard.further[ENTITIES].own.ids + shard.num_items] = rank
    total = torch.zeros(len(shards), dtype=torch.int64)
    for is_last in [False] * (settings.num_hops - 1) + [True]:
        used = heads < shards[0].num_items if is_last else torch.ones_like(heads, dtype=torch.bool)
        pairs = torch.unique(owner[heads[used]] * knowledge.num_nodes + tails[used])
        reader, giver = pairs // knowledge.num_nodes, owner[pairs % knowledge.num_nodes]
        away = reader != giver
        for ranks in (reader[away], giver[away]):
            total += torch.bincount(ranks, minlength=len(shards))
    return [int(rows) for rows in total]


def _denoiser(
    cuts: Cuts, diffusion: DiffusionSettings, settings: KnowledgeSettings, dim: int, column_shards: int
) -> list[int]:
    shards, knowledge = cuts.shards, cuts.data.knowledge
    assert knowledge is not None
    ids = [shard.own_item_ids for shard in shards]
    if settings.rows == "entities" and ENTITIES in shards[0].further:
        further = [shard.further[ENTITIES].own.ids + shard.num_items for shard in shards]
        ids = [torch.cat(both) for both in zip(ids, further, strict=True)]
    return denoiser_traffic(
        ids,
        Ownership.even(knowledge.num_nodes, size=len(shards)).bounds,
        diffusion,
        count=1,
        dim=dim,
        column_shards=column_shards,
        batch_size=cuts.batch_size,
        stream=PhaseContext(World.single(), cuts.seed, 0).stream(settings.rows),
    )
