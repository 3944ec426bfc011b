"""Tables 2, 3 and 4 of the paper: every system trained, tuned on the validation half, and ranked on the test half.

A run is (system, settings, seed); its folder is named by all that it follows from, and is whole or absent: an
interrupted comparison goes on with the run that was cut, and one with other settings keeps what they do not touch.
Trials are runs with the first seed and less time: a chosen one that did not need it is not trained again, and a system
with one setting needs no trial. Nothing of the test half is ranked before all settings are chosen.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3rec_spark.config import SystemName, digest, provenance
from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.errors import DivergedError, M3RecError
from m3rec_spark.evaluation.comparison import seeded_name
from m3rec_spark.evaluation.validation import market_ndcg, validation_sample
from m3rec_spark.stages.bench import JUDGED, Bench, Settings
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.systems import SYSTEMS, System
from m3rec_spark.stages.train import choose_device

log = logging.getLogger(__name__)

_RESULT = "result.json"


@dataclass(frozen=True)
class Run:
    """A trained system."""

    system: str
    settings: Settings
    seed: int
    folder: Path
    result: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        """Whether its training diverged."""
        return "failed" in self.result

    @property
    def name(self) -> str:
        """As the column `model` of its ranks has it."""
        return seeded_name(self.system, self.seed)


def make_runs(
    context: Context, bench: Bench, folder: Path, grids: Mapping[SystemName, Sequence[Settings]]
) -> tuple[list[Run], list[dict[str, Any]]]:
    """Trains what is not trained yet: the runs of the chosen settings, and a record of all trials and all failures."""
    settings = context.config.compare
    trial, final = (dataclasses.replace(bench, seconds=s) for s in (settings.trial_seconds, settings.run_seconds))
    runs: list[Run] = []
    trials: list[Run] = []
    for name, grid in grids.items():
        tried = [train_run(trial if len(grid) > 1 else final, folder, name, given, settings.seed) for given in grid]
        chosen = select(tried)
        if SYSTEMS[name].by_market and len(grid) > 1:
            chosen = select_by_market(bench, folder, tried)
        count = settings.seeds_of.get(name, settings.seeds) if SYSTEMS[name].seeded else 1
        seeds = [settings.seed + number for number in range(count)]
        if chosen.result.get("stopped_by") != "seconds":  # it ended by itself: more time gives the same
            runs.append(chosen)
            seeds = seeds[1:]
        more = [train_run(final, folder, name, chosen.settings, seed) for seed in seeds]
        trials += [*tried, *(run for run in more if run.failed)]
        runs += [run for run in more if not run.failed]
    return runs, [{"model": run.system, "settings": dict(run.settings), **run.result} for run in trials]


def select(runs: Sequence[Run]) -> Run:
    """The run with the best NDCG@10 on the validation half, the first on a tie.

    Raises:
        M3RecError: all have failed.
    """
    whole = [run for run in runs if not run.failed]
    if not whole:
        tried = "; ".join(f"{dict(run.settings)}: {run.result['failed']}" for run in runs)
        raise M3RecError(
            f"no settings of {runs[0].system} can be trained: {tried}. Give it others in "
            f"compare.settings.{runs[0].system}, or leave it out of compare.models"
        )
    return max(whole, key=lambda run: run.result[JUDGED])


def select_by_market(bench: Bench, folder: Path, runs: Sequence[Run]) -> Run:
    """A run that has for every market the files of the run that is best there on the validation half (`select`).

    A market without validation users takes the run that is best in the mean.
    """
    best, by_market = select(runs), {}
    for market in range(bench.arrays.n_markets):
        judged = [run for run in runs if str(market) in run.result["by_market"]]
        by_market[market] = max(judged, key=lambda run: run.result["by_market"][str(market)], default=best)
    place = folder / f"{best.system}-{digest([run.folder.name for run in by_market.values()])[:12]}"
    if not _result(place):
        part = place.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        found: dict[str, float] = {}
        for market, run in by_market.items():
            for file in run.folder.glob(f"market-{market:05d}*"):
                copy = shutil.copytree if file.is_dir() else shutil.copy
                copy(file, part / file.name)
            found |= {key: run.result["by_market"][key] for key in {str(market)} & set(run.result["by_market"])}
        seconds = round(sum(run.result["seconds"] for run in runs), 2)
        mean = float(np.mean(list(found.values())))
        (part / _RESULT).write_text(
            json.dumps({"seed": best.seed, "seconds": seconds, JUDGED: mean, "by_market": found}), encoding="utf-8"
        )
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    settings = {bench.market_ids[market]: dict(run.settings) for market, run in by_market.items()}
    return Run(best.system, settings, best.seed, place, _result(place))


def train_run(bench: Bench, folder: Path, name: str, settings: Settings, seed: int) -> Run:
    """A run out of its folder, or trained now for bench.seconds at most."""
    system, given = SYSTEMS[name], bench.config.compare
    judged = given.model_dump(include={"validation_users", "seed"})
    known = {
        "seconds": bench.seconds, "epochs": given.epochs, "patience": given.patience,
        "device": bench.device.type, "feed": bench.config.train.feed,
    }  # fmt: skip
    followed = {name: known[name] for name in system.follows}
    read = {section: provenance(bench.config, section) for section in system.reads}
    key = digest(bench.data_key, name, system.version, dict(settings), seed, judged, followed, read)
    place = folder / f"{name}-{key[:12]}"
    if result := _result(place):
        log.info("%s %s seed %d: kept from before", name, dict(settings), seed)
    else:
        _train(bench, system, name, settings, seed, place)
        result = _result(place)
    return Run(name, settings, seed, place, result)


def _result(place: Path) -> dict[str, Any]:
    """Of a finished run; empty where there is none, or none that can be read."""
    try:
        result: dict[str, Any] = json.loads((place / _RESULT).read_text(encoding="utf-8"))
        return result
    except FileNotFoundError:
        return {}
    except ValueError as error:
        log.warning("%s is damaged (%s): this run is done again", place / _RESULT, error)
        return {}


def _train(bench: Bench, system: System, name: str, settings: Settings, seed: int, place: Path) -> None:
    part = place.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    start = time.perf_counter()
    try:
        facts = system.train(bench, settings, seed, part)
        seconds = time.perf_counter() - start
        if JUDGED not in facts:
            by_market = market_ndcg(system.scorer(bench, part, name), bench.arrays, bench.sample)
            facts |= {JUDGED: float(np.mean(list(by_market.values()))), "by_market": by_market}
        result, found = {"seed": seed, "seconds": round(seconds, 2), **facts}, facts[JUDGED]
        log.info("%s %s seed %d: validation NDCG@10 %.4f (%.0f s)", name, dict(settings), seed, found, seconds)
    except DivergedError as error:  # it would diverge again: kept, so that the others go on without it
        failed = str(error).partition(":")[0]
        result = {"seed": seed, "failed": failed, "seconds": round(time.perf_counter() - start, 2)}
        log.warning("%s %s seed %d: %s; it is left out", name, dict(settings), seed, failed)
    (part / _RESULT).write_text(json.dumps(result), encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    part.rename(place)


def bench_of(context: Context) -> Bench:
    """What the systems are trained on, out of the workspace."""
    settings, workspace = context.config.compare, context.workspace
    markets = workspace.read_arrow("markets", ["market", "market_id"]).to_pydict()
    return Bench(
        context.config,
        workspace,
        workspace.key("arrays"),
        open_arrays(workspace.folder("arrays")),
        validation_sample(workspace.folder("candidates"), settings.validation_users, settings.seed),
        dict(zip(markets["market"], markets["market_id"], strict=True)),
        choose_device(context.config.train.device),
    )
