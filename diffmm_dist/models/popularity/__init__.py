"""Popularity baseline: every user gets the items with the most training interactions."""
