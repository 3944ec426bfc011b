"""The walks by the engine that fits: arrays -> walks. Part of pretrain."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import CapacityError, UsageError
from m3rec_spark.similarity import walk_blocks, walk_graph, walks, walks_partitioned
from m3rec_spark.similarity.solvers import Machine
from m3rec_spark.stages.context import Context

log = logging.getLogger(__name__)

Report = dict[str, Any]


def plan(context: Context, arrays: MarketArrays, machine: Machine) -> tuple[str, int]:
    """The engine, and the bytes that it takes on the driver: auto partitions a graph that does not fit in a worker.

    Raises:
        CapacityError: the graph does not fit on the driver, as the engine `broadcast` needs.
        UsageError: node2vec's p or q with the engine `partitioned`.
    """
    if context.is_fresh("walks"):
        facts = context.workspace.facts("walks")
        return facts["walk_engine"], facts["walk_bytes"]
    settings = context.config.walks
    size = walk_graph.graph_bytes(len(arrays.slots), arrays.n_items, arrays.n_rows)
    fits = size <= min(machine.driver_bytes, machine.worker_bytes)  # tasks of a worker map the same files
    engine = settings.engine if settings.engine != "auto" else "broadcast" if fits else "partitioned"
    if engine == "partitioned" and (settings.return_p, settings.inout_q) != (1.0, 1.0):
        raise UsageError(
            f"walks.return_p={settings.return_p:g} and walks.inout_q={settings.inout_q:g} need the whole graph in "
            f"every worker, {size:,} bytes: set both to 1, or "
            + ("walks.engine=auto" if fits else "walks.engine=broadcast on machines with that memory")
        )
    if engine == "broadcast":
        return engine, walk_graph.plan(len(arrays.slots), arrays.n_items)
    return engine, 8 * arrays.n_items * (len(_blocks(arrays, machine)) + 1)


def publish_walks(context: Context, arrays: MarketArrays, machine: Machine, report: Report) -> NDArray[np.int64]:
    """The table walks; gives the items' degrees."""
    settings = context.config.walks
    by_slot = walk_graph.item_weights(arrays.indptr, arrays.slots, len(arrays.slot_items), settings.self_loops)
    degrees = np.zeros(arrays.n_items, np.int64)
    np.add.at(degrees, arrays.slot_items, by_slot)
    report["items_without_neighbour"] = isolated = int((degrees == 0).sum())
    workspace, facts = context.workspace, Report()
    if context.is_fresh("walks"):
        log.info("walks: kept from the run before")
    else:
        facts["walk_engine"], facts["walk_bytes"] = plan(context, arrays, machine)
        with workspace.scratch("walks") as folder, workspace.publishing("walks", context.key, extra=facts) as target:
            broadcast = facts["walk_engine"] == "broadcast"
            facts["walks"] = (
                _broadcast(context, arrays, folder, target)
                if broadcast
                else _partitioned(context, arrays, machine, folder, target)
            )
    report |= workspace.facts("walks")
    log.info(
        "walks (%s): %d of %d items; %d items have no neighbour",
        report["walk_engine"], report["walks"], settings.length, isolated,
    )  # fmt: skip
    return degrees


def _broadcast(context: Context, arrays: MarketArrays, folder: Path, target: Path) -> int:
    settings = context.config.walks
    graph = walk_graph.build_graph(arrays.indptr, arrays.items, arrays.n_items, settings.self_loops)
    walk_graph.save_graph(graph, folder)
    return walks.write_walks(
        context.spark(), folder, target, settings.per_item, settings.length, settings.seed,
        return_p=settings.return_p, inout_q=settings.inout_q,
    )  # fmt: skip


def _partitioned(context: Context, arrays: MarketArrays, machine: Machine, folder: Path, target: Path) -> int:
    settings, spark = context.config.walks, context.spark()
    graph, walkers = folder / "graph", folder / "walkers"
    graph.mkdir()
    walkers.mkdir()
    walk_blocks.build_blocks(
        spark, context.workspace.folder("arrays"), graph, _blocks(arrays, machine), settings.self_loops
    )  # fmt: skip
    return walks_partitioned.write_walks(
        spark, graph, walkers, target, settings.per_item, settings.length, settings.seed
    )  # fmt: skip


def _blocks(arrays: MarketArrays, machine: Machine) -> NDArray[np.int64]:
    """Blocks of users whose graph takes half of a task's memory at most; every block knows all items.

    Raises:
        CapacityError: the items alone take more.
    """
    of_items, room = walk_graph.graph_bytes(0, arrays.n_items, 0), machine.task_bytes // 2
    if of_items >= room:
        raise CapacityError(
            f"the walks' graph holds {of_items:,} bytes for the {arrays.n_items:,} items in every task, which may take "
            f"{room:,}: give tasks more memory (spark.executor.pyspark.memory, or fewer tasks at once), or raise "
            "clean.min_item_users"
        )
    return walk_blocks.user_blocks(
        arrays.indptr, arrays.user_offsets, max(1, (room - of_items) // walk_graph.graph_bytes(1, 0, 0))
    )  # fmt: skip
