"""The table GRAM of small dense matrices, as Parquet files cut in any way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

NAMES = ["market", "item_a", "item_b", "count"]


def write_cells(cells: Sequence[NDArray[np.int32]], folder: Path, files: int = 1, backwards: bool = False) -> Path:
    """market, item_a, item_b, count into files of about as many rows each; backwards: the last rows in the first."""
    folder.mkdir()
    rows = np.array(cells, np.int32)
    for number, piece in enumerate(np.array_split(rows, files, axis=1)):
        name = f"part-{files - number if backwards else number:03d}.parquet"
        pq.write_table(pa.table([pa.array(column) for column in piece], names=NAMES), folder / name)
    return folder


def write_gram(markets: Sequence[NDArray[np.int64]], folder: Path, files: int = 1, backwards: bool = False) -> Path:
    """The upper halves of symmetric (n, n) counts, one a market."""
    found = [np.nonzero(np.triu(counts)) for counts in markets]
    cells = [
        np.repeat(np.arange(len(markets)), [len(a) for a, _ in found]),
        np.concatenate([a for a, _ in found]),
        np.concatenate([b for _, b in found]),
        np.concatenate([counts[at] for counts, at in zip(markets, found, strict=True)]),
    ]
    return write_cells([cell.astype(np.int32) for cell in cells], folder, files, backwards)


def random_counts(n_items: int, users: int, seed: int, density: float = 0.2) -> NDArray[np.int64]:
    """X'X of a random 0/1 X whose first items are the popular ones."""
    rng = np.random.default_rng(seed)
    X = (rng.random((users, n_items)) < density * 2 / np.sqrt(1 + np.arange(n_items))).astype(np.int64)
    return X.T @ X
