"""Intra-market item similarity: EASE^R by a blocked symmetric sweep on Spark (paper, eq. 3, 4), exact.

C = (A + lambda I)^-1, B_ij = -C_ij / C_jj off the diagonal. The sweep (sweep_tiles.py) turns the tiles of A + lambda I
into those of -C, a pivot tile a step. Each step is one Spark job without a shuffle: a task takes tiles of one row from
generation k to k + 1; the first one also factors a pivot ahead, so that the driver computes nothing.

Cost: n^3 flops over all cores; q = n / t jobs, each reading and writing the 4 n^2 bytes of the lower tiles, in files;
8 n^2 bytes on disk (two generations); a task holds a few t x t tiles.
The driver may die: the folder's manifest says which generation is whole, and the next call goes on from there. That
covers killed processes; after a power failure, begin anew with an empty folder.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from tqdm import tqdm

from m3rec_spark.errors import CapacityError, DataError, UsageError
from m3rec_spark.paths import replacing, write_atomically
from m3rec_spark.similarity.sweep_tiles import Tiles, load_column, runs_of_step, save_ahead, sweep_run
from m3rec_spark.similarity.tasks import run_tasks

log = logging.getLogger(__name__)

MANIFEST = "sweep.json"
Work = TypeVar("Work")
DIAGONAL = "diagonal.npy"
TILES_FORM = "Y, L and ahead"  # what a generation holds; tiles of another form are made anew


@dataclass(frozen=True)
class SweptWeights:
    """B of eq. 4, in the tiles of -C; picklable into a Spark task (Weights)."""

    tiles: Tiles

    @property
    def n_items(self) -> int:
        """Items: n."""
        return self.tiles.n_items

    def rows(self, first: int, last: int) -> NDArray[np.float64]:
        """(last - first, n) rows of B, the diagonal exactly 0. Memory: those rows."""
        tiles, swept = self.tiles, self.tiles.count
        diagonal = np.load(Path(tiles.folder) / DIAGONAL)
        block = np.empty((last - first, tiles.n_items))
        for i in range(first // tiles.side, -(-last // tiles.side)):
            items = tiles.items(i)
            low, high = max(first, items.start), min(last, items.stop)
            own = slice(low - items.start, high - items.start)
            for j in range(swept):
                tile = tiles.open(swept, i, j)[own] if j <= i else tiles.open(swept, j, i)[:, own].T
                columns = tiles.items(j)
                np.divide(tile, diagonal[columns], out=block[low - first : high - first, columns])
        block[np.arange(last - first), np.arange(first, last)] = 0.0
        return block


def sweep(
    spark: SparkSession,
    gram_folder: str | Path,
    folder: Path,
    n_items: int,
    lambda_f: float,
    weights: NDArray[np.float64],
    tile: int,
    key: str,
    cores: int,
) -> SweptWeights:
    """B of eq. 4 from the Gram, or from where an earlier call with the same arguments was stopped.

    Args:
        spark: the session.
        gram_folder: of the table GRAM, on a path that all workers share.
        folder: for the tiles, on such a path too, and kept as long as the result is in use. Tiles in it that come from
            other arguments are removed.
        n_items: n.
        lambda_f: ridge weight of eq. 3, > 0.
        weights: (M,) w_m of A = sum_m w_m A_m.
        tile: t at most; the tiles are made equal.
        key: names the content of the Gram.
        cores: tasks that run at once. The bytes of the tiles do not depend on it.

    Raises:
        UsageError: lambda_f or a weight cannot be used.
        DataError: A + lambda I is not positive definite; names the item.
        CapacityError: the disk has no room for two generations of tiles.
    """
    if not 0 < lambda_f < np.inf:
        raise UsageError(f"lambda_f must be > 0 so that X'X + lambda_f I is positive definite, got {lambda_f}")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UsageError(f"the weights of the markets' Grams must be positive and finite, got {weights.tolist()}")
    tiles = Tiles(str(folder), n_items, -(-n_items // -(-n_items // tile)))
    sizes = {"n": n_items, "side": tiles.side, "form": TILES_FORM}
    identity = {**sizes, "lambda_f": lambda_f, "weights": weights.tolist(), "key": key}
    step, source = _resume(tiles, identity), str(gram_folder)
    if step < 0:
        _require_room(tiles)
        load = partial(load_column, tiles, source, lambda_f, weights)
        failing = _job(spark, range(tiles.count), load)
        if failing < 0 and tiles.count > 1:
            failing = _job(spark, [0], partial(save_ahead, tiles))
        step = _commit(tiles, 0, failing, identity)
    for k in _with_progress(range(step, tiles.count)):
        failing = _job(spark, runs_of_step(tiles.count, k, cores), partial(sweep_run, tiles, k))
        _commit(tiles, k + 1, failing, identity)
    tiles.remove_spare()
    _save_diagonal(tiles)
    return SweptWeights(tiles)


def _job(spark: SparkSession, works: Sequence[Work], kernel: Callable[[Work], int]) -> int:
    """Runs a kernel on every work, a task each, in their order; gives the least item that one names, or -1."""
    failing = run_tasks(spark, len(works), lambda number: [kernel(works[number])])
    return min((item for (item,) in failing if item >= 0), default=-1)


def _commit(tiles: Tiles, step: int, failing: int, identity: dict[str, Any]) -> int:
    """Makes generation `step` the one to go on from, and retires the one before it."""
    if failing >= 0:
        raise DataError(
            f"X'X + {identity['lambda_f']} I is not positive definite, at item {failing}. Counts of distinct pairs "
            "cannot do that: rebuild the Gram, or raise ease.lambda_f"
        )
    write_atomically(Path(tiles.folder) / MANIFEST, json.dumps({**identity, "step": step}).encode())
    tiles.retire(step - 1)
    return step


def _resume(tiles: Tiles, identity: dict[str, Any]) -> int:
    """The generation to go on from, or -1; all others are removed."""
    folder = Path(tiles.folder)
    step = _whole_generation(tiles, identity)
    kept = tiles.generation(step).name if step >= 0 else None
    for old in folder.glob("step-*"):
        if old.name != kept:
            shutil.rmtree(old, ignore_errors=True)
    if step > 0:
        log.info("sweep: goes on after panel %d of %d", step, tiles.count)
    elif step < 0:
        (folder / MANIFEST).unlink(missing_ok=True)
    return step


def _whole_generation(tiles: Tiles, identity: dict[str, Any]) -> int:
    try:
        manifest = json.loads((Path(tiles.folder) / MANIFEST).read_text())
        step = int(manifest.pop("step"))
    except (OSError, ValueError, KeyError):
        return -1
    if manifest != identity:
        log.info("sweep: the tiles in %s are of other data or settings, and are made anew", tiles.folder)
        return -1
    if not tiles.is_whole(step):
        log.warning("sweep: tiles of panel %d are missing or cut short in %s: from the start", step, tiles.folder)
        return -1
    return step


def _require_room(tiles: Tiles) -> None:
    """Two generations and two pivots."""
    needed = 8 * tiles.n_items * (tiles.n_items + tiles.side) + 16 * tiles.side**2
    Path(tiles.folder).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(tiles.folder).free
    if needed > free:
        raise CapacityError(
            f"the sweep of {tiles.n_items:,} items writes {needed:,} bytes ({needed / 1e9:.3g} GB) of tiles, "
            f"{free:,} are free at {tiles.folder}: free the disk, put the workspace on a larger one, or raise "
            "clean.min_item_users"
        )


def _with_progress(steps: range) -> Iterator[int]:
    """The steps, with a line for each on the log and a bar on a terminal."""
    start = time.monotonic()
    for k in tqdm(
        steps, desc="sweep", unit="panel", initial=steps.start, total=steps.stop, disable=not sys.stderr.isatty()
    ):
        yield k
        left = (time.monotonic() - start) / (k + 1 - steps.start) * (steps.stop - k - 1)
        log.info("sweep: panel %d of %d, about %.0f s left", k + 1, steps.stop, left)


def _save_diagonal(tiles: Tiles) -> None:
    """(n,) diag C. The last generation holds -C."""
    swept = tiles.count
    diagonal = np.concatenate([-np.diagonal(tiles.open(swept, i, i)) for i in range(swept)])
    with replacing(Path(tiles.folder) / DIAGONAL) as temporary, open(temporary, "wb") as file:
        np.save(file, diagonal)
