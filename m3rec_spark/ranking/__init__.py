"""Scores and top-k."""
