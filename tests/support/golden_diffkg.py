"""The golden files of DiffKG, and the model built from one of them, whole or one worker's shard."""

from dataclasses import replace
from pathlib import Path

import torch

from diffmm_dist.data.knowledge import Facts, knowledge_of
from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.relation import Relation
from diffmm_dist.models.common.denoising import DiffusionSettings
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.models.diffkg.model import DiffKG, KnowledgeSettings, ViewName
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import AllRows, Shard
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR
from tests.support.builders import own_rows
from tests.support.golden_adagcl import Golden as _Golden
from tests.support.workers import cuts, shard_with

FILES = sorted((Path(__file__).parents[1] / "golden" / "diffkg").glob("*.npz"))


class Golden(_Golden):
    """One file, read in a precision, and the record of which of its arrays were compared."""

    def facts(self, name, knowledge):
        """The own ones of a list of (head, relation, tail), as facts, and their places in the list."""
        edges = self[name]
        local = torch.full((knowledge.num_nodes,), -1)
        local[knowledge.own_ids] = torch.arange(knowledge.own_ids.numel())
        mine = torch.nonzero(local[edges[:, 0]] >= 0).flatten()
        heads, tails = local[edges[mine, 0]], edges[mine, 2]
        order = torch.argsort(heads * knowledge.num_nodes + tails)
        sizes = {"num_rows": knowledge.own_ids.numel(), "num_columns": knowledge.num_nodes}
        return Facts(CSR.from_pairs(heads, tails, **sizes), edges[mine[order], 1]), mine[order]


def knowledge_in(golden, shard):
    """A worker's slice of the file's knowledge graph, from its triples as they stand."""
    axes = [shard.all_items, shard.further["entities"]]
    triples = golden["kg_triples_file"]
    by_row = torch.cat([axes[0].ids, axes[1].ids + shard.num_items])
    rows = torch.argsort(by_row)
    columns = rows[triples[:, 0]], triples[:, 1], rows[triples[:, 2]]
    return knowledge_of([columns], axes, num_relations=golden["num_relations"])


def shard_in(golden, world=None, mixed=False):
    """Even ranges of everything, or uneven ones of items and entities whose rows lie in another order."""
    num_users, num_items = golden.num_nodes
    num_entities = golden["num_entities"] - num_items
    world = world or World.single()
    if not mixed:
        whole = Shard.whole(num_users, num_items, world=world)
        ownership = Ownership.even(num_entities, rank=world.rank, size=world.size)
        return replace(whole, further={"entities": AllRows(ownership, torch.arange(num_entities))})
    generator = torch.Generator().manual_seed(5)
    last = world.size - 1 if world.size > 1 else None
    item_ids, entity_ids = (torch.randperm(count, generator=generator) for count in (num_items, num_entities))
    shard = shard_with(world, cuts(num_users, world.size), cuts(num_items, world.size, last), item_ids=item_ids)
    ownership = Ownership(tuple(cuts(num_entities, world.size, 0 if world.size > 1 else None)), world.rank)
    return replace(shard, further={"entities": AllRows(ownership, entity_ids)})


