"""The frozen evaluation contract: candidates, ranks, metrics, report."""
