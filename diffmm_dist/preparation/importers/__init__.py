"""Importers: raw data to the Arrow dataset."""
