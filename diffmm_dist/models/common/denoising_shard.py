"""How workers share denoisers of the rows of a matrix: whole on each of them, or a range of columns on each.

Rows are users and columns items, or both are the entities of a knowledge graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmm_dist.diffusion.denoiser import TRAFFIC
from diffmm_dist.evaluation.topk import best_of
from diffmm_dist.parallel.collectives import gather_rows, send_to_owners
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.halo import Halo, localize
from diffmm_dist.parallel.mesh import Mesh
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import AllRows, OwnRows
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR

Sharding = Literal["auto", "replicated", "items"]
_PLAN = f"{TRAFFIC}_plan"


@dataclass(frozen=True)
class DenoiserSizes:
    """What the traffic of one denoiser in one step depends on.

    Attributes:
        num_items: I, its columns.
        first_width: of the first hidden layer.
        last_width: of the last hidden layer.
        embedding_dim: d.
        batch_size: rows per global batch.
    """

    num_items: int
    first_width: int
    last_width: int
    embedding_dim: int
    batch_size: int

    def values_sent(self, num_workers: int, num_item_shards: int) -> float:
        """Return how many values a worker sends per step; a sum of n values over w workers sends 2 n (w - 1) / w.

        The workers of a row sum what goes into the hidden layer, its gradient, and the modality signal, for their part
        of the batch; those of a column sum the gradients of their range of items.
        """
        num_groups = num_workers // num_item_shards
        per_user = self.first_width + self.last_width + self.embedding_dim
        hidden = self.batch_size / num_groups * per_user
        gradients = self.num_items / num_item_shards * (self.first_width + self.last_width + 1)
        return 2 * hidden * (1 - 1 / num_item_shards) + 2 * gradients * (1 - 1 / num_groups)


def choose_item_shards(sharding: Sharding, num_workers: int, sizes: DenoiserSizes) -> int:
    """Return over how many workers each denoiser is spread: 1, all of them, or with ``auto`` what sends the least."""
    if sharding != "auto":
        return 1 if sharding == "replicated" else num_workers
    divisors = [count for count in range(1, num_workers + 1) if num_workers % count == 0]
    return min(divisors, key=lambda count: sizes.values_sent(num_workers, count))


def column_shards(
    sharding: Sharding,
    hidden_dims: Sequence[int],
    *,
    num_columns: int,
    embedding_dim: int,
    batch_size: int,
    num_workers: int,
) -> int:
    """Return over how many workers a denoiser with these hidden layers is spread."""
    sizes = DenoiserSizes(
        num_items=num_columns,
        first_width=hidden_dims[0],
        last_width=hidden_dims[-1],
        embedding_dim=embedding_dim,
        batch_size=batch_size,
    )
    return choose_item_shards(sharding, num_workers, sizes)


@dataclass(frozen=True, eq=False)
class DenoisingShard:
    """What a worker denoises: the rows of all workers of its row of the mesh, at the columns of its column.

    Attributes:
        mesh: the workers.
        groups: which row of the mesh has which rows of the matrix.
        columns: the own columns.
        ids: id of each row, int64.
        rows: their stored entries at own columns.
        own: this worker's own rows among them.
    """

    mesh: Mesh
    groups: Ownership
    columns: Columns
    ids: Tensor
    rows: CSR
    own: slice
    _table_halo: Halo
    _table_places: Tensor

    @classmethod
    def of(
        cls,
        matrix: CSR,
        own: OwnRows,
        columns: AllRows,
        world: World,
        *,
        num_column_shards: int,
        tables: Ownership | None = None,
    ) -> "DenoisingShard":
        """Collect the rows; every worker calls it at the same time.

        Args:
            matrix: its own rows (own rows x column ids).
            own: which they are.
            columns: its columns.
            world: the workers.
            num_column_shards: workers per row of the mesh, a divisor of their number.
            tables: who owns which rows of the tables that ``of_columns`` is given, a row for each of the first columns;
                by default those that own the columns, of all of them.
        """
        mesh = Mesh.of(world, num_item_shards=num_column_shards)
        tables = tables or columns.ownership
        groups = Ownership(own.ownership.bounds[::num_column_shards], mesh.data.rank)
        held = Ownership(columns.ownership.bounds[:: mesh.data.size], mesh.items.rank)
        own_columns = Columns(mesh.items, held, columns.ids[held.own.start : held.own.stop])
        first = mesh.data.rank * num_column_shards
        ids = gather_rows(own.ids, own.ownership.sizes[first : first + num_column_shards], mesh.items, purpose=_PLAN)
        start = own.ownership.own.start - groups.own.start
        wanted = torch.arange(*held.own, device=world.device)
        halo, places = localize(wanted[wanted < tables.total], tables, world, purpose=TRAFFIC)
        return cls(
            mesh=mesh,
            groups=groups,
            columns=own_columns,
            ids=ids,
            rows=_rows(matrix, start, columns, groups, own_columns),
            own=slice(start, start + own.ownership.own.size),
            _table_halo=halo,
            _table_places=places,
        )

    def of_columns(self, own: Tensor) -> Tensor:
        """Return the rows of a table (C, ...) for the own columns, from every worker's own rows of it.

        Columns behind the last row of the table get zeros.
        """
        rows = self._table_halo.extend(own)[self._table_places]
        missing = self.columns.size - rows.shape[0]
        return rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])

    def best_of_all(self, scores: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k best scores of all workers of the row, from each one's best, and their ids: (B, k) each.

        Args:
            scores: of this worker's best columns, (B, min(k, C)); minus infinity where there is none.
            columns: which they are, counted in ascending order of ids.
            k: at most as many as there are columns.
        """
        ids, world = self.columns.sorted_ids[columns], self.columns.world
        if world.size == 1:
            return scores, ids
        missing = (0, k - ids.shape[1])  # on a worker with fewer than k columns
        scores = F.pad(scores, missing, value=-torch.inf)
        ids = F.pad(ids, missing, value=self.columns.total)
        counts = [len(scores)] * world.size
        all_scores, all_ids = (
            torch.cat(gather_rows(table, counts, world, purpose=TRAFFIC).split(counts), dim=1)
            for table in (scores, ids)
        )
        return best_of(all_scores, all_ids, k)


def _rows(matrix: CSR, start: int, axis: AllRows, groups: Ownership, columns: Columns) -> CSR:
    """Return the entries of a row's rows at own columns, from each of its workers' own rows.

    Args:
        matrix: this worker's own rows.
        start: number of the first of them among the row's.
        axis: all columns.
        groups: rows of each row of the mesh.
        columns: the own ones.
    """
    world, held = columns.world, columns.ownership
    if columns.by_id is None and world.size == 1:  # looked at first: steps are to find it there
        return matrix
    pairs = torch.stack([matrix.row_ids + start, axis.rows[matrix.indices]], dim=1)
    pairs = send_to_owners(pairs, held.owner_of(pairs[:, 1].contiguous()), world, purpose=_PLAN)
    return CSR.from_pairs(pairs[:, 0], pairs[:, 1] - held.own.start, num_rows=groups.own.size, num_columns=columns.size)
