"""Reads B within every market, as `weights` published it. Imports no Spark, as serving has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

MarketRows = Callable[[NDArray[np.int64]], Any]  # local rows, ascending -> (rows, items of the market), dense or CSR


def market_rows(folder: str, market: int) -> MarketRows:
    """B within a market, as a function of the local rows asked for (ascending): (rows, items of the market) float32.

    The rows are a dense array or a CSR, after what the solver published; dense ones are memory-mapped.

    Raises:
        OSError, ValueError: files are absent or damaged.
    """
    place = Path(folder) / f"market-{market:05d}"
    if place.with_suffix(".npz").is_file():
        block = sparse.load_npz(place.with_suffix(".npz")).tocsr()
        return lambda rows: block[rows]
    files = sorted(place.glob("rows-*.npy"))
    pieces = [np.load(file, mmap_mode="r") for file in files]
    if not pieces:
        raise FileNotFoundError(f"no rows of market {market} in {folder}")
    starts = np.array([int(file.stem.removeprefix("rows-")) for file in files] + [0])
    starts[-1] = starts[-2] + len(pieces[-1])
    if (np.diff(starts) != [len(piece) for piece in pieces]).any() or starts[-1] != pieces[0].shape[1]:
        raise ValueError(f"rows of market {market} are missing in {folder}")

    def rows_of(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        bounds = np.searchsorted(rows, starts)
        spans = zip(pieces, starts, bounds[:-1], bounds[1:], strict=False)
        found = [piece[rows[low:high] - start] for piece, start, low, high in spans if low < high]
        return np.concatenate(found) if found else np.empty((0, pieces[0].shape[1]), np.float32)

    return rows_of
