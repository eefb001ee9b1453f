"""All-ranking evaluation from embeddings: top-K lists in blocks, metrics as sums over users."""
