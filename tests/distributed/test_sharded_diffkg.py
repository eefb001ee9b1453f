"""DiffKG on shards: its facts, its attention and every phase equal the golden numbers and what one worker finds."""

from itertools import product

import pytest
import torch

from diffmm_dist.data.knowledge import Facts
from diffmm_dist.graph import equations
from diffmm_dist.graph.attention import TypedEdges, relational_attention
from diffmm_dist.graph.hetero import HeteroGraph
from diffmm_dist.models.base import Optimization, PhaseContext
from diffmm_dist.models.diffkg.generated import generated_facts
from diffmm_dist.models.diffkg.phases import ContrastSettings, Selection, diffkg_phases, recommend_losses
from diffmm_dist.parallel.collectives import all_reduce_sum, gather_rows, worker_counts
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.replicas import sum_gradients
from diffmm_dist.parallel.world import World
from tests.support.builders import random_rows
from tests.support.golden_diffkg import FILES, Golden, batch_of, build, dropout_of, knowledge_in, shard_in, table_values
from tests.support.optional import dgl_or_skip
from tests.support.workers import SIZES, on_workers

CHOOSE = Selection("all", None)
CONTRAST = ContrastSettings(1.0, 1.0)


def goldens():
    return [Golden(path, torch.float32) for path in FILES]


def shards(world, golden):
    return [shard_in(golden, world), shard_in(golden, world, mixed=True)]


def triples(knowledge, facts, world):
    """The facts of all workers, sorted: head, relation, tail by id."""
    own = torch.stack([knowledge.own_ids[facts.pairs.row_ids], facts.relations, facts.pairs.indices], dim=1)
    return gather_rows(own, worker_counts(len(own), world), world, purpose="test").unique(dim=0)


def check_facts(world):
    """Every worker has the facts of its nodes, the same are sampled, and chosen ones come with their reverse."""
    for golden in goldens():
        whole = knowledge_in(golden, shard_in(golden))
        expected = golden["kg_edges"].unique(dim=0)
        stream = RandomStream.of(1)
        sampled = triples(whole, whole.capped(2, stream), World.single())
        assert len(sampled) < len(expected)
        tails = torch.randint(-1, whole.num_nodes, (whole.num_nodes, 9), generator=torch.Generator().manual_seed(1))
        chosen = triples(whole, generated_facts(whole, tails, World.single()), World.single())
        for shard in shards(world, golden):
            knowledge = knowledge_in(golden, shard)
            assert torch.equal(triples(knowledge, knowledge.facts, world), expected)
            assert torch.equal(triples(knowledge, knowledge.capped(2, stream), world), sampled)
            ours = generated_facts(knowledge, tails[knowledge.own_ids], world)
            assert torch.equal(triples(knowledge, ours, world), chosen)


def check_attention(world):
    """Values and gradients of attention, over all nodes and over items alone."""
    for golden, to_items in product(goldens(), (False, True)):
        num_relations, num_nodes = golden["num_relations_with_inverse"], golden["num_entities"]
        heads = golden["num_items"] if to_items else num_nodes
        edges = golden["kg_edges"]
        edges = edges[edges[:, 0] < heads]
        tensors = [random_rows(count, 5, seed=count) for count in (num_nodes, num_relations, 10)]
        pulls = random_rows(num_nodes, 5, seed=1)
        dense = [tensor.clone().requires_grad_() for tensor in tensors]
        values, _, _ = equations.relational_attention(dense[0], edges, dense[1], dense[2])
        (values[:heads] * pulls[:heads]).sum().backward()
        for shard, kernel in product(shards(world, golden), ("csr", "dgl")):
            knowledge = knowledge_in(golden, shard)
            own = knowledge.own_ids
            ours = [tensor.clone().requires_grad_() for tensor in (tensors[0][own], *tensors[1:])]
            facts = of_items(knowledge.facts, shard) if to_items else knowledge.facts
            found = attended(knowledge, facts, ours, num_relations, kernel, world)
            ids = own[: found.shape[0]]
            torch.testing.assert_close(found, values[ids], rtol=1e-4, atol=1e-5)
            (found * pulls[ids]).sum().backward()
            sums = [all_reduce_sum(mine.grad, world) for mine in ours[1:]]
            expected = [dense[0].grad[own], dense[1].grad, dense[2].grad]
            torch.testing.assert_close([ours[0].grad, *sums], expected, rtol=1e-4, atol=2e-5)


def of_items(facts, shard):
    pairs = facts.pairs.first(shard.items.own.size)
    return Facts(pairs, facts.relations[: pairs.num_entries])


def attended(knowledge, facts, tensors, num_relations, kernel, world):
    rows, relations, weight = tensors
    edges = TypedEdges.of(facts.pairs, facts.relations, knowledge.nodes, world, num_relations=num_relations)
    kinds = {("entity", "knows", "head"): edges.edges, ("head", "rev_knows", "entity"): edges.edges.reversed}
    graph = HeteroGraph({}, further=kinds, kernel=kernel)
    first, second = weight.chunk(2)
    return relational_attention(graph, edges, rows, relations @ first.T, relations @ second.T)


