"""A workspace with prepare's tables from a handful of pairs, made by plain Python: no Spark, no code under test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from m3rec_spark.data.arrays import MarketArrays, open_arrays, save_arrays
from m3rec_spark.data.build_arrays import build_arrays
from m3rec_spark.ranking.scorers import LINEAR
from m3rec_spark.similarity.market_linear import others_folder, walk_folder
from m3rec_spark.tables import Workspace, arrow_schema

Pair = tuple[str, str, str]  # market id, user id, item id
KEY = "test"


def publish(workspace: Workspace, name: str, rows: Iterable[Sequence[Any]]) -> None:
    schema = arrow_schema(name)
    columns = list(zip(*rows, strict=True)) or [[] for _ in schema]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    workspace.write_arrow(pa.table(arrays, schema=schema), name, KEY)


def publish_shop(root: Path, train: Iterable[Pair], held: Iterable[tuple[str, str, str, str]] = ()) -> Workspace:
    """markets, users, items, market_items, interactions, arrays. held: market id, user id, item id, half."""
    workspace = Workspace(root)
    train, held = list(train), list(held)
    known = {*train, *(row[:3] for row in held)}
    markets = sorted({m for m, _, _ in known})
    items = sorted({i for _, _, i in known})
    users = {m: sorted({u for n, u, _ in known if n == m}) for m in markets}
    own = {m: sorted({i for n, _, i in known if n == m}) for m in markets}
    sold = Counter((m, i) for m, _, i in train)
    in_markets = Counter(i for _, i in sold)

    def indices(m: str, u: str, i: str) -> tuple[int, int, int]:
        return markets.index(m), users[m].index(u), items.index(i)

    publish(workspace, "items", [(k, i, in_markets[i]) for k, i in enumerate(items)])
    publish(workspace, "users", [(k, j, u) for k, m in enumerate(markets) for j, u in enumerate(users[m])])
    publish(
        workspace,
        "market_items",
        [
            (k, items.index(i), local, sold[m, i], in_markets[i])
            for k, m in enumerate(markets)
            for local, i in enumerate(own[m])
        ],
    )
    rows = [(*indices(*pair), None, "train") for pair in train]
    rows += [(*indices(m, u, i), None, half) for m, u, i, half in held]
    publish(workspace, "interactions", rows)
    halves = Counter((row[0], row[4]) for row in rows)
    publish(
        workspace,
        "markets",
        [
            (
                k,
                m,
                len(users[m]),
                len(own[m]),
                halves[k, "train"],
                *(halves[k, s] for s in ("train", "valid", "test")),
                0,
            )
            for k, m in enumerate(markets)
        ],
    )
    with workspace.publishing("arrays", KEY) as folder:
        save_arrays(build_arrays(workspace), folder)
    return workspace


def publish_random_shop(root: Path, seed: int = 0) -> Workspace:
    """Markets b (40 users), a (13) and ü (2) over 30 items; one of a user's items is held out; one is cold."""
    rng = np.random.default_rng(seed)
    train: list[Pair] = []
    held: list[tuple[str, str, str, str]] = []
    for market, n_users, first, last in (("b", 40, 0, 25), ("a", 13, 15, 30), ("ü", 2, 20, 30)):
        for user in range(n_users):
            *bought, kept = (f"i {i}" for i in first + rng.permutation(last - first)[: rng.integers(2, 8)])
            train += [(market, f"u{user}", item) for item in bought]
            held.append((market, f"u{user}", kept, "valid" if rng.random() < 0.5 else "test"))
    held[0] = (*held[0][:2], "never sold", held[0][3])
    return publish_shop(root, train, held)


def publish_ease(workspace: Workspace, weights: np.ndarray) -> str:
    """B of all items, in two files a market. Returns the folder."""
    arrays = open_arrays(workspace.folder("arrays"))
    with workspace.publishing("ease", KEY) as folder:
        for market in range(arrays.n_markets):
            items = arrays.slot_items[arrays.market_slots(market)]
            block = weights[np.ix_(items, items)].astype(np.float32)
            place = folder / f"market-{market:05d}"
            place.mkdir()
            for first, last in ((0, len(block) // 2), (len(block) // 2, len(block))):
                if first < last:
                    np.save(place / f"rows-{first:09d}.npy", block[first:last])
    return str(workspace.folder("ease"))


def publish_linear(workspace: Workspace, models: dict[float, np.ndarray], walks: np.ndarray | None = None) -> str:
    """Linear models of the markets' own: B of all items by the weight of the other markets. Returns the folder."""
    arrays = open_arrays(workspace.folder("arrays"))
    with workspace.publishing("linear", KEY, extra={"others": list(models), "walks": walks is not None}) as folder:
        places = [(others_folder(folder, number), weights) for number, weights in enumerate(models.values())]
        for place, weights in [*places, *([(walk_folder(folder), walks)] if walks is not None else [])]:
            place.mkdir()
            for market in range(arrays.n_markets):
                items = arrays.slot_items[arrays.market_slots(market)]
                block = sp.csr_matrix(weights[np.ix_(items, items)].astype(np.float32))
                sp.save_npz(place / f"market-{market:05d}.npz", block)
    return str(workspace.folder("linear"))


def publish_model(workspace: Workspace, arrays: MarketArrays, dimension: int = 5, seed: int = 0) -> str:
    """Random vectors; a third of the items has no history vector. Returns the folder."""
    rng = np.random.default_rng(seed)
    slots = len(arrays.slot_items)
    weights = (rng.random(slots) < 0.67).astype(np.float32)
    files = {
        "item_vectors": rng.normal(size=(slots, dimension)),
        "history_vectors": rng.normal(size=(slots, dimension)) * weights[:, None],
        "history_weights": weights,
        "user_vectors": 0.1 * rng.normal(size=(arrays.n_rows, dimension)),
    }
    with workspace.publishing("model", KEY) as folder:
        for name, array in files.items():
            np.save(folder / f"{name}.npy", array.astype(np.float32))
    return str(workspace.folder("model"))


def publish_served(root: Path, seed: int = 0, own: bool = False) -> Workspace:
    """All that serves, random; markets 0 and 1 have a share of EASE, item 3 has no vector.

    own: the model brings linear models of the markets' own instead of a share of EASE.
    """
    workspace = publish_random_shop(root)
    arrays, rng = open_arrays(workspace.folder("arrays")), np.random.default_rng(seed)
    n = arrays.n_items
    publish_ease(workspace, rng.normal(size=(n, n)) * (1 - np.eye(n)))
    folder = publish_model(workspace, arrays, seed=seed)
    with workspace.publishing("model", KEY) as new:
        for file in Path(folder).iterdir():
            np.save(new / file.name, np.load(file))
        np.save(new / "ease_weights.npy", np.array([0.4, 0.1, 0.0], np.float32))
        if own:
            (new / LINEAR).mkdir()
            for market, size in enumerate(np.diff(arrays.slot_offsets)[:2]):
                B = sp.random(size, size, 0.3, "csr", np.float32, random_state=seed)
                sp.save_npz(new / LINEAR / f"market-{market:05d}.npz", B)
    similarity = rng.random((n, n)) * (rng.random((n, n)) < 0.3)
    cells = zip(*(axis.tolist() for axis in np.nonzero(similarity)), strict=True)
    publish(workspace, "similarity", [(a, b, similarity[a, b] / similarity[a].sum()) for a, b in cells])
    publish(workspace, "item_vectors", [(item, rng.normal(size=5).tolist()) for item in range(n) if item != 3])
    return workspace
