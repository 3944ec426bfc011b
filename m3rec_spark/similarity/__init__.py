"""Item similarity over all markets: Gram, EASE^R, walks, skip-gram (paper, Sec. 2 and 3.1)."""
