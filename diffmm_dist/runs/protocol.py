"""The evaluation protocols (docs/evaluation.md)."""

from typing import Literal

from diffmm_dist.data.schema import Split

Protocol = Literal["validation", "published"]
SELECTION_SPLIT: dict[Protocol, Split] = {"validation": "valid", "published": "test"}


def protocol_words(protocol: str) -> str:
    """Return what a protocol makes of the figures, loudly where those on test are none."""
    if protocol == "published":
        return "PUBLISHED PROTOCOL: chosen on test, so these are no honest test figures"
    return "chosen on validation"
