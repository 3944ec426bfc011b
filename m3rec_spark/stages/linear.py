"""The markets' own linear models and their walks of two steps: gram, arrays -> linear. Part of pretrain."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import CapacityError
from m3rec_spark.similarity import market_linear, two_steps
from m3rec_spark.similarity.gram import cells_by_market
from m3rec_spark.similarity.solvers import Machine
from m3rec_spark.stages import solve
from m3rec_spark.stages.context import Context

log = logging.getLogger(__name__)

Report = dict[str, Any]
_MORE_MEMORY = "give tasks more memory (spark.executor.pyspark.memory, or fewer tasks at once)"


def plan(context: Context, arrays: MarketArrays, machine: Machine) -> int:
    """Bytes that a task takes at most, by the counted Gram where there is one, else by the most cells it can have.

    Raises:
        CapacityError: the walks of two steps do not fit in a task, or, once the Gram is counted, the models; not where
            the table is there.
    """
    settings, done = context.config.linear, context.is_fresh("linear")
    walks = two_steps.task_bytes(arrays, settings.walk_neighbours) if settings.walk_neighbours else 0
    if not done and walks > machine.task_bytes:
        raise CapacityError(
            f"the walks of two steps need {walks:,} bytes in a task, which may take {machine.task_bytes:,}: "
            f"{_MORE_MEMORY}, or set linear.walk_neighbours=0 to go without them"
        )
    counted = context.is_fresh("gram")
    cells = cells_by_market(context.workspace.folder("gram"), arrays.n_markets) if counted else _most_cells(arrays)
    models = market_linear.task_bytes(arrays, cells, settings.others)
    if not done and counted and models > machine.task_bytes:
        alone = market_linear.task_bytes(arrays, cells, [0.0])
        raise CapacityError(
            f"the markets' own linear models need up to {models:,} bytes in a task, which may take "
            f"{machine.task_bytes:,}: {_MORE_MEMORY}, or set linear.others=[0.0], with which a market listens to its "
            f"own shoppers alone ({alone:,} bytes), or linear.others=[] and train.linear=ease, to go without them"
        )
    return max(walks, models)


def _most_cells(arrays: MarketArrays) -> NDArray[np.int64]:
    """(M,) cells of each market's Gram: the pairs of its users' histories, or all pairs of its items where less."""
    lengths, items = np.diff(arrays.indptr), np.diff(arrays.slot_offsets)
    ends = np.concatenate([[0], np.cumsum(lengths * (lengths + 1) // 2)])[arrays.user_offsets]
    most: NDArray[np.int64] = np.minimum(np.diff(ends), items * (items + 1) // 2)
    return most


def publish_linear(context: Context, arrays: MarketArrays, machine: Machine, report: Report) -> None:
    """The table linear.

    Raises:
        CapacityError: see `plan`.
    """
    workspace = context.workspace
    report["task_bytes"] = {"linear": plan(context, arrays, machine)}  # by now the cells are counted
    if context.is_fresh("linear"):
        log.info("linear: kept from the run before")
    else:
        settings = context.config.linear
        facts: Report = {"others": list(settings.others), "walks": settings.walk_neighbours > 0, "walk_entries": 0}
        with workspace.publishing("linear", context.key, extra=facts) as folder:
            _fill(context, folder, facts)
    facts = workspace.facts("linear")
    report |= {name: facts[name] for name in ("linear_entries", "linear_restless", "walk_entries")}
    if facts["linear_restless"]:
        log.warning("linear: %d columns stopped before they came to rest", facts["linear_restless"])
    log.info(
        "linear: %d entries in models of the markets' own, the others weighing %s; %d in the walks of two steps",
        facts["linear_entries"], ", ".join(f"{weight:g}" for weight in facts["others"]) or "nothing: none is made",
        facts["walk_entries"],
    )  # fmt: skip


def _fill(context: Context, folder: Path, facts: Report) -> None:
    settings, workspace, spark = context.config.linear, context.workspace, context.spark()
    facts["linear_entries"], facts["linear_restless"] = market_linear.write_market_models(
        spark, workspace.folder("gram"), workspace.folder("arrays"), folder,
        weights=solve.market_weights(context), others=settings.others, l1=settings.l1, l2=settings.l2,
    )  # fmt: skip
    if settings.walk_neighbours:
        walks_folder = market_linear.walk_folder(folder)
        walks_folder.mkdir()
        facts["walk_entries"] = two_steps.write_two_steps(
            spark, workspace.folder("arrays"), walks_folder, settings.walk_neighbours, settings.walk_beta
        )
    (folder / "linear.json").write_text(json.dumps(settings.model_dump()), encoding="utf-8")
