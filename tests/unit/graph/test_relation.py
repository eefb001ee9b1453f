import pytest
import torch

from diffmm_dist.graph.equations import layer_sum, normalized_adjacency
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.propagate import propagate, propagate_tables, propagate_to_users, sum_of_layers
from diffmm_dist.graph.relation import Edges, Relation
from diffmm_dist.graph.targets import Targets
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.sparse import CSR
from tests.support.builders import as_matrix, random_pairs, random_rows
from tests.support.optional import dgl_or_skip
from tests.support.reference import dense

KERNELS = ["csr", "dgl"]


@pytest.fixture(params=KERNELS)
def kernel(request):
    if request.param == "dgl":
        dgl_or_skip()
    return request.param


GRAPHS = {
    "cold nodes": lambda: random_pairs(9, 7, empty_rows=[0, 8], empty_columns=[6]),
    "no edges": lambda: random_pairs(4, 3, share=0.0),
    "a hub": lambda: CSR.from_pairs(
        torch.tensor([0, 1, 2, 3, 4, 4]), torch.tensor([2, 2, 2, 2, 2, 0]), num_rows=5, num_columns=3
    ),
    "one edge": lambda: CSR.from_pairs(torch.tensor([0]), torch.tensor([0]), num_rows=1, num_columns=1),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_propagation_equals_the_dense_matrix(name, kernel):
    pairs = GRAPHS[name]()
    expected = normalized_adjacency(dense(pairs))
    torch.testing.assert_close(as_matrix(Relation.normalized(pairs), kernel), expected)


@pytest.mark.parametrize("keep_prob", [1.0, 0.5])
@pytest.mark.parametrize("self_loops", [True, False])
@pytest.mark.parametrize("normalizer", ["symmetric", "row", "row_root", "none"])
@pytest.mark.parametrize("name", GRAPHS)
def test_every_normalizer_equals_the_dense_matrix(name, normalizer, self_loops, keep_prob, kernel):
    pairs = GRAPHS[name]()
    relation = Relation.normalized(pairs, normalizer=normalizer, self_loops=self_loops)
    found = as_matrix(relation.dropped(keep_prob, RandomStream.of(1)), kernel)
    expected = normalized_adjacency(dense(pairs), normalizer=normalizer, self_loops=self_loops) / keep_prob
    torch.testing.assert_close(found, torch.where(found != 0, expected, 0))
    assert keep_prob < 1 or torch.equal(found != 0, expected != 0)


def test_a_single_edge_gives_one_half_everywhere():
    pairs = GRAPHS["one edge"]()
    torch.testing.assert_close(as_matrix(Relation.normalized(pairs)), torch.full((2, 2), 0.5))


def test_isolated_nodes_keep_a_weight_of_one():
    matrix = as_matrix(Relation.normalized(GRAPHS["no edges"]()))
    assert torch.equal(matrix, torch.eye(7))


def test_gradients_equal_the_dense_ones(kernel):
    pairs = GRAPHS["cold nodes"]()
    graph = HeteroGraph({REAL: Relation.normalized(pairs).dropped(0.6, RandomStream.of(1))}, kernel=kernel)
    matrix = as_matrix(graph.relations[REAL])
    weights = random_rows(16, 5, seed=9)
    users, items = random_rows(9, 5, 1, grad=True), random_rows(7, 5, 2, grad=True)
    (torch.cat(propagate(graph, REAL, users, items)) * weights).square().sum().backward()
    rows = torch.cat([users, items]).detach().requires_grad_()
    ((matrix @ rows) * weights).square().sum().backward()
    torch.testing.assert_close(torch.cat([users.grad, items.grad]), rows.grad)


def test_both_kernels_agree():
    dgl_or_skip()
    pairs = random_pairs(300, 200, share=0.05)
    relation = Relation.normalized(pairs)
    for graph in (relation, relation.dropped(0.5, RandomStream.of(7))):
        results = []
        for kernel in KERNELS:
            users, items = random_rows(300, 33, 1, grad=True), random_rows(200, 33, 2, grad=True)
            out = propagate(HeteroGraph({REAL: graph}, kernel=kernel), REAL, users, items)
            (out[0].square().sum() + out[1].pow(3).sum()).backward()
            results.append((*out, users.grad, items.grad))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep_prob", [0.0, 0.4, 1.0])
def test_drop_keeps_entries_independently_and_rescales(keep_prob):
    pairs = random_pairs(60, 50, share=0.4)
    whole = Relation.normalized(pairs)
    full, dropped = as_matrix(whole), as_matrix(whole.dropped(keep_prob, RandomStream.of(5)))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], full[kept] / max(keep_prob, 1e-9))
    assert kept.sum() / (full != 0).sum() == pytest.approx(keep_prob, abs=0.04)
    if keep_prob == 0.4:
        edges = full[:60, 60:] != 0
        forth, back = kept[:60, 60:][edges], kept[60:, :60].T[edges]
        both = (forth & back).float().mean()
        assert both == pytest.approx(0.16, abs=0.04)  # the two directions of an edge are drawn apart
        loops = kept.diagonal().float().mean()
        assert loops == pytest.approx(0.4, abs=0.15)


