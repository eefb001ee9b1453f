"""Training: the loop, its state, checkpoints, and the worker that runs it here or through Ray."""
