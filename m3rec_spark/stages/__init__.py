"""The stages of a run: read, call, write, log. Each is one job and one CLI verb."""
