"""Generated graphs of trained runs: in numbers, by the values that edges were chosen by, and drawn."""

import pytest
import torch

from diffmm_dist.charts.shapes import Dot
from diffmm_dist.models.base import GeneratedGraph
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR
from diffmm_dist.training.generated import (
    Edge,
    Look,
    degree_picture,
    edges_of_row,
    figure_of,
    picture_after,
    statistics,
    typical_row,
)
from diffmm_dist.training.trained import load_trained
from tests.support.builders import metrics_of, small_config, synthetic_dataset, train_alone


def csr(pairs, num_rows=3, num_columns=6):
    rows, columns = (torch.tensor(column) for column in zip(*pairs, strict=True))
    return CSR.from_pairs(rows, columns, num_rows=num_rows, num_columns=num_columns)


@pytest.fixture
def graph():
    """Row 0 keeps an edge, gets one and loses one; row 2 has no generated edge."""
    edges = csr([(0, 1), (0, 5), (1, 5)])
    values = {0: [0.25, 0.75], 1: [0.5]}
    return GeneratedGraph("visual", "users", edges, csr([(0, 1), (0, 2), (1, 0), (2, 1), (2, 3), (2, 4)]),
                          lambda rows: torch.tensor(values[int(rows)]))  # fmt: skip


def test_a_graph_in_numbers(graph):
    found = statistics(graph, World.single())
    assert (found.num_edges, found.num_source, found.num_known) == (3, 6, 1)
    assert (found.num_columns, found.reached, found.source_reached) == (6, 2, 5)
    assert found.degrees == [(0, 0), (1, 1), (2, 2)]
    assert found.columns_by_degree == ([1, 4, 1], [4, 1, 1])
    assert degree_picture(graph, found).words


def test_the_edges_of_a_row(graph):
    assert edges_of_row(graph, 0) == [Edge(5, "new", 0.75), Edge(1, "kept", 0.25), Edge(2, "gone")]
    drawn = picture_after(graph, 0, Look("user 0", str, lambda column: "in test" if column == 5 else ""))
    assert [shape.title for shape in drawn.shapes if isinstance(shape, Dot)] == [
        "5, new, 0.75, in test", "1, kept, 0.25", "2, gone"
    ]  # fmt: skip
    without = GeneratedGraph("", "nodes", graph.edges, graph.source)
    assert [edge.value for edge in edges_of_row(without, 0)] == [None] * 3


def test_a_typical_row_has_generated_edges(graph):
    assert typical_row(graph) in (0, 1)
    assert typical_row(graph, torch.tensor([False, True, True])) == 1
    assert typical_row(graph, torch.tensor([False, False, True])) in (0, 1)
    empty = CSR(torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 6)
    assert typical_row(GeneratedGraph("", "users", empty, graph.source)) is None
    found = statistics(GeneratedGraph("", "users", empty, graph.source), World.single())
    assert (found.num_edges, found.reached) == (0, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("d") / "d", knowledge=True)


def run_of(data, folder, **model):
    train_alone(small_config(data, folder, train={"epochs": 2}, model=model))
    return load_trained(str(folder))


@pytest.mark.parametrize("more", [{}, {"sampling_steps": 2}, {"sampling_noise": True, "sampling_steps": 2}])
def test_values_are_those_that_edges_were_chosen_by(data, tmp_path, more):
    """Of each user the generated items have the largest of all values, and those come again after loading."""
    run = run_of(data, tmp_path / "r", name="diffmm", diffusion={"rebuild_topk": 3, **more})
    graphs = run.model.generated_graphs()
    assert [graph.name for graph in graphs] == ["visual", "textual"]
    rows = torch.tensor([4, 0, 17])
    everything = CSR.from_pairs(*torch.ones(60, 40).nonzero(as_tuple=True), num_rows=60, num_columns=40)
    epoch = int(run.model.generated_epoch)
    for graph in graphs:
        assert graph.edges.row_counts.unique().tolist() == [3]
        every = run.model.denoising.values_at(everything, graph.name, rows, seed=421, epoch=epoch).view(3, 40)
        of_edges = graph.values(rows).view(3, 3)
        assert torch.equal(of_edges.sort(dim=1).values, every.topk(3, dim=1).values.sort(dim=1).values)
        found = statistics(graph, run.world)
        assert (found.num_edges, found.num_source) == (180, run.data.interactions.num_entries)
    recorded = metrics_of(tmp_path / "r")[run.best_epoch]["rebuild/observed_share_visual"]
    assert recorded == pytest.approx(statistics(graphs[0], run.world).num_known / 180)


def test_facts_are_a_generated_graph_too(data, tmp_path):
    run = run_of(data, tmp_path / "r", name="diffkg")
    (graph,) = run.model.generated_graphs()
    found = statistics(graph, run.world)
    assert graph.rows == "nodes"
    assert found.num_edges == found.num_known == metrics_of(tmp_path / "r")[run.best_epoch]["rebuild/chosen_facts"]
    assert found.num_source == run.data.knowledge.facts.pairs.num_entries
    assert figure_of(run.model, run.data).startswith(b"\x89PNG")


def test_a_model_without_generated_graphs_has_no_figure(data, tmp_path):
    run = run_of(data, tmp_path / "r", name="lightgcn")
    assert run.model.generated_graphs() == []
    assert figure_of(run.model, run.data) is None
