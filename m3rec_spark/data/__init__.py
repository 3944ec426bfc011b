"""From source files to the frozen tables of a run."""
