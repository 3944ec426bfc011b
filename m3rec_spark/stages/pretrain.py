"""Stage 2: interactions, arrays -> gram, ease, similarity, walks, item_vectors; reports/pretrain.json."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray
from scipy import sparse

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.paths import write_atomically
from m3rec_spark.schema import DataError
from m3rec_spark.similarity import ease, gram, skipgram, walks
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.train import choose_device
from m3rec_spark.tables import arrow_schema

log = logging.getLogger(__name__)

REPORT = "reports/pretrain.json"
Report = dict[str, Any]


def run(context: Context) -> None:
    """Mines both item similarities; says what memory the steps take before it takes any.

    Raises:
        CapacityError: a step does not fit in memory.
        DataError: the system of EASE cannot be solved, or no two items share a user.
    """
    arrays = open_arrays(context.workspace.folder("arrays"))
    report: Report = {"items": arrays.n_items, "pairs": len(arrays.slots), "seconds": {}}
    _plan(context, arrays, report)
    with _timed("gram", report):
        _publish_gram(context, report)
    with _timed("ease", report):  # its n x n array is gone when the step ends
        similarity = _publish_similarity(context, arrays.n_items, report)
    with _timed("walks", report):
        degrees = _publish_walks(context, arrays, report)
    with _timed("skipgram", report):
        _publish_item_vectors(context, similarity, degrees, report)
    write_atomically(context.workspace.root / REPORT, json.dumps(report, indent=1).encode())
    context.tracker.json(report, "pretrain.json")
    context.tracker.metrics({f"pretrain/{step}_seconds": seconds for step, seconds in report["seconds"].items()})


def _plan(context: Context, arrays: MarketArrays, report: Report) -> None:
    """Refuses what cannot be done, or does not fit, before the first job starts."""
    if np.diff(arrays.indptr).max(initial=0) < 2:
        raise DataError("no user has two items in the train split: no item is like another; prepare other data")
    n, settings, steps = arrays.n_items, context.config.skipgram, context.config.walks
    report["bytes"] = needed = {
        "ease": ease.plan(n, context.config.ease.memory_gb),
        "walks": walks.plan(len(arrays.slots), n),
        "skipgram": skipgram.plan(
            n, n * steps.per_item, steps.length, settings.dimension, settings.shared, settings.batch_walks
        ),
    }
    log.info(
        "memory on the driver, one after another: EASE %.2f GB (%d items), walks %.2f GB, skip-gram %.2f GB",
        needed["ease"] / 1e9, n, needed["walks"] / 1e9, needed["skipgram"] / 1e9,
    )  # fmt: skip


def _publish_gram(context: Context, report: Report) -> None:
    settings, workspace = context.config.gram, context.workspace
    train = workspace.read(context.spark(), "interactions").filter("split = 'train'")
    cells = gram.gram_by_market(train, settings.tile, settings.pairs_per_task)
    report["gram_cells"] = workspace.write(cells, "gram", context.key).rows
    log.info("Gram: %d cells in the upper halves of all markets", report["gram_cells"])


def _publish_similarity(context: Context, n_items: int, report: Report) -> sparse.csr_matrix:
    """The ease folder and B-Glob; gives the latter."""
    settings, workspace = context.config.ease, context.workspace
    cells = ds.dataset(workspace.folder("gram"), format="parquet")
    columns = ["item_a", "item_b", "count"]
    ease.plan(n_items, settings.memory_gb)  # again: Spark has taken memory since
    dense = gram.dense_gram(cells.to_batches(columns=columns), n_items)
    weights = ease.solve(dense, settings.lambda_f)
    certificate = ease.certificate(cells.to_batches(columns=columns), weights, settings.lambda_f)
    header = {"lambda_f": settings.lambda_f, "n_items": n_items, "certificate": certificate}
    with workspace.publishing("ease", context.key) as folder:
        ease.save_weights(weights, folder / "weights.npy")
        (folder / "ease.json").write_text(json.dumps(header), encoding="utf-8")
    similarity = ease.normalise_rows(ease.filter_rows(weights, settings.epsilon))
    workspace.write_arrow(ease.similarity_batches(similarity), "similarity", context.key)
    empty = int((np.diff(similarity.indptr) == 0).sum())
    report |= {"certificate": certificate, "similarity_entries": similarity.nnz, "similarity_empty_rows": empty}
    log.info(
        "EASE: certificate %.1e; B-Glob keeps %d entries >= %g, %d items have none",
        certificate, similarity.nnz, settings.epsilon, empty,
    )  # fmt: skip
    return similarity


def _publish_walks(context: Context, arrays: MarketArrays, report: Report) -> NDArray[np.int64]:
    """The walks; gives the items' degrees."""
    settings, workspace = context.config.walks, context.workspace
    graph = walks.build_graph(arrays.indptr, arrays.items, arrays.n_items, settings.self_loops)
    degrees = graph.degrees()
    isolated = int((degrees == 0).sum())
    with workspace.scratch("walks") as folder:
        walks.save_graph(graph, folder)
        frame = walks.sample_walks(context.spark(), folder, settings.per_item, settings.length, settings.seed)
        report["walks"] = workspace.write(frame, "walks", context.key).rows
    report["items_without_neighbour"] = isolated
    log.info("walks: %d of %d items; %d items have no neighbour", report["walks"], settings.length, isolated)
    return degrees


def _publish_item_vectors(
    context: Context, similarity: sparse.csr_matrix, degrees: NDArray[np.int64], report: Report
) -> None:
    """V-Glob of the items that have a neighbour: the others were in no walk."""
    settings, workspace = context.config.skipgram, context.workspace
    losses: list[float] = []

    def on_epoch(epoch: int, loss: float) -> None:
        losses.append(loss)
        context.tracker.metrics({"skipgram/loss": loss}, step=epoch)

    vectors = skipgram.fit_item_vectors(
        walks.walk_matrix(workspace.read_arrow("walks")),
        similarity if settings.smooth else None,
        degrees,
        device=choose_device(context.config.train.device),
        on_epoch=on_epoch,
        **settings.model_dump(exclude={"smooth"}),
    )
    walked = np.flatnonzero(degrees).astype(np.int32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors[walked].ravel()), settings.dimension)
    schema = arrow_schema("item_vectors")
    table = pa.table({"item": walked, "vector": values.cast(schema.field("vector").type)}, schema=schema)
    workspace.write_arrow(table, "item_vectors", context.key)
    report |= {"skipgram_losses": losses, "item_vectors": len(walked)}


@contextlib.contextmanager
def _timed(step: str, report: Report) -> Iterator[None]:
    start = time.perf_counter()
    yield
    report["seconds"][step] = round(time.perf_counter() - start, 2)
