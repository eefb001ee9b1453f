"""What a model's generated graphs are like, beside the graph that they were generated from, and pictures of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diffmm_dist.charts.neighbors import Kind, Neighbor, neighbors
from diffmm_dist.charts.plots import Bars, bar_chart
from diffmm_dist.charts.png import png
from diffmm_dist.charts.shapes import Picture, stacked
from diffmm_dist.data.training import TrainingData
from diffmm_dist.models.base import GeneratedGraph, Recommender
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.world import World


@dataclass(frozen=True)
class GraphStatistics:
    """A generated graph in numbers, over all workers.

    Attributes:
        num_edges: generated.
        num_source: edges of the graph that it was generated from.
        num_known: generated edges that are edges of that one.
        num_columns: nodes that edges lead to.
        reached: of these the ones that a generated edge leads to.
        source_reached: likewise, an edge of the other graph.
        degrees: bounds of the groups of numbers of edges that lead to a node, both inclusive.
        columns_by_degree: how many nodes are in each group, in the other graph and in the generated one.
    """

    num_edges: int
    num_source: int
    num_known: int
    num_columns: int
    reached: int
    source_reached: int
    degrees: Sequence[tuple[int, int]]
    columns_by_degree: tuple[Sequence[int], Sequence[int]]


def statistics(graph: GeneratedGraph, world: World) -> GraphStatistics:
    """Return the numbers of a graph; every worker calls it at the same time."""
    edges, source = graph.edges, graph.source
    known = int(source.contains(edges.row_ids, edges.indices).sum())
    counts = torch.tensor([edges.num_entries, source.num_entries, known], device=edges.indices.device)
    num_edges, num_source, num_known = all_reduce_sum(counts, world).tolist()
    before, after = (all_reduce_sum(one.column_counts, world) for one in (source, edges))
    bounds = _doubling(int(max(before.max(), after.max())) if before.numel() else 0)
    reached = int((after > 0).sum()), int((before > 0).sum())
    by_degree = _in_groups(before, bounds), _in_groups(after, bounds)
    return GraphStatistics(num_edges, num_source, num_known, before.numel(), *reached, bounds, by_degree)


def _doubling(most: int) -> list[tuple[int, int]]:
    """Return 0, 1, 2, 3 to 4, 5 to 8, and so on, as far as there is something."""
    bounds, low, high = [(0, 0)], 1, 1
    while low <= most:
        bounds.append((low, high))
        low, high = high + 1, high * 2
    return bounds


def _in_groups(counts: Tensor, bounds: Sequence[tuple[int, int]]) -> list[int]:
    ends = torch.tensor([high for _, high in bounds], device=counts.device)
    numbers: list[int] = torch.bincount(torch.searchsorted(ends, counts), minlength=len(bounds)).tolist()
    return numbers


def typical_row(graph: GeneratedGraph, among: Tensor | None = None) -> int | None:
    """Return an own row with generated edges that has as many edges in the source as most such rows, the first of them.

    Args:
        graph: the graph.
        among: bool (own rows,), the rows to choose from if one of them has generated edges.
    """
    has_edges = (graph.edges.row_counts > 0) & (graph.source.row_counts > 0)
    wanted = has_edges if among is None or not bool((has_edges & among).any()) else has_edges & among
    rows = torch.nonzero(wanted).flatten()
    if rows.numel() == 0:
        return None
    counts = graph.source.row_counts[rows]
    return int(rows[torch.argmin((counts - counts.median()).abs())])


@dataclass(frozen=True)
class Edge:
    """A neighbour of a row in either graph.

    Attributes:
        column: its id.
        kind: ``kept`` where both graphs have it, ``new`` in the generated one alone, ``gone`` in the source alone.
        value: what it was chosen by, if that is known.
    """

    column: int
    kind: Kind
    value: float | None = None


def edges_of_row(graph: GeneratedGraph, row: int) -> list[Edge]:
    """Return the generated edges of an own row, by falling value, then those of the source that it has not kept."""
    rows = torch.tensor([row], device=graph.edges.indices.device)
    chosen, before = graph.edges.select(rows).indices.tolist(), set(graph.source.select(rows).indices.tolist())
    values = [None] * len(chosen) if graph.values is None else graph.values(rows).tolist()
    pairs = zip(chosen, values, strict=True)
    found = [Edge(column, "kept" if column in before else "new", value) for column, value in pairs]
    if graph.values is not None:
        found.sort(key=lambda edge: -(edge.value or 0.0))
    return found + [Edge(column, "gone") for column in sorted(before - set(chosen))]


@dataclass(frozen=True)
class Look:
    """How a node and its neighbours are called.

    Attributes:
        centre: the node.
        name_of: a neighbour by its column.
        note_of: what else is to be said of it, by its column.
    """

    centre: str
    name_of: Callable[[int], str]
    note_of: Callable[[int], str] = lambda _: ""


def picture_before(graph: GeneratedGraph, row: int, look: Look) -> Picture:
    """Return an own row's neighbours in the graph that another one was generated from."""
    columns = graph.source.select(torch.tensor([row], device=graph.source.indices.device)).indices.tolist()
    around = [Neighbor(look.name_of(column), note=look.note_of(column)) for column in columns]
    return neighbors("before: the real graph", look.centre, around, words=f"{look.centre}: {len(around)} neighbours")


def picture_after(graph: GeneratedGraph, row: int, look: Look) -> Picture:
    """Return an own row's neighbours in a generated graph, and those that are gone."""
    around = [
        Neighbor(look.name_of(edge.column), edge.kind, edge.value, look.note_of(edge.column))
        for edge in edges_of_row(graph, row)
    ]
    title = f"after: generated{', ' if graph.name else ''}{graph.name}"
    counts = ", ".join(f"{sum(one.kind == kind for one in around)} {kind}" for kind in ("kept", "new", "gone"))
    return neighbors(title, look.centre, around, words=f"{look.centre}, {title}: {counts}")


def degree_picture(graph: GeneratedGraph, found: GraphStatistics) -> Picture:
    """Return how many nodes have how many edges that lead to them, before and after."""
    names = [f"{low:,}" for low, _ in found.degrees]
    before, after = found.columns_by_degree
    bars = [Bars("real graph", list(map(float, before))), Bars("generated", list(map(float, after)))]
    what = "items" if graph.rows == "users" else "entities"
    across = f"{'users' if graph.rows == 'users' else 'entities'} with an edge to it, from so many on"
    return bar_chart(f"number of {what}{', ' if graph.name else ''}{graph.name}", names, bars, across=across)


def figure_of(model: Recommender, data: TrainingData) -> bytes | None:
    """Return a PNG file that shows a model's generated graphs, or nothing of a model that generates none.

    It shows degrees over all workers, and the neighbourhood of a typical row of the first worker. Every worker calls it
    at the same time, with the model as of the epoch that is to be shown.

    Raises:
        UserError: what draws it is not installed.
    """
    pictures = []
    for graph in model.generated_graphs():
        pictures.append(degree_picture(graph, statistics(graph, data.shard.world)))
        row = typical_row(graph)
        if row is not None:
            centre = f"user {data.name_of_user(row)}" if graph.rows == "users" else f"node {row}"
            kind = "item" if graph.rows == "users" else "node"
            pictures.append(picture_after(graph, row, Look(centre, partial("{} {}".format, kind))))
    if not pictures:
        return None
    return png(stacked(pictures, words="generated graphs"))
