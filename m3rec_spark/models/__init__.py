"""torch modules: mathematics only."""
