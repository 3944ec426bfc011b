"""Lists for all users: from arrays on disk to Parquet on disk, on Spark, the same factors on all sides, d = 128.

als: pyspark.ml's ALSModel.recommendForAllUsers in the same session, its result written as Parquet like ours.
implicit, faiss: their exact top-k in a process of its own, from memory to memory: no reading, no writing, no text ids.
    The part of ours that both have is in extra.

Ours leaves out what the user has bought, as implicit does; ALS and faiss do not. The lists of some users are compared
with implicit's: the same items up to scores within float32's rounding.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from m3rec_spark.data.arrays import MarketArrays, open_arrays, save_arrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.ranking.batch import Work, recommend_all
from m3rec_spark.ranking.block_lists import block_lists
from m3rec_spark.ranking.bundle import Places, open_places
from m3rec_spark.ranking.ids import save_ids
from m3rec_spark.ranking.pack import save_shoppers
from m3rec_spark.ranking.scorers import unit

DIMENSION, COMPARED = 128, 200
QUICK = {"users": 20_000, "items": 10_000, "als_users": 20_000, "lists": "10"}
FULL = {"users": 100_000, "items": 20_000, "als_users": 20_000, "lists": "10,100"}


def main() -> None:
    harness.BENCH.mkdir(parents=True, exist_ok=True)
    spark = harness.local_spark()
    with tempfile.TemporaryDirectory(dir=harness.BENCH) as folder:
        if "--laws" in sys.argv:
            laws(spark, Path(folder))
            return
        sizes = harness.arguments(__doc__, QUICK, FULL)
        shop = Shop(Path(folder) / "shop", sizes.users, sizes.items)
        for k in map(int, sizes.lists.split(",")):
            for library in ("implicit", "faiss") if sizes.full else ("faiss",):
                against_library(spark, shop, library, k)
        against_als(spark, Shop(Path(folder) / "small", sizes.als_users, sizes.items), 10)
    spark.stop()


class Shop:
    """One market with random vectors, laid out as the batch reads it."""

    def __init__(self, folder: Path, users: int, items: int) -> None:
        self.folder, self.target = folder, folder / "lists"
        arrays, rng = generate_arrays(1, users, items, 0, history=20.0, groups=60, seed=0), np.random.default_rng(0)
        self.places = Places.under(folder)
        for place in vars(self.places).values():
            Path(place).mkdir(parents=True)
        save_arrays(arrays, folder / "arrays")
        save_shoppers(arrays, folder / "shoppers")
        vectors = {"item_vectors": items, "history_vectors": items, "user_vectors": users}
        for name, rows in vectors.items():
            np.save(folder / "model" / f"{name}.npy", rng.normal(size=(rows, DIMENSION)).astype(np.float32))
        np.save(folder / "model" / "history_weights.npy", np.ones(items, np.float32))
        world = {"item_vectors": np.zeros((items, DIMENSION), np.float32), "data": np.empty(0, np.float32),
                 "indices": np.empty(0, np.int32), "indptr": np.zeros(items + 1, np.int32)}  # fmt: skip
        for name, array in world.items():
            np.save(folder / "world" / f"{name}.npy", array)
        for name, size in (("markets", 1), ("users", users), ("items", items)):
            save_ids(folder / "ids" / f"{name}.arrow", pa.array([f"{name[0]}{number:09d}" for number in range(size)]))
        self.served = open_places(self.places)

    @property
    def arrays(self) -> MarketArrays:
        return open_arrays(self.folder / "arrays")

    @property
    def size(self) -> str:
        return f"users={self.arrays.n_rows} items={self.arrays.n_items} d={DIMENSION}"

    def factors(self) -> None:
        """The same factors as .npy, for the peers."""
        users = np.arange(self.arrays.n_rows, dtype=np.int32)
        cosine = self.served.scorer.cosine
        np.save(self.folder / "user_factors.npy", unit(cosine.vectors(self.arrays, 0, users)).astype(np.float32))
        np.save(self.folder / "item_factors.npy", cosine.unit_items_in_single(self.arrays, 0))
        sparse.save_npz(self.folder / "seen.npz", self.arrays.history(0))

    def run(self, spark: Any, k: int) -> int:
        shutil.rmtree(self.target, ignore_errors=True)
        written = recommend_all(spark, Work(self.places, str(self.target), k), harness.THREADS)
        return sum(counts.rows for counts in written.values())


def against_library(spark: Any, shop: Shop, library: str, k: int) -> None:
    shop.factors()

    def check(_: int, theirs: list[list[int]]) -> None:
        if library == "implicit":
            users = np.arange(COMPARED, dtype=np.int32)
            lists = block_lists(shop.served.scorer, shop.arrays, 0, users, k)
            same = np.mean(lists.items.reshape(COMPARED, k) == np.array(theirs))
            assert same > 0.999, f"{same:.4f} of the items are implicit's"

    def kernel(*_: Any) -> dict[str, float]:
        users = np.arange(shop.arrays.n_rows, dtype=np.int32)
        start = time.perf_counter()
        for first in range(0, len(users), 1024):
            block_lists(shop.served.scorer, shop.arrays, 0, users[first : first + 1024], k)
        return {"kernel_s": round(time.perf_counter() - start, 2)}

    given = {"folder": str(shop.folder), "k": k, "threads": harness.THREADS, "library": library, "compared": COMPARED}
    with harness.peer_process("topk", **given) as theirs:
        harness.compare(
            "recommend", f"{library} top-k", f"{shop.size} k={k}", lambda: shop.run(spark, k), theirs, check,
            budget_s=30, extra=kernel,
        )  # fmt: skip


def against_als(spark: Any, shop: Shop, k: int) -> None:
    shop.factors()
    model = als_model(spark, shop.folder)
    out = shop.folder / "als"

    def theirs() -> int:
        shutil.rmtree(out, ignore_errors=True)
        model.recommendForAllUsers(k).write.parquet(str(out))
        return 0

    harness.compare(
        "recommend", "ALSModel.recommendForAllUsers", f"{shop.size} k={k}", lambda: shop.run(spark, k), theirs,
        budget_s=30,
    )  # fmt: skip


def als_model(spark: Any, folder: Path) -> Any:
    """An ALSModel with these factors, as its own reader loads it from disk."""
    from pyspark.ml.recommendation import ALSModel

    place = folder / "als-model"
    for name in ("user", "item"):
        factors = np.load(folder / f"{name}_factors.npy")
        (place / f"{name}Factors").mkdir(parents=True)
        features = pa.FixedSizeListArray.from_arrays(pa.array(factors.ravel()), DIMENSION).cast(pa.list_(pa.float32()))
        table = pa.table({"id": pa.array(np.arange(len(factors), dtype=np.int32)), "features": features})
        pq.write_table(table, place / f"{name}Factors" / "part-0.parquet", row_group_size=4096)
    (place / "metadata").mkdir()
    described = {
        "class": "org.apache.spark.ml.recommendation.ALSModel", "timestamp": 0, "sparkVersion": spark.version,
        "uid": "ALSModel_of_the_benchmark", "paramMap": {}, "rank": DIMENSION,
        "defaultParamMap": {"userCol": "user", "itemCol": "item", "predictionCol": "prediction", "blockSize": 4096,
                            "coldStartStrategy": "nan"},
    }  # fmt: skip
    (place / "metadata" / "part-00000").write_text(json.dumps(described) + "\n")
    return ALSModel.load(str(place))


def laws(spark: Any, folder: Path) -> None:
    """Time over users, over items and over k; memory over users."""
    points: dict[str, list[tuple[float, float]]] = {"users": [], "items": [], "k": []}
    for users in (10_000, 20_000, 40_000, 80_000):
        points["users"].append((users, seconds(Shop(folder / f"u{users}", users, 5_000), spark, 10)))
    for items in (2_500, 5_000, 10_000, 20_000):
        points["items"].append((items, seconds(Shop(folder / f"i{items}", 20_000, items), spark, 10)))
    shop = Shop(folder / "k", 20_000, 5_000)
    for k in (10, 20, 50, 100, 200):
        points["k"].append((k, seconds(shop, spark, k)))
    for name, found in points.items():
        harness.law("recommend", name, name, found)


def seconds(shop: Shop, spark: Any, k: int) -> float:
    """Of the faster of two runs."""
    return min(_seconds(lambda: shop.run(spark, k)) for _ in range(2))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
