"""Stage 2: interactions, arrays -> gram, ease, similarity, walks, item_vectors; reports/pretrain.json.

A table that an interrupted run of the same stage has published is kept: only what is missing is made.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from m3rec_spark.data.arrays import MarketArrays, open_arrays, save_arrays
from m3rec_spark.errors import DataError
from m3rec_spark.evaluation.validation import validation_sample
from m3rec_spark.paths import write_atomically
from m3rec_spark.similarity import entries, gram, skipgram, walks
from m3rec_spark.similarity.capacity import require
from m3rec_spark.similarity.probe import Probe, held_out_pairs
from m3rec_spark.similarity.solvers import Machine
from m3rec_spark.stages import linear, solve, walk
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.machine import describe_machine
from m3rec_spark.stages.train import choose_device
from m3rec_spark.tables import arrow_schema

log = logging.getLogger(__name__)

REPORT = "reports/pretrain.json"
PROBE_PAIRS = 5000  # held-out pairs that judge V-Glob after each epoch
Report = dict[str, Any]


def run(context: Context) -> None:
    """Mines both item similarities; says what memory the steps take before it takes any.

    Raises:
        CapacityError: a step does not fit in memory.
        DataError: the system of EASE cannot be solved, or no two items share a user.
        DivergedError: skip-gram's loss or vectors are no numbers any more.
    """
    arrays = _arrays(context)
    report: Report = {"items": arrays.n_items, "pairs": len(arrays.slots), "seconds": {}}
    machine = _machine(context)
    chosen = _plan(context, arrays, machine, report)
    for line in report["plan"].splitlines():
        log.info("%s", line)
    with _timed("gram", report):
        _publish_gram(context, arrays, report)
    with _timed("ease", report):  # its memory is given back when the step ends
        similarity = _similarity(context, arrays, machine, chosen, report)
    with _timed("linear", report):
        linear.publish_linear(context, arrays, machine, report)
    with _timed("walks", report):
        degrees = walk.publish_walks(context, arrays, machine, report)
    with _timed("skipgram", report):
        _publish_item_vectors(context, arrays, similarity, degrees, report)
    write_atomically(context.workspace.root / REPORT, json.dumps(report, indent=1).encode())
    context.tracker.json(report, "pretrain.json")
    context.tracker.metrics({f"pretrain/{step}_seconds": seconds for step, seconds in report["seconds"].items()})


def plan(context: Context) -> str:
    """What `run` would do: the solvers with time and memory, and the bytes of the other steps.

    Raises:
        CapacityError, DataError: it would be refused.
    """
    arrays = _arrays(context)
    report: Report = {}
    _plan(context, arrays, _machine(context), report)
    driver, task = (
        ", ".join(f"{step} {size / 1e9:.2f} GB" for step, size in report[name].items())
        for name in ("bytes", "task_bytes")
    )
    return f"{report['plan']}\nmemory on the driver, one after another: {driver}; in a task at most: {task}"


def _machine(context: Context) -> Machine:
    return describe_machine(context.spark(), context.config.ease.memory_gb, context.workspace.root)


def _arrays(context: Context) -> MarketArrays:
    arrays = open_arrays(context.workspace.folder("arrays"))
    if np.diff(arrays.indptr).max(initial=0) < 2:
        raise DataError("no user has two items in the train split: no item is like another; prepare other data")
    return arrays


def _plan(context: Context, arrays: MarketArrays, machine: Machine, report: Report) -> Report:
    """The choice of `solve.plan`. Refuses what cannot be done, or does not fit, before the first step starts."""
    solve.market_weights(context)
    chosen = solve.plan(context, arrays, machine)
    report["plan"] = chosen["plan"]
    report["bytes"] = {
        "gram": _gram_bytes(context, arrays),
        "ease": chosen["ease_bytes"],
        "walks": walk.plan(context, arrays, machine)[1],
        "skipgram": _skipgram_bytes(context, arrays.n_items, 0),
    }
    report["task_bytes"] = {"linear": linear.plan(context, arrays, machine)}
    return chosen


def _gram_bytes(context: Context, arrays: MarketArrays) -> int:
    """Of the histories' transpose. Raises: CapacityError, if there is no room for it."""
    pairs = len(arrays.slots)
    needed = entries.bytes_needed(pairs, len(arrays.slot_items))
    if not context.is_fresh("gram"):
        require(needed, f"the Gram's transpose of {pairs:,} pairs", "run the driver on a larger machine")
    return needed


def _skipgram_bytes(context: Context, n_items: int, similarity_entries: int) -> int:
    settings, steps = context.config.skipgram, context.config.walks
    return skipgram.plan(
        n_items, n_items * steps.per_item, steps.length, settings.dimension, settings.shared, settings.batch_walks,
        similarity_entries,
    )  # fmt: skip


