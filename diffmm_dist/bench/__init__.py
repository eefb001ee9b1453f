"""Benchmarks: what is measured is written as JSON, and the pages of docs/benchmarks are made from it."""
