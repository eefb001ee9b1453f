"""The evaluation protocols (docs/evaluation.md)."""

from typing import Literal

from diffmm_dist.data.schema import Split

Protocol = Literal["validation", "published"]
SELECTION_SPLIT: dict[Protocol, Split] = {"validation": "valid", "published": "test"}
