"""Every system of the paper's Table 2: its title, the settings to try, how it is trained and how it ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3rec_spark.ranking.scorers import Scorer
from m3rec_spark.stages import closed_forms, recipes
from m3rec_spark.stages.bench import Bench, Facts, Settings

Recipe = Callable[[Bench, Settings, int, Path], Facts]


@dataclass(frozen=True)
class System:
    """A row of Table 2."""

    title: str
    family: str
    """Mix: trained on the merged data; Multi: a part per market."""
    grid: tuple[Settings, ...]
    """Settings to try, the first ones first; the validation half chooses."""
    train: Recipe
    """(bench, settings, seed, empty folder) -> what is to be reported."""
    scorer: Callable[[Bench, Path, str], Scorer]
    seeded: bool = True
    """Whether another seed gives another model."""
    reads: tuple[str, ...] = ()
    """Sections of the config that its training follows from, beside those of prepare and compare."""
    section: str | None = None
    """The section of the config whose keys its settings are; None: they are the keys of the grid."""
    held: frozenset[str] = frozenset()
    """Keys of that section that are the comparison's."""
    follows: tuple[str, ...] = ()
    """What else its training follows from: the comparison's seconds (and so the device), epochs, patience; the feed."""
    above_0: frozenset[str] = frozenset()
    """Those of its settings that 0 makes senseless."""
    by_market: bool = False
    """Whether every market takes the settings that are best for it: the folder has files of each market's own."""
    version: int = 1
    """One more when its code gives something else: runs of before are no longer taken for its own."""


_NETWORK = ("seconds", "device", "epochs", "patience", "feed")
_RATES = frozenset({"learning_rate"})
_ALL = ("gram", "ease", "linear", "walks", "skipgram", "train")
_RIDGES = tuple({"lambda_f": float(value)} for value in (30, 20, 50, 10, 100))
_SPARSE = tuple({"l1": l1, "l2": l2} for l1, l2 in ((1.0, 30.0), (0.5, 30.0), (2.0, 30.0), (1.0, 60.0), (0.5, 10.0)))
_OWN = tuple({"l1": l1, "l2": l2} for l1, l2 in ((1.0, 15.0), (1.0, 30.0), (2.0, 15.0), (0.5, 15.0), (2.0, 30.0)))
_PAIR: Settings = {
    "dimension": 64, "widths": [128, 64], "dropout": 0.3, "negatives": 4, "learning_rate": 0.003, "batch_size": 1024,
}  # fmt: skip
_GRAPH: Settings = {
    "dimension": 128, "layers": 2, "l2": 1e-4, "negatives": 4, "learning_rate": 0.005, "batch_size": 4096,
}  # fmt: skip


# Section 4.1.4; the depth of a graph network is chosen from 1, 2, 3 there
_PAPER_PAIR: Settings = {
    "dimension": 128, "widths": [256, 512, 1024, 128], "negatives": 10, "learning_rate": 0.001, "batch_size": 1024,
}  # fmt: skip
_PAPER_GRAPH: Settings = {"layers": 3, "negatives": 10, "learning_rate": 0.001, "batch_size": 1024}


def _around(first: Settings, *changes: Settings) -> tuple[Settings, ...]:
    return (first, *({**first, **change} for change in changes))


def _network(title: str, family: str, name: str, version: int = 2, **more: Any) -> System:
    changes: list[Settings] = [
        {"dimension": 128, "widths": [256, 128]}, {"negatives": 10}, {"learning_rate": 0.001}, _PAPER_PAIR
    ]  # fmt: skip
    grid, train = _around({**_PAIR, **more}, *changes), recipes.train_module(name)
    return System(title, family, grid, train, recipes.module_scorer, follows=_NETWORK, above_0=_RATES, version=version)