def build(golden, *, shard=None, kernel="csr", mode="corrected", num_column_shards=1, **changed):
    """The model as the file has it before its first step."""
    shard = shard or shard_in(golden)
    edges = golden["train_edges"]
    pairs = CSR.from_pairs(edges[:, 0], edges[:, 1], num_rows=shard.num_users, num_columns=shard.num_items)
    own = own_rows(pairs, shard)
    knowledge = knowledge_in(golden, shard)
    data = TrainingData(shard, own, pairs.num_entries, {}, knowledge)
    graph = HeteroGraph({REAL: Relation.normalized(own, shard, dtype=golden.dtype)}, kernel=kernel)
    cap = golden["triplets_per_head"]
    main: ViewName = "original" if golden["main_view"] else "generated"
    settings = KnowledgeSettings(
        golden["num_hops"], golden["residual_weight"], None if cap < 0 else cap, golden["message_dropout"],
        {"reference": "released"}.get(mode, mode), main, "main", False, "entities",
    )  # fmt: skip
    diffusion = DiffusionSettings(
        golden["diffusion_steps"], golden["noise_scale"], golden["noise_min"], golden["noise_max"],
        golden["sampling_steps"], False, (golden["hidden_dim"],), golden["time_dim"], golden["denoiser_dropout"], True,
        golden["ckgc_weight"], golden["rebuild_k"], golden["keep_rate"],
    )  # fmt: skip
    model = DiffKG(
        data, graph, seed=0, embedding_dim=golden["embedding_dim"], num_layers=golden["num_layers"], settings=settings,
        diffusion=replace(diffusion, **changed), num_column_shards=num_column_shards,
        sampled=golden.facts("kg_training_edges", knowledge)[0],
    ).to(golden.dtype)  # fmt: skip
    with torch.no_grad():
        model.user_embedding.copy_(golden["param_user_embedding"][shard.user_ids])
        nodes = golden["param_entity_embedding"][knowledge.own_ids]
        model.item_embedding.copy_(nodes[: shard.items.own.size])
        model.entity_embedding.copy_(nodes[shard.items.own.size :])
        model.relation_embedding.copy_(golden["param_relation_embedding"])
        model.attention_weight.copy_(golden["param_attention_weight"])
    load_denoiser(golden, model, "denoiser_")
    return model


@torch.no_grad()
def load_denoiser(golden, model, prefix):
    """Give the denoiser the values that stand in the file under a prefix, at own columns."""
    own, denoiser = model.denoising.shard.columns.ids, model.denoiser
    into = golden[f"{prefix}in_layers_0_weight"].T
    values = {
        "time_layer.weight": golden[f"{prefix}emb_layer_weight"],
        "time_layer.bias": golden[f"{prefix}emb_layer_bias"],
        "input_weight": into[own],
        "input_time_weight": into[golden["num_entities"] :],
        "input_bias": golden[f"{prefix}in_layers_0_bias"],
        "output_weight": golden[f"{prefix}out_layers_0_weight"][own],
        "output_bias": golden[f"{prefix}out_layers_0_bias"][own],
    }
    for name, parameter in denoiser.named_parameters():
        parameter.copy_(values[name])


def denoiser_values(denoiser, attribute=None):
    """The denoiser's parameters, or another attribute of each such as its gradient, by the file's names."""

    def value(parameter):
        return parameter if attribute is None else getattr(parameter, attribute)

    into = torch.cat([value(denoiser.input_weight), value(denoiser.input_time_weight)]).T
    return {
        "emb_layer_weight": value(denoiser.time_layer.weight),
        "emb_layer_bias": value(denoiser.time_layer.bias),
        "in_layers_0_weight": into,
        "in_layers_0_bias": value(denoiser.input_bias),
        "out_layers_0_weight": value(denoiser.output_weight),
        "out_layers_0_bias": value(denoiser.output_bias),
    }


def table_values(model, attribute=None):
    """The same of the network's parameters, of own rows."""

    def value(parameter):
        return parameter if attribute is None else getattr(parameter, attribute)

    return {
        "user_embedding": value(model.user_embedding),
        "entity_embedding": torch.cat([value(model.item_embedding), value(model.entity_embedding)]),
        "relation_embedding": value(model.relation_embedding),
        "attention_weight": value(model.attention_weight),
    }


def batch_of(golden, step, shard):
    """The part of a batch whose users a worker owns."""
    users, pos, neg = golden[f"rec_{step}_batch"].unbind(1)
    mine = (users >= shard.users.own.start) & (users < shard.users.own.stop)
    return RankingBatch.of(shard, users[mine] - shard.users.own.start, pos[mine], neg[mine], size=len(users))


def dropout_of(golden, step, view, model):
    """The message dropout of a view."""
    own, rate = model.knowledge.own_ids, golden["message_dropout"]

    def factors(hop, count):
        kept = golden[f"rec_{step}_keep_{view}_hop{hop}"].to(golden.dtype)
        return kept[own[:count]] / (1 - rate)

    return factors
