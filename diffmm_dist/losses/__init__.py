"""Losses, each a function of rows that the caller has gathered."""