def _graph(title: str, family: str, name: str, last: Settings, version: int = 2, **more: Any) -> System:
    grid = _around({**_GRAPH, **more}, {"layers": 3}, {"learning_rate": 0.02}, last, _PAPER_GRAPH)
    return System(
        title, family, grid, recipes.train_module(name), recipes.dot_scorer,
        follows=_NETWORK, above_0=_RATES, version=version,
    )  # fmt: skip


def _m3rec(title: str, **changes: Any) -> System:
    return System(
        title, "Multi", (changes,), recipes.train_m3rec, recipes.m3rec_scorer,
        reads=_ALL, section="train", held=frozenset({"seed", *changes}), follows=("seconds", "device"), version=2,
    )  # fmt: skip


def _ablation(title: str, **changes: Any) -> System:
    """Has no clock: it must not be behind the complete model for want of time."""
    return dataclasses.replace(_m3rec(title, **changes), train=recipes.train_m3rec_to_the_end, follows=("device",))


def _closed(title: str, grid: tuple[Settings, ...], train: Recipe) -> System:
    ridges = frozenset({"lambda_f", "l2"})
    return System(title, "Mix", grid, train, recipes.ease_scorer, seeded=False, reads=("gram",), above_0=ridges)


def _closed_by_market(title: str, grid: tuple[Settings, ...], train: Recipe) -> System:
    return dataclasses.replace(_closed(title, grid, train), family="Multi", by_market=True, version=2)


_WALKS = _around(
    {"epochs": 4, "batch_walks": 128, "learning_rate": 0.02, "window": 2},
    {"epochs": 8},
    {"window": 1},
    {"window": 5},
    {"window": 10},  # the paper's
)
_PAPER: Settings = {
    "loss": "margin", "gamma": 0.2, "negatives": 10, "lambda_loca": 1e-7, "ease_weights": (),
    "learning_rate": 0.001, "batch_size": 1024, "dropout": 0.3, "epochs": 100,
}  # fmt: skip
SYSTEMS: dict[str, System] = {
    "popularity": System(
        "Popularity", "Multi", ({},), recipes.train_popularity, recipes.popularity_scorer, seeded=False
    ),
    "neumf": _network("NeuMF", "Mix", "neumf", version=3),
    "lightgcn": _graph("LightGCN", "Mix", "lightgcn", {"negatives": 16}),
    "random_walk": System(
        "Random Walk",
        "Mix",
        _WALKS,
        recipes.train_random_walk,
        recipes.cosine_scorer,
        reads=("walks", "skipgram"),
        section="skipgram",
        held=frozenset({"seed", "smooth"}),
    ),
    "slim": _closed("SLIM", _SPARSE, closed_forms.train_slim),
    "slim_per_market": _closed_by_market("SLIM per market", _OWN, closed_forms.train_slim_per_market),
    "ease": _closed("EASE^R", _RIDGES, closed_forms.train_ease),
    "ease_per_market": _closed_by_market("EASE^R per market", _RIDGES, closed_forms.train_ease_per_market),
    "cross_stitch": _network("Cross-Stitch", "Multi", "cross_stitch"),
    "mmoe": _network("MMoE", "Multi", "mmoe", experts=4),
    "bitgcf": _graph("Bi-TGCF", "Multi", "bitgcf", {"keep": 0.5}, version=4, keep=0.8),
    "star": _network("STAR", "Multi", "star"),
    "forec": _network("FOREC", "Multi", "forec", version=5, inner_rate=0.01),
    "m3rec": _m3rec("M3Rec"),
    "m3rec_without_intra": _ablation("M3Rec w/o intra-market similarity", intra=False),
    "m3rec_without_inter": _ablation("M3Rec w/o inter-market similarity", inter=False),
    "m3rec_without_both": _ablation("M3Rec w/o both", intra=False, inter=False),
    "m3rec_paper": dataclasses.replace(
        _m3rec("M3Rec, the paper's loss and settings", loss="margin", ease_weights=()),
        grid=_around(_PAPER, {"gamma": 0.1}, {"gamma": 0.3}, {"gamma": 0.4}, {"learning_rate": 0.01}),
    ),
}