def check_recommend_step(world):
    """Every loss and gradient of the first step of both modes, for both kernels."""
    for golden, mode in product(goldens(), ("reference", "corrected")):
        for shard, kernel in product(shards(world, golden), ("csr", "dgl")):
            model = build(golden, shard=shard, kernel=kernel, mode=mode)
            compare_step(golden, model, f"rec_{mode}_0_", world)


def compare_step(golden, model, prefix, world):
    model.use_facts(golden.facts("kg_kept_edges", model.knowledge)[0])
    names = {"main": "main", "auxiliary": "aux"}
    losses = recommend_losses(
        model,
        batch_of(golden, 0, model.shard),
        Optimization(golden["batch_size"], golden["learning_rate"], golden["reg_weight"]),
        ContrastSettings(golden["contrast_weight"], golden["temperature"]),
        dropout=lambda _model, _stream, view: dropout_of(golden, 0, names[view], model),
    )
    for name, key in (("bpr", "bpr"), ("reg", "l2")):
        golden.check(f"{prefix}loss_{name}", all_reduce_sum(losses[key].detach(), world))
    total = sum(losses.values())
    golden.check(f"{prefix}loss_total", all_reduce_sum(total.detach(), world))
    total.backward()
    sum_gradients(model.replicas, world, purpose="test")
    own = {"user_embedding": model.shard.user_ids, "entity_embedding": model.knowledge.own_ids}
    for name, gradient in table_values(model, "grad").items():
        expected = golden[f"{prefix}grad_{name}"][own.get(name, ...)]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def check_denoiser(world):
    """A step of the denoiser and a rebuild, whole or spread over the columns, with every way to choose tails."""
    counts = [count for count in range(1, world.size + 1) if world.size % count == 0]
    choices = [CHOOSE, Selection("neighbors", None), Selection("neighbors", 0.2)]
    for golden in goldens():
        for products, selection in zip(("direct", "gram", "auto"), choices, strict=True):
            options = {"products": products, "rebuild_topk": 3, "edge_keep_prob": 0.6}
            alone = build(golden, **options)
            expected = epoch_of(alone, selection, World.single())
            for shard, count in product(shards(world, golden), counts):
                model = build(golden, shard=shard, num_column_shards=count, **options)
                compare(model, epoch_of(model, selection, world), alone, expected, world)


def epoch_of(model, selection, world):
    """The first step's values, and what a rebuild with the denoiser as it was reports."""
    optimization = Optimization(batch_size=9, learning_rate=0.0, l2_weight=0.0)
    denoise, rebuild, _ = diffkg_phases(model, optimization, CONTRAST, selection)
    context = PhaseContext(world, 3, 1)
    assert denoise.begin(context) == -(-model.knowledge.num_nodes // 9)
    values = {name: all_reduce_sum(value, world) for name, value in denoise.step(0).items()}
    denoise.finish()
    for index in range(rebuild.begin(context)):
        rebuild.step(index)
    return values | rebuild.finish()


def compare(model, ours, alone, expected, world):
    assert list(ours) == list(expected)
    for name, value in expected.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=1e-4)
    found = triples(model.knowledge, model.views["generated"].facts, world)
    assert torch.equal(found, triples(alone.knowledge, alone.views["generated"].facts, World.single()))
    columns = model.denoising.shard.columns.ids
    whole = dict(alone.denoiser.named_parameters())
    for name, parameter in model.denoiser.named_parameters():
        gradient = whole[name].grad
        gradient = gradient[columns] if name in type(model.denoiser).PER_ITEM else gradient
        atol = 1e-5 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def check_exports(world):
    """Embeddings of entities, and attention, of the view that is evaluated."""
    for golden in goldens():
        for shard in shards(world, golden):
            model = build(golden, shard=shard)
            model.use_facts(golden.facts("kg_kept_edges", model.knowledge)[0])
            name = "original" if golden["main_view"] else "generated"
            entities = model.knowledge.own_ids[shard.items.own.size :]
            expected = golden[f"forward_{name}_entity"][entities]
            torch.testing.assert_close(model.further_embeddings()["entities"], expected, rtol=1e-4, atol=1e-5)
            facts = model.attended_facts()
            sums = torch.zeros(model.knowledge.num_nodes).index_add_(0, facts.heads, facts.attention)
            torch.testing.assert_close(sums[facts.heads], torch.ones(len(facts.heads)))
            if golden["num_hops"] == 1:
                edges = "kg_training_edges" if golden["main_view"] else "kg_kept_edges"
                _, places = golden.facts(edges, model.knowledge)
                torch.testing.assert_close(facts.attention, golden[f"forward_{name}_hop0_attention"][places])


@pytest.mark.parametrize("size", SIZES)
def test_parts_equal_the_whole(size):
    dgl_or_skip()
    on_workers(size, check_facts, check_attention, check_recommend_step, check_denoiser, check_exports)
