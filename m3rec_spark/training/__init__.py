"""Feed, sampling, the one loop, checkpoints."""
