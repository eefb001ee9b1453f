"""Recommenders; each folder holds a model, its phases and a page with its equations and deviations."""
