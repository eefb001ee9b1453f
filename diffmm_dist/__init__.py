"""Multi-modal graph-diffusion recommendation, from a laptop to a cluster with the same program."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffmm_dist.api import Filter, Recommendations, Recommender, UserError, evaluate, export, prepare, train

__version__ = "0.2.0"
__all__ = ["Filter", "Recommendations", "Recommender", "UserError", "evaluate", "export", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """Import a name of the interface when it is asked for: `import diffmm_dist` alone must not wait for anything."""
    if name in __all__:
        from diffmm_dist import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
