"""Datasets: the Arrow format, importers, the synthetic generator, and what training reads from them."""