def _publish_gram(context: Context, arrays: MarketArrays, report: Report) -> None:
    """One Gram a market, straight from the histories."""
    settings, workspace = context.config.gram, context.workspace
    if context.is_fresh("gram"):
        log.info("Gram: kept from the run before")
    else:
        _make_gram(context, arrays)
    facts = workspace.facts("gram")
    if "capped" in facts:
        log.warning(
            "Gram: approximate, gram.max_history=%d left out %d pairs of %d users",
            settings.max_history, facts["capped"]["pairs"], facts["capped"]["users"],
        )  # fmt: skip
    report |= facts
    log.info("Gram: %d cells in the upper halves of all markets", facts["gram_cells"])


def _make_gram(context: Context, arrays: MarketArrays) -> None:
    settings, workspace = context.config.gram, context.workspace
    facts: Report = {}
    with (
        workspace.scratch("gram") as scratch,
        workspace.publishing("gram", context.key, extra=facts) as folder,
    ):
        source = workspace.folder("arrays")
        if settings.max_history is not None:
            source = scratch / "capped"
            source.mkdir()
            arrays, capped = gram.cap_histories(arrays, settings.max_history, settings.seed)
            save_arrays(arrays, source)
            facts["capped"] = {"users": capped.users, "pairs": capped.pairs}
        entries.save_entries(entries.transpose(arrays.indptr, arrays.slots, len(arrays.slot_items)), scratch)
        found = gram.write_gram(context.spark(), source, scratch, folder, settings.pairs_per_task)
        facts["gram_cells"] = found.cells


def _similarity(
    context: Context, arrays: MarketArrays, machine: Machine, chosen: Report, report: Report
) -> sparse.csr_matrix:
    """B-Glob, and with it the table ease."""
    if context.is_fresh("ease", "similarity"):
        log.info("EASE: kept from the run before")
    else:
        solve.publish_similarity(context, arrays, machine, chosen)
    context.workspace.clear_resumable("sweep")  # also what a run by another solver left there
    return solve.read_similarity(context, arrays.n_items, report)


def _publish_item_vectors(
    context: Context, arrays: MarketArrays, similarity: sparse.csr_matrix, degrees: NDArray[np.int64], report: Report
) -> None:
    """V-Glob of the items that have a neighbour: the others were in no walk."""
    settings, workspace = context.config.skipgram, context.workspace
    _skipgram_bytes(context, arrays.n_items, similarity.nnz if settings.smooth else 0)  # by now the entries are known
    losses: list[float] = []
    aucs: list[float] = []

    def on_epoch(epoch: int, loss: float, auc: float | None) -> None:
        losses.append(loss)
        told = {"skipgram/loss": loss}
        if auc is not None:
            aucs.append(auc)
            told["skipgram/auc"] = auc
        context.tracker.metrics(told, step=epoch)

    vectors = skipgram.fit_item_vectors(
        walks.walk_matrix(workspace.read_arrow("walks")),
        similarity if settings.smooth else None,
        degrees,
        device=choose_device(context.config.train.device),
        probe=_probe(context, arrays, degrees),
        on_epoch=on_epoch,
        **settings.model_dump(exclude={"smooth"}),
    )
    walked = np.flatnonzero(degrees).astype(np.int32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors[walked].ravel()), settings.dimension)
    schema = arrow_schema("item_vectors")
    table = pa.table({"item": walked, "vector": values.cast(schema.field("vector").type)}, schema=schema)
    workspace.write_arrow(table, "item_vectors", context.key)
    report |= {"skipgram_losses": losses, "skipgram_auc": aucs, "item_vectors": len(walked)}


def _probe(context: Context, arrays: MarketArrays, degrees: NDArray[np.int64]) -> Probe | None:
    """Held-out pairs of the validation half; None where nothing is held out."""
    seed = context.config.skipgram.seed
    sample = validation_sample(context.workspace.folder("candidates"), PROBE_PAIRS, seed)
    if not sample.num_rows:
        return None
    market, user, item = (sample[name].to_numpy().astype(np.int64) for name in ("market", "user", "positive"))
    markets_of_slots = np.repeat(np.arange(arrays.n_markets), np.diff(arrays.slot_offsets))
    slots = np.searchsorted(markets_of_slots * arrays.n_items + arrays.slot_items, market * arrays.n_items + item)
    return held_out_pairs(
        arrays, arrays.user_offsets[market] + user, slots, degrees > 0, at_most=PROBE_PAIRS, seed=seed
    )  # fmt: skip


@contextlib.contextmanager
def _timed(step: str, report: Report) -> Iterator[None]:
    start = time.perf_counter()
    yield
    report["seconds"][step] = round(time.perf_counter() - start, 2)
