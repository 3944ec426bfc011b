"""The linear systems of Table 2 from the Gram: how each is solved into a folder.

They need the n x n Gram on the driver, as EASE's solver `driver` does, and refuse what does not fit; SLIM reads its
cells.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray
from scipy import sparse

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.similarity import ease
from m3rec_spark.similarity.gram import sparse_gram
from m3rec_spark.similarity.slim import fit_slim
from m3rec_spark.similarity.weights import MarketItems, publish_sparse
from m3rec_spark.stages.bench import Bench, Facts, Settings


def train_ease(bench: Bench, settings: Settings, seed: int, folder: Path) -> Facts:
    """EASE^R on the merged data (eq. 3, 4)."""
    weights = ease.solve(bench.gram(), settings["lambda_f"])
    for market, items in enumerate(market_items(bench.arrays)):
        _save_block(folder, market, weights[np.ix_(items, items)])
    return {}


def train_ease_per_market(bench: Bench, settings: Settings, seed: int, folder: Path) -> Facts:
    """EASE^R on every market alone."""
    for market in range(bench.arrays.n_markets):
        _save_block(folder, market, ease_alone(bench, market, settings["lambda_f"]))
    return {}


def ease_alone(bench: Bench, market: int, lambda_f: float) -> NDArray[np.float64]:
    """B of eq. 4 between the items of a market, from its own users only."""
    slots = bench.arrays.market_slots(market)
    ease.plan(slots.stop - slots.start, bench.config.ease.memory_gb)
    return ease.solve(_market_gram(bench, market).toarray(order="F"), lambda_f)


def train_slim(bench: Bench, settings: Settings, seed: int, folder: Path) -> Facts:
    """SLIM on the merged data (eq. 2)."""
    cells = bench.workspace.read_arrow("gram")
    a, b, count = (cells[name].to_numpy() for name in ("item_a", "item_b", "count"))
    weights, restless = fit_slim(sparse_gram(a, b, count, bench.arrays.n_items), settings["l1"], settings["l2"])
    publish_sparse(weights, market_items(bench.arrays), folder)
    return {"entries": int(weights.nnz), "columns_not_at_rest": restless}


def train_slim_per_market(bench: Bench, settings: Settings, seed: int, folder: Path) -> Facts:
    """SLIM on every market alone."""
    facts: Facts = {"entries": 0, "columns_not_at_rest": 0}
    for market in range(bench.arrays.n_markets):
        weights, restless = fit_slim(_market_gram(bench, market), settings["l1"], settings["l2"])
        sparse.save_npz(folder / f"market-{market:05d}.npz", weights)
        facts["entries"] += int(weights.nnz)
        facts["columns_not_at_rest"] += restless
    return facts


def market_items(arrays: MarketArrays) -> MarketItems:
    """The items of every market."""
    return MarketItems(arrays.slot_items, arrays.slot_offsets)


def _market_gram(bench: Bench, market: int) -> sparse.csr_matrix:
    """(items of the market, items of the market) A_m, from its cells of the Gram: under gram.max_history as all is."""
    cells = bench.workspace.read_arrow("gram", filter=ds.field("market") == market)
    items = bench.arrays.slot_items[bench.arrays.market_slots(market)]
    a, b = (np.searchsorted(items, cells[name].to_numpy()) for name in ("item_a", "item_b"))
    return sparse_gram(a, b, cells["count"].to_numpy().astype(np.float64), len(items))


def _save_block(folder: Path, market: int, block: NDArray[np.float64]) -> None:
    place = folder / f"market-{market:05d}"
    place.mkdir()
    np.save(place / f"rows-{0:09d}.npy", block.astype(np.float32))
