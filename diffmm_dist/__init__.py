"""Multi-modal graph-diffusion recommendation, from a laptop to a cluster with the same program."""

__version__ = "0.2.0"
