"""Skip-gram: from walks in memory to item vectors.

gensim: Word2Vec on the same walks, with its default of windows that shrink at random (a pair g steps apart is then
trained with probability (window - g + 1) / window: in ours it weighs that) and without. Both make the same number
of passes over the same pairs, without smoothing, with a learning rate that falls to its end over the run, and end on a
plateau of the AUC. One run of gensim, which has nothing to warm up; several of ours.
extra: pairs a second of both, and AUC on held-out pairs after each epoch with the seconds it took.

smoothing: V = B V0 + V0 against V = V0, of ours, in the batches of the config's defaults; B from EASE of the same data.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from harness import BENCH, Rep, arguments, compare, law, peer_process
from scipy import sparse

from m3rec_spark.config import SkipGram
from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.similarity import ease
from m3rec_spark.similarity.b_glob import filter_rows, normalise_rows
from m3rec_spark.similarity.probe import Probe, held_out_pairs
from m3rec_spark.similarity.skipgram import fit_item_vectors
from m3rec_spark.similarity.walk_graph import build_graph
from m3rec_spark.similarity.walks import walk

LENGTH, SEED = 40, 1
PLAIN = {"batch_walks": 128, "learning_rate": 0.02}  # without smoothing a step is cheap, and more of them learn more
QUICK = {"items": 3_000, "users": 1_500, "per_item": 8, "epochs": 4, "smooth_items": 8_000, "smooth_users": 4_000}
FULL = {"items": 12_000, "users": 6_000, "per_item": 10, "epochs": 5, "smooth_items": 12_000, "smooth_users": 6_000}


def main() -> None:
    if "--laws" in sys.argv:
        laws()
        return
    sizes = arguments(__doc__, QUICK, FULL)
    shop = Shop(sizes.items, sizes.users, sizes.per_item)
    for shrink in (True, False) if sizes.full else (True,):
        bench_gensim(shop, sizes.epochs, shrink)
    bench_smoothing(Shop(sizes.smooth_items, sizes.smooth_users, per_item=4))


@dataclass
class Shop:
    """Walks over five markets, a pair of every user held out."""

    items: int
    users: int
    per_item: int

    @cached_property
    def split(self) -> tuple[MarketArrays, np.ndarray]:
        """The train histories, and the held-out slot of every row."""
        return hold_out(generate_arrays(5, self.users, self.items // 10, self.items // 2, 10.0, self.items // 50, SEED))

    @cached_property
    def degrees(self) -> np.ndarray:
        return self.graph.degrees()

    @cached_property
    def graph(self) -> Any:
        train, _ = self.split
        return build_graph(train.indptr, train.items, train.n_items)

    @cached_property
    def walks(self) -> np.ndarray:
        starts = np.flatnonzero(self.degrees).repeat(self.per_item)
        numbers = np.tile(np.arange(self.per_item), len(starts) // self.per_item)
        return walk(self.graph, starts.astype(np.int32), numbers, LENGTH, SEED)

    @cached_property
    def probe(self) -> Probe:
        train, slots = self.split
        return held_out_pairs(train, np.arange(train.n_rows), slots, self.degrees > 0, at_most=10**4, seed=SEED)

    @cached_property
    def similarity(self) -> sparse.csr_matrix:
        """B-Glob at the config's defaults."""
        train, _ = self.split
        X = sparse.csr_matrix((np.ones(len(train.slots)), train.items, train.indptr), (train.n_rows, train.n_items))
        weights = ease.solve(np.asfortranarray((X.T @ X).toarray()), 30.0)
        return normalise_rows(filter_rows(weights, 0.01))

    def fit(self, similarity: sparse.csr_matrix | None, **changed: Any) -> np.ndarray:
        settings = SkipGram().model_dump(exclude={"smooth"}) | changed
        return fit_item_vectors(self.walks, similarity, self.degrees, **settings)


def hold_out(arrays: MarketArrays) -> tuple[MarketArrays, np.ndarray]:
    """One random pair of every row out of its history: (the rest, the slots)."""
    lengths = np.diff(arrays.indptr)
    held = arrays.indptr[:-1] + (np.random.default_rng(SEED).random(len(lengths)) * lengths).astype(np.int64)
    kept = np.delete(arrays.slots, held)
    counts = np.bincount(kept, minlength=len(arrays.slot_items)).astype(np.int32)
    indptr = arrays.indptr - np.arange(len(arrays.indptr))
    train = MarketArrays(
        indptr, kept, arrays.user_offsets, arrays.slot_items, arrays.slot_offsets, counts, arrays.n_items
    )
    return train, arrays.slots[held]


