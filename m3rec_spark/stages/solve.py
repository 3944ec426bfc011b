"""EASE by the solver that the plan chooses: gram -> ease, similarity. Part of pretrain."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray
from scipy import sparse

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import DataError, UsageError, did_you_mean
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
from m3rec_spark.stages.gap import gap
from m3rec_spark.tables import fill, fill_arrow

log = logging.getLogger(__name__)

_TOLERANCE = {"float64": 1e-9, "float32": 1e-3}  # of the residual, relative to the largest count
_IN_SINGLE = ("driver", "cuda")  # solvers that ease.precision is for
_COMPARED = 8192  # items up to which the neighbourhood is compared with the exact solution: seconds on the driver
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


def plan(context: Context, arrays: MarketArrays, machine: solvers.Machine) -> Report:
    """`solver`, the one to use; `plan`, the table of all; `ease_bytes` on the driver.

    Where the tables are fresh, what was said when they were made.

    Raises:
        CapacityError: none fits, or not the one wished for.
    """
    if context.is_fresh("ease", "similarity"):
        return context.workspace.facts("ease")
    settings = context.config.ease
    machine = _with_own_tiles(context, machine)
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
    text = f"{head}\n{solvers.table(estimates, chosen)}"
    return {"solver": chosen.solver, "plan": text, "ease_bytes": chosen.driver_bytes}


def _with_own_tiles(context: Context, machine: solvers.Machine) -> solvers.Machine:
    """The machine with the disk that an unfinished sweep of this very run has taken already."""
    if machine.disk_bytes is None:
        return machine
    return replace(machine, disk_bytes=machine.disk_bytes + context.workspace.resumable_bytes("sweep", context.key))


def publish_similarity(context: Context, arrays: MarketArrays, machine: solvers.Machine, chosen: Report) -> None:
    """The tables ease and similarity: both, or none where the certificate is refused.

    chosen: `solver`, and whatever else the report shall say of the choice.
    """
    workspace, settings = context.workspace, context.config.ease
    own = by_rows.MarketItems(np.asarray(arrays.slot_items), np.asarray(arrays.slot_offsets))
    facts, solver = dict(chosen), chosen["solver"]
    if settings.precision == "float32" and solver not in _IN_SINGLE:
        log.warning("ease.precision=float32 is for the solvers driver and cuda: %s computes in float64", solver)
    if context.force:
        workspace.clear_resumable("sweep")
    with (
        workspace.publishing("ease", context.key, extra=facts) as folder,
        workspace.publishing("similarity", context.key) as glob,
        workspace.scratch("ease") as scratch,
    ):
        if solver == "neighbourhood":
            facts["neighbourhood"] = _approximate(context, arrays, machine, own, folder, glob, scratch)
        else:
            columns = certificate_columns(arrays.n_items)
            outputs = by_rows.Outputs(own, settings.epsilon, folder, columns, scratch / "proof")
            proof = _exact(context, arrays, machine, solver, outputs, glob, scratch)
            figures = {"certificate": proof.residual, "weights_error": proof.error}
            facts |= figures | {"certificate_columns": len(columns)}
        header = {"lambda_f": settings.lambda_f, "n_items": arrays.n_items, "certificate": None, **facts}
        (folder / "ease.json").write_text(json.dumps(header), encoding="utf-8")


def read_similarity(context: Context, n_items: int, report: Report) -> sparse.csr_matrix:
    """B-Glob; the report gets what the tables say, whichever run made them."""
    facts = context.workspace.facts("ease")
    similarity = similarity_table.similarity_matrix(context.workspace.read_arrow("similarity"), n_items)
    empty = int((np.diff(similarity.indptr) == 0).sum())
    report |= facts | {"similarity_entries": similarity.nnz, "similarity_empty_rows": empty}
    if not similarity.nnz:
        log.warning("EASE: no entry of B is >= ease.epsilon=%g: B-Glob is empty", context.config.ease.epsilon)
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
    outputs: by_rows.Outputs,
    glob: Path,
    scratch: Path,
) -> Proof:
    """Solves, writes block by block, proves."""
    settings = context.config.ease
    outputs.proof.mkdir()
    with _solved(context, arrays, machine, solver, scratch) as weights:
        if isinstance(weights, by_rows.DenseWeights):
            fill_arrow(glob, by_rows.similarity_on_driver(weights, outputs), "similarity")
        else:
            fill(glob, by_rows.similarity_on_spark(context.spark(), weights, outputs), "similarity")
        return certificate(
            lambda: _cells(context), by_rows.solution_columns(outputs.proof), outputs.columns, settings.lambda_f,
            market_weights(context), _TOLERANCE[settings.precision if solver in _IN_SINGLE else "float64"],
            threads=machine.driver_cores,
        )  # fmt: skip


def _cells(context: Context) -> Iterator[pa.RecordBatch]:
    """The published Gram."""
    yield from ds.dataset(context.workspace.folder("gram"), format="parquet").to_batches(columns=_CELLS)


@contextlib.contextmanager
def _solved(
    context: Context, arrays: MarketArrays, machine: solvers.Machine, solver: str, scratch: Path
) -> Iterator[by_rows.Weights]:
    """B by the solver; its files live as long as the block."""
    workspace, settings, n = context.workspace, context.config.ease, arrays.n_items
    folder, weights = workspace.folder("gram"), market_weights(context)
    if solver in _IN_SINGLE:
        dense = gram.dense_gram(_cells(context), n, weights, np.dtype(settings.precision))
        solve = ease.solve if solver == "driver" else ease.solve_on_gpu
        yield by_rows.DenseWeights(solve(dense, settings.lambda_f))
    elif solver == "markets":
        place = workspace.folder("arrays")
        whole = context.config.gram.max_history is None
        yield markets.eliminate(
            context.spark(), folder, place, scratch, settings.lambda_f, weights, whole, machine.task_bytes
        )
    else:
        try:
            with workspace.resumable("sweep", context.key) as tiles:
                yield sweep.sweep(
                    context.spark(), folder, tiles, n, settings.lambda_f, weights, settings.tile, context.key,
                    machine.cores,
                )  # fmt: skip
        except DataError:
            workspace.clear_resumable("sweep")  # to go on from these tiles would end in the same way
            raise


def _approximate(
    context: Context,
    arrays: MarketArrays,
    machine: solvers.Machine,
    own: by_rows.MarketItems,
    folder: Path,
    glob: Path,
    scratch: Path,
) -> Report:
    """The neighbourhood's B, sparse on the driver; gives what it left out, and how far it is from the exact one."""
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
    kept = b_glob.filter_sparse(weights, settings.epsilon)
    fill_arrow(glob, _batches(b_glob.normalise_rows(kept)), "similarity")
    report = {"fewer": found.fewer, "none": found.none, "entries": found.entries}
    if arrays.n_items > _COMPARED or solvers.estimate_driver(arrays.n_items, machine).obstacle:
        return report
    exact = ease.solve(gram.dense_gram(_cells(context), arrays.n_items, market_weights(context)), settings.lambda_f)
    return report | gap(context, arrays, folder, kept, by_rows.DenseWeights(exact), scratch)


def _batches(rows: sparse.csr_matrix, block: int = 4096) -> Iterator[pa.RecordBatch]:
    for first in range(0, rows.shape[0], block):
        yield similarity_table.similarity_batch(rows[first : first + block], first)


def _told(facts: Report) -> str:
    if facts["solver"] == "neighbourhood":
        found = facts["neighbourhood"]
        if "ndcg_10_exact" not in found:
            return "approximate, without a certificate"
        figures = f"validation NDCG@10 {found['ndcg_10']:.4f}, of the exact one {found['ndcg_10_exact']:.4f}"
        return f"approximate: {found['support_overlap']:.0%} of B-Glob's entries in common, {figures}"
    looked_at = f"of {facts['certificate_columns']} columns no entry is off by more than {facts['weights_error']:.1e}"
    return f"certificate {facts['certificate']:.1e}, {looked_at}"
