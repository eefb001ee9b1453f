"""Searches for settings: what may be searched, what a search has found, and how that is shown."""
