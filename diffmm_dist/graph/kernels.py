"""The sparse kernel that needs nothing but torch."""

import torch
from torch import Tensor

from diffmm_dist.graph.relation import Edges


def csr_neighbor_sum(edges: Edges, source_rows: Tensor) -> Tensor:
    """Return, for each target, the sum of its sources' rows.

    ``embedding_bag`` is a CSR gather-sum that reads no values. It was faster than torch's CSR product and DGL's
    ``copy_u_sum`` wherever it was measured (docs/benchmarks), and gives the same bits as both.

    Args:
        edges: S sources, T targets.
        source_rows: (S, d).

    Returns:
        (T, d); zeros for targets without edges.
    """
    pattern = edges.by_target
    if pattern.num_entries == 0:
        return source_rows.new_zeros(pattern.num_rows, source_rows.shape[1])
    return torch.nn.functional.embedding_bag(
        pattern.indices, source_rows, pattern.indptr, mode="sum", include_last_offset=True
    )
