"""The walk graph in blocks of users, for graphs that no worker need hold as a whole.

An item's line [0, deg) runs through his users in ascending order (walk_graph), so the users of a block, consecutive
ones, own one stretch of it. A block is the graph of its users alone: X by user and by item. Every pair lies in one
block (replication factor 1). The routes say which block a point lies in; that is 8 (K + 1) bytes an item, mapped.

Markets are blocks by nature: users of one market never meet the items that only another sells.
Notation: K blocks; routes[i, b]: weight of item i's users before block b; routes[i, K] = deg(v_i).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.similarity.tasks import run_tasks
from m3rec_spark.similarity.walk_graph import (
    WalkGraph,
    build_graph,
    item_weights,
    open_graph,
    save_array,
    save_graph,
)

_ROUTES = "routes.npy"


def user_blocks(indptr: NDArray[np.int64], user_offsets: NDArray[np.int64], pairs_per_block: int) -> NDArray[np.int64]:
    """(K+1,) the users at which blocks begin and the last one ends: whole markets where they fit, else parts of one.

    Args:
        indptr: (R+1,) offsets of the users' histories.
        user_offsets: (M+1,) users at which markets begin.
        pairs_per_block: at most, but for the last user of a block.
    """
    cuts = [0]
    for start, end in itertools.pairwise(user_offsets.tolist()):
        low, pairs = int(indptr[start]), int(indptr[end] - indptr[start])
        parts = -(-pairs // pairs_per_block)
        cuts += [int(np.searchsorted(indptr, low + pairs * part // parts)) for part in range(1, parts)] + [end]
    blocks = [0]
    for cut, following in itertools.pairwise(cuts):
        if indptr[following] - indptr[blocks[-1]] > pairs_per_block:
            blocks.append(cut)
    return np.unique(np.array([*blocks, cuts[-1]], np.int64))


def build_blocks(
    spark: SparkSession, arrays: Path, folder: Path, blocks: NDArray[np.int64], self_loops: bool = False
) -> NDArray[np.int64]:
    """Writes the graph in blocks, a task each; gives the (n,) degrees.

    The driver holds the routes, 8 (K + 1) bytes an item; a task the graph of its block.

    Args:
        spark: the session.
        arrays: folder of `data.arrays.save_arrays`, on a path that the workers can read.
        folder: an existing one that they can write.
        blocks: (K+1,) of `user_blocks`.
        self_loops: see WalkGraph.

    Raises:
        DataError: see `build_graph`.
    """
    n_items, n_blocks = open_arrays(arrays).n_items, len(blocks) - 1
    source, place = str(arrays), str(folder)

    def weigh(block: int) -> list[int]:
        histories = _histories(source, blocks[block : block + 2])
        save_array(_weights(place, block), item_weights(*histories, n_items, self_loops))
        return []

    def build(block: int) -> list[int]:
        histories, routes = _histories(source, blocks[block : block + 2]), open_routes(place)
        before, total = (np.ascontiguousarray(routes[:, column]) for column in (block, -1))
        _block(place, block).mkdir(exist_ok=True)
        save_graph(build_graph(*histories, n_items, self_loops, before, total), _block(place, block))
        return []

    run_tasks(spark, n_blocks, weigh)
    routes = np.zeros((n_items, n_blocks + 1), np.int64)
    for block in range(n_blocks):
        routes[:, block + 1] = routes[:, block] + np.load(_weights(place, block))
        _weights(place, block).unlink()
    save_array(folder / _ROUTES, routes)
    run_tasks(spark, n_blocks, build)
    return routes[:, -1].copy()


def open_routes(folder: str | Path) -> NDArray[np.int64]:
    """(n, K+1) of `build_blocks`, mapped."""
    return np.asarray(np.load(Path(folder) / _ROUTES, mmap_mode="r"))


def open_block(folder: str | Path, block: int) -> WalkGraph:
    """One block of `build_blocks`, mapped."""
    return open_graph(_block(folder, block))


def _histories(arrays: str, ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Offsets and global items of the histories of the users from ends[0] on, before ends[1]."""
    source = open_arrays(Path(arrays))
    indptr = np.array(source.indptr[ends[0] : ends[1] + 1])
    return indptr - indptr[0], source.slot_items[source.slots[indptr[0] : indptr[-1]]]


def _block(folder: str | Path, block: int) -> Path:
    return Path(folder) / f"block-{block:05d}"


def _weights(folder: str, block: int) -> Path:
    return Path(folder) / f"weights-{block:05d}.npy"
