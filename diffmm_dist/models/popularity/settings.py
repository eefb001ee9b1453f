"""Popularity's settings."""

from typing import Literal

from diffmm_dist.config.section import Section


class Settings(Section):
    """Popularity: every user gets the items with the most interactions; nothing is trained."""

    name: Literal["popularity"] = "popularity"
    """The model."""
