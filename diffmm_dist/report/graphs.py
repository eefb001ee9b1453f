"""The graphs that a run has generated: in numbers, and around one user before and after."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diffmm_dist.charts.shapes import Picture
from diffmm_dist.data.knowledge import ENTITIES
from diffmm_dist.data.schema import Split
from diffmm_dist.errors import UserError
from diffmm_dist.models.base import GeneratedGraph
from diffmm_dist.sparse import CSR
from diffmm_dist.training.generated import (
    GraphStatistics,
    Look,
    degree_picture,
    picture_after,
    picture_before,
    statistics,
    typical_row,
)
from diffmm_dist.training.trained import TrainedRun
from diffmm_dist.words import shortened, shown

_MARK = {"test": "in test", "valid": "in validation"}


@dataclass(frozen=True)
class ShownGraph:
    """A generated graph as the page shows it.

    Attributes:
        name: of the graph, such as a modality; empty for an only one.
        rows: what its rows are.
        numbers: statistics.
        degrees: a picture of them.
        centre: name of the node that is drawn, empty where none is.
        before: its neighbours in the graph that this one was generated from.
        after: its neighbours in this one.
    """

    name: str
    rows: str
    numbers: GraphStatistics
    degrees: Picture
    centre: str = ""
    before: Picture | None = None
    after: Picture | None = None


def shown_graphs(run: TrainedRun, *, user: str | None, among: Tensor, truth: CSR, split: Split) -> Sequence[ShownGraph]:
    """Return the graphs that a run's best epoch was trained with.

    Args:
        run: the run.
        user: original id of the user to draw; None takes a typical one.
        among: bool (own users,), from whom that is taken.
        truth: what is to be found (own users x item ids), which is marked.
        split: of that.

    Raises:
        UserError: there is no such user.
    """
    names = _Names(run)
    wanted = None if user is None else names.row_of_user(user)
    drawn = _Drawn(run, names, wanted, among, truth, _MARK[split])
    return [_shown(graph, drawn) for graph in run.model.generated_graphs()]


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What is drawn of each graph; ``user`` is a row, and ``mark`` what is said of what is to be found."""

    run: TrainedRun
    names: "_Names"
    user: int | None
    among: Tensor
    truth: CSR
    mark: str


def _shown(graph: GeneratedGraph, drawn: _Drawn) -> ShownGraph:
    numbers, names, truth = statistics(graph, drawn.run.world), drawn.names, drawn.truth
    found = ShownGraph(graph.name, graph.rows, numbers, degree_picture(graph, numbers))
    of_users = graph.rows == "users"
    chosen = drawn.user if of_users else None
    row = typical_row(graph, drawn.among if of_users else None) if chosen is None else chosen
    if row is None:
        return found
    place = torch.tensor([row], device=truth.indices.device)
    wanted = set(truth.select(place).indices.tolist()) if of_users else set()
    centre = f"user {names.user(row)}" if of_users else names.node_of_row(row)
    look = Look(centre, names.item if of_users else names.node, lambda column: drawn.mark if column in wanted else "")
    before, after = picture_before(graph, row, look), picture_after(graph, row, look)
    return replace(found, centre=centre, before=before, after=after)


class _Names:
    """Original ids of users, items and further entities."""

    def __init__(self, run: TrainedRun) -> None:
        self._run, self._shard = run, run.data.shard
        self._read: dict[str, pa.ChunkedArray] = {}

    def _ids(self, kind: str) -> pa.ChunkedArray:
        if kind not in self._read:
            self._read[kind] = self._run.dataset.original_ids(kind)
        return self._read[kind]

    def row_of_user(self, user: str) -> int:
        place = int(pc.index(self._ids("users").cast(pa.string()), user).as_py())
        if place < 0:
            where = self._run.dataset.uri
            raise UserError(f"--user {shown(user)} is no user of dataset {where}; give an id as in the raw data")
        return place

    def user(self, row: int) -> str:
        return self._name("users", row)

    def item(self, item: int) -> str:
        return self._name("items", int(self._shard.item_rows[item]))

    def _name(self, kind: str, row: int) -> str:
        return shortened(str(self._ids(kind)[row].as_py()))

    def node(self, node: int) -> str:
        if node < self._shard.num_items:
            return self.item(node)
        row = int(self._shard.further[ENTITIES].rows[node - self._shard.num_items])
        return self._name(ENTITIES, row)

    def node_of_row(self, row: int) -> str:
        knowledge = self._run.data.knowledge
        assert knowledge is not None
        return self.node(int(knowledge.own_ids[row]))
