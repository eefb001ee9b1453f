"""LightGCN-style baseline (equations in README.md)."""

from diffmm_dist.models.common.tables import PropagatedTables


class LightGCN(PropagatedTables):
    """ID embeddings propagated over the real graph, and nothing else."""