def test_drop_is_keyed_by_the_stream():
    relation = Relation.normalized(random_pairs(30, 30, share=0.3))
    matrices = [as_matrix(relation.dropped(0.5, RandomStream.of(seed))) for seed in (1, 1, 2)]
    assert torch.equal(matrices[0], matrices[1])
    assert not torch.equal(matrices[0], matrices[2])


def test_sum_of_layers():
    pairs = GRAPHS["cold nodes"]()
    graph = HeteroGraph({REAL: Relation.normalized(pairs)})
    rows = random_rows(16, 4)
    for num_layers in (0, 1, 3):
        ours = torch.cat(sum_of_layers(graph, (rows[:9], rows[9:]), num_layers=num_layers))
        torch.testing.assert_close(ours, layer_sum(normalized_adjacency(dense(pairs)), rows, num_layers=num_layers))


@pytest.mark.parametrize("kernel", ["csr", "dgl"])
@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
def test_some_rows_of_the_layers(num_layers, kernel):
    """Those of the whole, in any order, and gradients as if all had been computed and the others had got none."""
    if kernel == "dgl":
        dgl_or_skip()
    pairs = GRAPHS["cold nodes"]()
    graph = HeteroGraph({REAL: Relation.normalized(pairs)}, kernel=kernel)
    rows = random_rows(16, 4).requires_grad_()
    for at in ((torch.tensor([4, 0, 8]), torch.tensor([6, 1])), (torch.tensor([], dtype=torch.int64), torch.arange(7))):
        found = torch.cat(
            sum_of_layers(
                graph, (rows[:9], rows[9:]), num_layers=num_layers, targets=Targets.of(graph.relations[REAL], at)
            )
        )
        whole = layer_sum(normalized_adjacency(dense(pairs)), rows, num_layers=num_layers)
        expected = torch.cat([whole[at[0]], whole[9 + at[1]]])
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(x.pow(3).sum(), rows)[0] for x in (found, expected)))


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_product_with_its_input_and_the_half_product(kind):
    pairs = GRAPHS[kind]()
    graph, adjacency = HeteroGraph({REAL: Relation.normalized(pairs)}), normalized_adjacency(dense(pairs))
    num_users = pairs.num_rows
    rows = random_rows(num_users + pairs.num_columns, 4).requires_grad_()
    weights = random_rows(len(rows), 4, 2)
    with_input = torch.cat(propagate(graph, REAL, rows[:num_users], rows[num_users:], with_input=True))
    users = propagate_to_users(graph, REAL, rows[:num_users], rows[num_users:])
    expected = rows + adjacency @ rows, (adjacency @ rows)[:num_users]
    for ours, plain in zip((with_input, users), expected, strict=True):
        torch.testing.assert_close(ours, plain)
        gradients = [torch.autograd.grad((x * weights[: len(x)]).sum(), rows)[0] for x in (ours, plain)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("num_tables", [1, 2, 3])
def test_several_item_tables_give_the_products_of_each(kind, num_tables):
    relation = Relation.normalized(GRAPHS[kind]()).dropped(0.5, RandomStream.of(3))
    graph, adjacency = HeteroGraph({REAL: relation}), as_matrix(relation)
    users = random_rows(len(relation.user_loop), 4).requires_grad_()
    tables = [random_rows(len(relation.item_loop), 4, seed).requires_grad_() for seed in range(num_tables)]
    ours = [torch.cat(rows) for rows in propagate_tables(graph, REAL, users, tables)]
    plain = [adjacency @ torch.cat([users, table]) for table in tables]
    torch.testing.assert_close(ours, plain)
    weights = [random_rows(len(rows), 4, seed) for seed, rows in enumerate(plain, 5)]
    gradients = [
        torch.autograd.grad(sum((w * rows).sum() for w, rows in zip(weights, of, strict=True)), [users, *tables])
        for of in (ours, plain)
    ]
    torch.testing.assert_close(*gradients)


def test_heterograph_has_both_directions_of_every_relation():
    dgl_or_skip()
    real, generated = Relation.normalized(GRAPHS["cold nodes"]()), Relation.normalized(random_pairs(9, 7, seed=4))
    graph = HeteroGraph({REAL: real}).with_relations({"generated_visual": generated}).dgl_graph
    assert set(graph.canonical_etypes) == {
        ("user", "interacts", "item"), ("item", "rev_interacts", "user"),
        ("user", "generated_visual", "item"), ("item", "rev_generated_visual", "user"),
    }  # fmt: skip
    assert graph.num_nodes("user") == 9
    assert graph.num_edges("interacts") == real.to_items.num_edges


def test_nodes_and_edges_of_any_types(kernel):
    """A knowledge graph and its relation to the items beside the interactions: each sums over its own edges."""
    pairs = GRAPHS["cold nodes"]()
    relation = Relation.normalized(pairs)
    knows, about = random_pairs(11, 11, seed=4, empty_rows=[3]), random_pairs(7, 11, seed=5)
    ones = [(torch.rand(pattern.num_rows), torch.rand(pattern.num_columns)) for pattern in (knows, about)]
    further = {
        ("entity", kind, target): Edges.weighted(pattern, pattern.transpose(), *scales)
        for (kind, target, pattern), scales in zip(
            (("knows", "entity", knows), ("about", "item", about)), ones, strict=True
        )
    }
    graph = HeteroGraph({REAL: relation}, further=further, kernel=kernel)
    assert graph.num_nodes == {"user": 9, "item": 7, "entity": 11}
    rows = random_rows(11, 5, seed=6)
    for (edges, pattern), (targets, sources) in zip(
        zip(further.values(), (knows, about), strict=True), ones, strict=True
    ):
        matrix = dense(pattern) * targets[:, None] * sources
        torch.testing.assert_close(graph.neighbor_sum(edges, rows), matrix @ rows)
        back = random_rows(pattern.num_rows, 5, seed=7)
        torch.testing.assert_close(graph.neighbor_sum(edges.reversed, back), matrix.T @ back)
        own = torch.rand(edges.num_edges)
        other = torch.zeros_like(matrix).index_put((pattern.row_ids, pattern.indices), own)
        torch.testing.assert_close(graph.neighbor_sum(edges, rows, own), other @ rows)
    torch.testing.assert_close(as_matrix(relation, kernel), normalized_adjacency(dense(pairs)))
    if kernel == "dgl":
        assert set(graph.dgl_graph.canonical_etypes) == {
            ("user", REAL, "item"), ("item", f"rev_{REAL}", "user"), ("entity", "knows", "entity"),
            ("entity", "about", "item"),
        }  # fmt: skip
