"""LightGCN-style baseline: ID embeddings over the real graph, no modalities, no diffusion."""
