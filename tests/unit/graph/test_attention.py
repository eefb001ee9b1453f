"""Parts of relational attention; values and gradients of the whole in tests/distributed and tests/numerics."""

import torch

from diffmm_dist.graph.attention import Pairs, TypedEdges, attention_of, relational_attention, segment_softmax
from diffmm_dist.graph.hetero import HeteroGraph
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import AllRows
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR
from tests.support.builders import random_pairs, random_rows


def test_softmax_of_rows_with_none_one_and_huge_scores():
    rows = CSR(torch.tensor([0, 0, 1, 3, 6]), torch.tensor([0, 0, 1, 0, 1, 2]), 3)
    scores = torch.tensor([5.0, -1e4, 1e4, 700.0, 700.0, -700.0])
    assert segment_softmax(scores, rows).tolist() == [1.0, 0.0, 1.0, 0.5, 0.5, 0.0]
    assert (
        segment_softmax(torch.empty(0), CSR(torch.zeros(3, dtype=torch.int64), torch.empty(0).long(), 2)).numel() == 0
    )


def test_a_graph_without_edges_leaves_every_row_as_it_is():
    none = CSR(torch.zeros(4, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 5)
    nodes = AllRows(Ownership((0, 5)), torch.arange(5))
    edges = TypedEdges.of(none, torch.empty(0, dtype=torch.int64), nodes, World.single(), num_relations=2)
    rows, maps = random_rows(5, 3, grad=True), random_rows(2, 3, seed=1, grad=True)
    found = relational_attention(HeteroGraph({}, further={("a", "b", "c"): edges.edges}), edges, rows, maps, maps)
    assert torch.equal(found, rows[:3])
    found.sum().backward()
    assert torch.equal(rows.grad, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])[:, None].expand(5, 3))
    assert not maps.grad.any()


def test_pairs_are_each_computed_once():
    nodes, relations = torch.tensor([2, 0, 2, 2]), torch.tensor([1, 0, 1, 0])
    pairs = Pairs.of(nodes, relations, num_nodes=3, num_relations=2)
    assert pairs.pattern.num_entries == 3
    rows, maps = random_rows(3, 4), random_rows(2, 4, seed=1)
    expected = (rows[nodes] * maps[relations]).sum(dim=1)
    torch.testing.assert_close(pairs.products(rows, maps)[pairs.places], expected)


def test_gradients_are_those_of_finite_differences():
    pairs = random_pairs(6, 8, share=0.4, empty_rows=(2,))
    relations = torch.arange(pairs.num_entries) % 3
    nodes = AllRows(Ownership((0, 8)), torch.arange(8))
    edges = TypedEdges.of(pairs, relations, nodes, World.single(), num_relations=3)
    kinds = {("entity", "knows", "head"): edges.edges, ("head", "rev_knows", "entity"): edges.edges.reversed}
    graph = HeteroGraph({}, further=kinds)
    tensors = [random_rows(n, 3, seed=n).double().requires_grad_() for n in (8, 3, 3)]
    tensors[2] = (tensors[2] * 2).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: relational_attention(graph, edges, *t), tensors, atol=1e-6)
    assert attention_of(edges, *tensors).weights.dtype == torch.float64
