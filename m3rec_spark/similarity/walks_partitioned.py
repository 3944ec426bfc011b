"""The walks of `walks`, byte for byte, on a graph in blocks (walk_blocks) that no worker need hold as a whole.

The random integer of a step is a point of the item's line: it says in which block the step is made, and that block has
both the user and his whole history. A walk stays in its block until a point lies outside; then it is sent on. With a
market a block, that is where it leaves the market by an item that others sell; the worst case, blocks of users at
random, is an exchange a step.

An exchange goes through files of the workspace: a task writes its walkers by block of destination, and the tasks of the
next round map what is meant for them. A walker carries its walk, so that a whole one needs nothing gathered. A round is
one Spark job without a shuffle, of which the driver sees counts only; there is one more than the most exchanges of a
walk, at most `length`.

Memory of a task: a block and the routes, mapped; its walkers, 4 length + 12 bytes each, thrice. Files of a round:
4 length + 12 bytes a walker; those of two rounds exist at a time.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from m3rec_spark.compiled import compiled
from m3rec_spark.similarity.philox import below, key, philox4x32
from m3rec_spark.similarity.tasks import run_tasks
from m3rec_spark.similarity.walk_blocks import open_block, open_routes
from m3rec_spark.similarity.walk_graph import save_array
from m3rec_spark.similarity.walk_steps import advance
from m3rec_spark.similarity.walks import walk_batch, write_parquet

log = logging.getLogger(__name__)


class Task(NamedTuple):
    """Walkers [first, last) of those that are sent to a block; of all walks, at the start."""

    block: int
    first: int
    last: int


def write_walks(
    spark: SparkSession,
    folder: Path,
    scratch: Path,
    target: Path,
    per_item: int,
    length: int,
    seed: int,
    walkers_per_task: int = 1 << 16,
) -> int:
    """Writes the walks of `walks.write_walks` as Parquet files, in the order in which they end.

    Args:
        spark: the session.
        folder: of `build_blocks`, on a path that the workers can read.
        scratch: an existing folder that they can write, for the walkers of two rounds.
        target: likewise, for the walks.
        per_item: walks from each item.
        length: items of a walk, the start included.
        seed: 64 bit.
        walkers_per_task: at most. The walks do not depend on it.

    Returns:
        The number of walks.
    """
    n_items, columns = open_routes(folder).shape
    n_walks, done, turn = n_items * per_item, 0, 0
    tasks, sent = _split([n_walks], walkers_per_task), np.zeros((0, columns - 1), np.int64)
    while tasks:
        (scratch / _round(turn)).mkdir()
        work = _work((str(folder), str(scratch), str(target)), turn, tasks, sent, per_item, length, seed)
        results = np.array(run_tasks(spark, len(tasks), work), np.int64)
        done, sent = done + int(results[:, 0].sum()), results[:, 1:]
        tasks, turn = _split(sent.sum(axis=0).tolist(), walkers_per_task), turn + 1
        log.info("walks: round %d, %d walks are whole, %d go on", turn, done, sent.sum())
        if turn > 1:
            shutil.rmtree(scratch / _round(turn - 2))
    return done


def _work(
    places: tuple[str, str, str],
    turn: int,
    tasks: list[Task],
    sent: NDArray[np.int64],
    per_item: int,
    length: int,
    seed: int,
) -> Callable[[int], list[int]]:
    """What task k of a round does; it gives the number of walks that are whole, and of walkers sent to each block.

    sent: (tasks of the round before, K) what those gave.
    """

    def work(k: int) -> list[int]:
        folder, scratch, target = (Path(place) for place in places)
        routes, task = open_routes(folder), tasks[k]
        if turn == 0:
            ids = np.arange(task.first, task.last)
            ids = ids[routes[ids // per_item, -1] > 0]
            steps, walks = np.ones(len(ids), np.int64), np.zeros((len(ids), length), np.int32)
            walks[:, 0] = ids // per_item
        else:
            ids, steps, walks = _received(scratch / _round(turn - 1), sent, task)
            advance(open_block(folder, task.block), walks, steps, ids % per_item, seed)
        whole = steps == length
        if whole.any():
            write_parquet(walk_batch(ids[whole], walks[whole]), target / f"walks-{turn:05d}-{k:06d}.parquet")
        ids, steps, walks = ids[~whole], steps[~whole], walks[~whole]
        blocks = _next_blocks(routes, walks, steps, ids % per_item, *key(seed))
        _send(scratch / _round(turn) / f"{k:06d}.npy", ids, steps, walks, blocks)
        return [int(whole.sum()), *np.bincount(blocks, minlength=routes.shape[1] - 1).tolist()]

    return work


def _send(
    file: Path, ids: NDArray[np.int64], steps: NDArray[np.int64], walks: NDArray[np.int32], blocks: NDArray[np.int64]
) -> None:
    """Records by block, so that those for one are one stretch of the file."""
    kind = np.dtype([("walk", np.int64), ("step", np.int32), ("items", np.int32, walks.shape[1])])
    order = np.argsort(blocks, kind="stable")
    walkers = np.empty(len(ids), kind)
    walkers["walk"], walkers["step"], walkers["items"] = ids[order], steps[order], walks[order]
    save_array(file, walkers)


def _received(
    folder: Path, sent: NDArray[np.int64], task: Task
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """(ids, steps, walks) of the task's share of what was sent to its block, in the order of the senders."""
    ends = np.cumsum(sent[:, task.block])
    starts = ends - sent[:, task.block]
    parts = []
    for sender in np.flatnonzero((ends > task.first) & (starts < task.last)):
        before = sent[sender, : task.block].sum() - starts[sender]
        first, last = max(task.first, starts[sender]), min(task.last, ends[sender])
        parts.append(np.load(folder / f"{sender:06d}.npy", mmap_mode="r")[before + first : before + last])
    walkers = np.concatenate(parts)
    return walkers["walk"].copy(), walkers["step"].astype(np.int64), np.ascontiguousarray(walkers["items"])


@compiled
def _next_blocks(
    routes: NDArray[np.int64],
    walks: NDArray[np.int32],
    steps: NDArray[np.int64],
    numbers: NDArray[np.int64],
    key_0: np.uint64,
    key_1: np.uint64,
) -> NDArray[np.int64]:
    """(W,) the blocks of the next points: the same points that `advance` will draw there."""
    blocks = np.empty(len(walks), np.int64)
    for k in range(len(walks)):
        route = routes[walks[k, steps[k] - 1]]
        counter = (np.uint64(walks[k, 0]), np.uint64(numbers[k]), np.uint64(steps[k]), np.uint64(0))
        words = philox4x32(counter[0], counter[1], counter[2], counter[3], key_0, key_1)
        point = np.int64(below(np.uint64(route[-1]), words[0], words[1]))
        blocks[k] = np.searchsorted(route, point, side="right") - 1
    return blocks


def _split(walkers: list[int], most: int) -> list[Task]:
    return [
        Task(block, first, min(first + most, count))
        for block, count in enumerate(walkers)
        for first in range(0, count, most)
    ]


def _round(turn: int) -> str:
    return f"round-{turn:05d}"