def bench_gensim(shop: Shop, epochs: int, shrink: bool) -> None:
    settings = SkipGram()
    once: list[Rep] = []
    with tempfile.TemporaryDirectory(dir=_bench_folder()) as place:
        folder = Path(place)
        np.save(folder / "walks.npy", shop.walks)
        given = {name: getattr(settings, name) for name in ("dimension", "window", "negatives")}
        given |= {"folder": place, "n_items": len(shop.degrees), "shrink": shrink, "epochs": epochs}
        with peer_process("gensim_skipgram", **given) as gensim:

            def theirs() -> Rep:
                if not once:
                    once.append(gensim())
                    aucs = [shop.probe.auc(np.load(folder / f"epoch-{e}.npy")) for e in range(epochs)]
                    once[0].result["auc"] = [round(auc, 4) for auc in aucs]
                return once[0]

            def ours() -> list[float]:
                start, seconds = time.perf_counter(), []
                tell = lambda *_: seconds.append(time.perf_counter() - start)  # noqa: E731
                shop.fit(None, epochs=epochs, shrink_window=shrink, on_epoch=tell, **PLAIN)
                return seconds

            def extra(seconds: list[float], peer: dict[str, Any]) -> dict[str, Any]:
                return figures(shop, epochs, shrink, seconds, peer)

            name = f"gensim, {'shrinking' if shrink else 'full'} windows"
            size = f"n={len(shop.degrees)} tokens={shop.walks.size} epochs={epochs}"
            row = compare("skipgram", name, size, ours, theirs, budget_s=25, extra=extra)
            print(f"{row.peer}: {row.extra}", flush=True)


def figures(shop: Shop, epochs: int, shrink: bool, seconds: list[float], peer: dict[str, Any]) -> dict[str, Any]:
    """Pairs a second and AUC of both. The same seed gives the same vectors again, this time with the probe."""
    aucs: list[float] = []
    tell = lambda _, __, auc: aucs.append(round(auc, 4))  # noqa: E731
    shop.fit(None, epochs=epochs, shrink_window=shrink, probe=shop.probe, on_epoch=tell, **PLAIN)
    theirs, pairs = peer["epoch_seconds"], epochs * len(shop.walks) * pairs_of_walk(shrink)
    reached = [second for second, auc in zip(seconds, aucs, strict=True) if auc >= max(peer["auc"])]
    return {
        "pairs": round(pairs), "pairs_per_s_ours": round(pairs / seconds[-1]),
        "pairs_per_s_peer": round(pairs / theirs[-1]), "auc_ours": aucs, "auc_peer": peer["auc"],
        "epoch_s_ours": np.round(seconds, 2).tolist(), "epoch_s_peer": np.round(theirs, 2).tolist(),
        "s_to_best_auc_of_peer": round(reached[0], 2) if reached else None, **PLAIN,
    }  # fmt: skip


def pairs_of_walk(shrink: bool) -> float:
    """Positive pairs of a walk; with shrinking windows their expected number, the sum of our weights."""
    window = SkipGram().window
    return sum(2 * (LENGTH - gap) * ((window - gap + 1) / window if shrink else 1) for gap in range(1, window + 1))


def bench_smoothing(shop: Shop) -> None:
    def overhead(*_: Any) -> dict[str, Any]:
        return {"entries": shop.similarity.nnz, "batch_walks": SkipGram().batch_walks}

    size = f"n={len(shop.degrees)} nnz={shop.similarity.nnz} tokens={shop.walks.size}"
    row = compare(
        "skipgram", "itself without smoothing", size, lambda: _last(shop.fit(shop.similarity, epochs=1)),
        lambda: _last(shop.fit(None, epochs=1)), budget_s=20, extra=overhead,
    )  # fmt: skip
    print(f"smoothing takes {row.ours_s / row.peer_s:.2f} times the time without", flush=True)


def laws() -> None:
    """Time over tokens, dimensions, shared negatives, and the entries of B."""
    shop = Shop(4_000, 2_000, per_item=16)
    tokens, dimensions, shared, entries = [], [], [], []
    whole = shop.walks
    for share in (8, 4, 2, 1):
        shop.walks = whole[::share]
        tokens.append((shop.walks.size, _seconds(shop)))
    shop.walks = whole[::4]
    for dimension in (32, 64, 128, 256):
        dimensions.append((dimension, _seconds(shop, dimension=dimension)))
    for count in (128, 256, 512, 1024, 2048):
        shared.append((count, _seconds(shop, shared=count)))
    law("skipgram", "tokens", "tokens", tokens)
    law("skipgram", "dimensions", "d", dimensions)
    law("skipgram", "shared negatives", "K", shared)
    plain = _seconds(shop)
    for share in (8, 4, 2, 1):
        similarity = shop.similarity.copy()
        similarity.data[np.random.default_rng(0).random(similarity.nnz) >= 1 / share] = 0
        similarity.eliminate_zeros()
        entries.append((similarity.nnz, max(_seconds(shop, similarity) - plain, 1e-3)))
    law("skipgram", "smoothing", "entries of B", entries, "seconds more than without")


def _seconds(shop: Shop, similarity: sparse.csr_matrix | None = None, **changed: Any) -> float:
    """Of the fastest of three epochs."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        shop.fit(similarity, epochs=1, **changed)
        found.append(time.perf_counter() - start)
    return min(found)


def _last(vectors: np.ndarray) -> float:
    return float(vectors[-1, -1])


def _bench_folder() -> Path:
    BENCH.mkdir(parents=True, exist_ok=True)
    return BENCH


if __name__ == "__main__":
    main()
