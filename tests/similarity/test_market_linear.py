"""The markets' own linear models: what they listen to, and the memory that it takes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gram_table import write_gram
from shops import SMALL

from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.similarity.market_linear import CELL_BYTES, market_gram, task_bytes


def test_a_market_listens_to_cells_of_items_that_it_sells(tmp_path: Path) -> None:
    """Markets sell the items 0, 1, 2 and 1, 2, 3; the other one weighs 0.5."""
    own = np.array([[5, 1, 0, 0], [1, 4, 2, 0], [0, 2, 3, 0], [0, 0, 0, 0]])
    other = np.array([[0, 0, 0, 0], [0, 6, 2, 1], [0, 2, 8, 4], [0, 1, 4, 9]])
    folder = str(write_gram([own, other], tmp_path / "gram"))
    found = market_gram(folder, SMALL, 0, np.array([1.0, 0.5])).toarray()
    assert found.tolist() == [[5, 1, 0], [1, 4 + 3, 2 + 1], [0, 2 + 1, 3 + 4]]
    found = market_gram(folder, SMALL, 1, np.array([0.0, 1.0])).toarray()
    assert found.tolist() == [[6, 2, 1], [2, 8, 4], [1, 4, 9]]


@pytest.mark.parametrize(
    ("others", "cells"),
    [([0.0, 0.3], 5 + 3), ([0.0], 5), ([], 0)],  # of the other's 4 cells 3 at most are between items 1 and 2
)
def test_memory_follows_the_cells_that_are_heard(others: list[float], cells: int) -> None:
    assert task_bytes(SMALL, np.array([5, 4]), others) == CELL_BYTES * cells


def test_memory_is_what_a_task_takes(tmp_path: Path) -> None:
    """Of 45,000 cells of a market alone, and beside it the rows and pointers of its items."""
    arrays = generate_arrays(1, 3000, 300, 0, 30.0, 3, 0)
    X = arrays.history(0).astype(np.int64)
    counts = (X.T @ X).toarray()
    cells = np.array([np.count_nonzero(np.triu(counts))])
    folder = str(write_gram([counts], tmp_path / "gram"))
    market_gram(folder, arrays, 0, np.ones(1))  # what is imported and compiled
    tracemalloc.start()
    market_gram(folder, arrays, 0, np.ones(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.7 * task_bytes(arrays, cells, [0.0]) < peak < 1.05 * task_bytes(arrays, cells, [0.0])
