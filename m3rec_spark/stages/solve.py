"""EASE by the solver that the plan chooses: gram -> ease, similarity. Part of pretrain."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray
from scipy import sparse

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import UsageError, did_you_mean
from m3rec_spark.similarity import (
    b_glob,
    ease,
    gram,
    markets,
    neighbourhood,
    similarity_table,
    solvers,
    sweep,
    symmetric,
)
from m3rec_spark.similarity import weights as by_rows
from m3rec_spark.similarity.certificate import Proof, certificate, certificate_columns
from m3rec_spark.stages.context import Context

log = logging.getLogger(__name__)

_TOLERANCE = {"float64": 1e-9, "float32": 1e-3}  # of the residual, relative to the largest count
_CELLS = ["market", "item_a", "item_b", "count"]
Report = dict[str, Any]


def market_weights(context: Context) -> NDArray[np.float64]:
    """(M,) w_m of gram.weights in the order of the markets' indices.

    Raises:
        UsageError: a market that does not exist.
    """
    table = context.workspace.read_arrow("markets").sort_by("market")
    known: list[str] = table["market_id"].to_pylist()
    wished = context.config.gram.weights
    for market in wished:
        if market not in known:
            raise UsageError(
                f"gram.weights names market '{market}', which does not exist.{did_you_mean(market, known)} "
                f"Markets: {', '.join(known)}"
            )
    return np.array([wished.get(market, 1.0) for market in known])


def plan(context: Context, arrays: MarketArrays, machine: solvers.Machine) -> tuple[solvers.Estimate, str]:
    """The solver to use, and the table of all.

    Raises:
        CapacityError: none fits, or not the one wished for.
    """
    settings = context.config.ease
    goods = solvers.catalogue(arrays, context.config.gram.max_history is None)
    lengths = np.diff(arrays.indptr)
    cells = min(int((lengths * (lengths + 1) // 2).sum()), goods.n_items * (goods.n_items + 1) // 2 * arrays.n_markets)
    itemsize = np.dtype(settings.precision).itemsize
    estimates = solvers.estimate_all(goods, machine, settings.tile, settings.neighbours, cells, itemsize)
    chosen = solvers.choose(estimates, settings.solver)
    head = (
        f"EASE: {goods.n_items:,} items in {arrays.n_markets} markets, {goods.shared:,} shared; {machine.cores} tasks "
        f"at once; the driver may take {machine.driver_bytes / 1e9:.1f} GB, a task {machine.task_bytes / 1e9:.1f} GB"
    )
    return chosen, f"{head}\n{solvers.table(estimates, chosen)}"


def publish_similarity(context: Context, arrays: MarketArrays, machine: solvers.Machine, solver: str) -> None:
    """The tables ease and similarity."""
    workspace, settings = context.workspace, context.config.ease
    own = by_rows.MarketItems(np.asarray(arrays.slot_items), np.asarray(arrays.slot_offsets))
    facts: Report = {"solver": solver}
    with workspace.publishing("ease", context.key, extra=facts) as folder, workspace.scratch("ease") as scratch:
        if solver == "neighbourhood":
            facts["neighbourhood"] = _approximate(context, arrays, own, folder, scratch)
        else:
            proof = _exact(context, arrays, machine, solver, own, folder, scratch)
            facts |= {"certificate": proof.residual, "weights_error": proof.error}
        header = {"lambda_f": settings.lambda_f, "n_items": arrays.n_items, "certificate": None, **facts}
        (folder / "ease.json").write_text(json.dumps(header), encoding="utf-8")


def read_similarity(context: Context, n_items: int, report: Report) -> sparse.csr_matrix:
    """B-Glob; the report gets what the tables say, whichever run made them."""
    facts = context.workspace.facts("ease")
    similarity = similarity_table.similarity_matrix(context.workspace.read_arrow("similarity"), n_items)
    empty = int((np.diff(similarity.indptr) == 0).sum())
    report |= facts | {"similarity_entries": similarity.nnz, "similarity_empty_rows": empty}
    log.info(
        "EASE by %s: %s; B-Glob keeps %d entries >= %g, %d items have none",
        facts["solver"], _told(facts), similarity.nnz, context.config.ease.epsilon, empty,
    )  # fmt: skip
    return similarity


def _exact(
    context: Context,
    arrays: MarketArrays,
    machine: solvers.Machine,
    solver: str,
    own: by_rows.MarketItems,
    folder: Path,
    scratch: Path,
) -> Proof:
    """Solves, publishes block by block, proves."""
    workspace, settings = context.workspace, context.config.ease
    solution = scratch / "proof"
    solution.mkdir()
    columns = certificate_columns(arrays.n_items)
    outputs = by_rows.Outputs(own, settings.epsilon, folder, columns, solution)
    with _solved(context, arrays, machine, solver, scratch) as weights:
        if isinstance(weights, by_rows.DenseWeights):
            workspace.write_arrow(by_rows.similarity_on_driver(weights, outputs), "similarity", context.key)
        else:
            frame = by_rows.similarity_on_spark(context.spark(), weights, outputs)
            workspace.write(frame, "similarity", context.key)
    cells = ds.dataset(workspace.folder("gram"), format="parquet").to_batches(columns=_CELLS)
    tolerance = _TOLERANCE[settings.precision if solver in ("driver", "cuda") else "float64"]
    return certificate(
        cells, by_rows.solution_columns(solution), columns, settings.lambda_f, market_weights(context), tolerance,
        threads=machine.driver_cores,
    )  # fmt: skip


@contextlib.contextmanager
def _solved(
    context: Context, arrays: MarketArrays, machine: solvers.Machine, solver: str, scratch: Path
) -> Iterator[by_rows.Weights]:
    """B by the solver; its files live as long as the block."""
    workspace, settings, n = context.workspace, context.config.ease, arrays.n_items
    folder, weights = workspace.folder("gram"), market_weights(context)
    if solver in ("driver", "cuda"):
        cells = ds.dataset(folder, format="parquet").to_batches(columns=_CELLS)
        dense = gram.dense_gram(cells, n, weights, np.dtype(settings.precision))
        solve = ease.solve if solver == "driver" else ease.solve_on_gpu
        yield by_rows.DenseWeights(solve(dense, settings.lambda_f))
    elif solver == "markets":
        place = workspace.folder("arrays")
        whole = context.config.gram.max_history is None
        yield markets.eliminate(
            context.spark(), folder, place, scratch, settings.lambda_f, weights, whole, machine.task_bytes
        )
    else:
        with workspace.resumable("sweep", context.key) as tiles:
            yield sweep.sweep(
                context.spark(), folder, tiles, n, settings.lambda_f, weights, settings.tile, context.key, machine.cores
            )


def _approximate(
    context: Context, arrays: MarketArrays, own: by_rows.MarketItems, folder: Path, scratch: Path
) -> Report:
    """The neighbourhood's B, sparse on the driver; gives what it left out."""
    workspace, settings = context.workspace, context.config.ease
    places = scratch / "symmetric", scratch / "columns"
    for place in places:
        place.mkdir()
    symmetric.symmetric_gram(workspace.folder("gram"), places[0], arrays.n_items, market_weights(context))
    found = neighbourhood.solve_neighbourhoods(
        context.spark(), places[0], places[1], settings.lambda_f, settings.neighbours
    )
    weights = neighbourhood.read_weights(places[1])
    by_rows.publish_sparse(weights, own, folder)
    rows = b_glob.normalise_rows(b_glob.filter_sparse(weights, settings.epsilon))
    workspace.write_arrow(_batches(rows), "similarity", context.key)
    return {"fewer": found.fewer, "none": found.none, "entries": found.entries}


def _batches(rows: sparse.csr_matrix, block: int = 4096) -> Iterator[pa.RecordBatch]:
    for first in range(0, rows.shape[0], block):
        yield similarity_table.similarity_batch(rows[first : first + block], first)


def _told(facts: Report) -> str:
    if facts["solver"] == "neighbourhood":
        return "approximate, without a certificate"
    return f"certificate {facts['certificate']:.1e}, no entry of B is off by more than {facts['weights_error']:.1e}"
