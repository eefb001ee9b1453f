"""The user-item graph: normalised relations, the DGL heterograph, propagation; the only place that imports dgl."""
