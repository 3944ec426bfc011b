"""Packs the published tables of a workspace into the folder that serves (bundle). Memory: the ids of all users."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.ranking.bundle import Places, seal_bundle
from m3rec_spark.ranking.ids import save_ids
from m3rec_spark.ranking.scorers import published_scorer
from m3rec_spark.similarity.entries import transpose
from m3rec_spark.similarity.similarity_table import item_vectors, similarity_matrix
from m3rec_spark.tables import Workspace

log = logging.getLogger(__name__)

_SERVED = ("item_vectors", "history_vectors", "history_weights", "user_vectors", "ease_weights")


def pack(workspace: Workspace, folder: Path, facts: Mapping[str, Any]) -> None:
    """Fills an empty folder with what serves the published model.

    Args:
        workspace: with the tables of prepare, pretrain and train.
        folder: empty.
        facts: what bundle.json says of the model.
    """
    arrays = open_arrays(workspace.folder("arrays"))
    shutil.copytree(workspace.folder("arrays"), folder / "arrays")
    (folder / "model").mkdir()
    for name in _SERVED:
        source = workspace.folder("model") / f"{name}.npy"
        if source.is_file() or name != "ease_weights":
            shutil.copy(source, folder / "model")
    _copy_ease(workspace, folder, arrays)
    lay_out(workspace, folder)
    seal_bundle(folder, facts)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    sizes = arrays.n_markets, arrays.n_rows, arrays.n_items, size / 1e6
    log.info("packed %d markets, %d users and %d items into %.0f MB", *sizes)


def lay_out(workspace: Workspace, folder: Path) -> Places:
    """Writes into a folder what a workspace lacks to serve; gives where all parts are, the others in its tables."""
    arrays = open_arrays(workspace.folder("arrays"))
    for name in ("shoppers", "world", "ids"):
        (folder / name).mkdir()
    save_shoppers(arrays, folder / "shoppers")
    _save_world(workspace, folder / "world", arrays.n_items)
    _save_ids(workspace, folder / "ids", arrays)
    tables = {name: str(workspace.folder(name)) for name in ("arrays", "model", "ease")}
    return Places(**tables, **{name: str(folder / name) for name in ("shoppers", "world", "ids")})


def save_shoppers(arrays: MarketArrays, folder: Path) -> None:
    """X by item, for `explain.open_shoppers`."""
    by_item = transpose(arrays.indptr, arrays.slots, len(arrays.slot_items))
    np.save(folder / "starts.npy", by_item.indptr)
    np.save(folder / "rows.npy", by_item.users)


def _copy_ease(workspace: Workspace, folder: Path, arrays: MarketArrays) -> None:
    """The linear model of the markets that have a share of it: the others never ask for it."""
    scorer = published_scorer(str(workspace.folder("model")), str(workspace.folder("ease")))
    (folder / "ease").mkdir()
    for market in range(arrays.n_markets):
        if scorer.ease is not None and scorer.share(arrays, market):
            for source in Path(scorer.ease.folder).glob(f"market-{market:05d}*"):
                target = folder / "ease" / source.name
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def _save_world(workspace: Workspace, folder: Path, n_items: int) -> None:
    """V-Glob and B-Glob, as arrays that can be mapped."""
    np.save(folder / "item_vectors.npy", item_vectors(workspace.read_arrow("item_vectors"), n_items))
    similarity = similarity_matrix(workspace.read_arrow("similarity"), n_items)
    similarity.sort_indices()
    for name in ("data", "indices", "indptr"):
        np.save(folder / f"{name}.npy", getattr(similarity, name))


def _save_ids(workspace: Workspace, folder: Path, arrays: MarketArrays) -> None:
    """markets.arrow, items.arrow and users.arrow (by row), in the order of their indices."""
    for name, index, size in (("markets", "market", arrays.n_markets), ("items", "item", arrays.n_items)):
        table = workspace.read_arrow(name, [index, f"{index}_id"])
        save_ids(folder / f"{name}.arrow", _in_order(table[index].to_numpy(), table[f"{index}_id"], size))
    users = workspace.read_arrow("users")
    rows = arrays.user_offsets[users["market"].to_numpy()] + users["user"].to_numpy()
    save_ids(folder / "users.arrow", _in_order(rows, users["user_id"], arrays.n_rows))


def _in_order(index: NDArray[Any], ids: pa.ChunkedArray, size: int) -> pa.Array:
    order = np.argsort(index)
    if not np.array_equal(index[order], np.arange(size)):
        raise CorruptTableError("the ids do not number the rows of the arrays: run `m3rec prepare --force`")
    found = pc.take(ids.cast(pa.large_string()), pa.array(order))
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
