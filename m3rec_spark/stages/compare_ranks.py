"""What the runs of a comparison are ranked on, and their ranks: kept in the workspace, checked before they are used.

A folder counts as whole if Spark has finished it and its files have the rows that it should have; candidate lists also
if their digest is the one that they were frozen with. What is not whole is made again.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from m3rec_spark.config import digest
from m3rec_spark.errors import M3RecError
from m3rec_spark.evaluation.candidates import Seen, freeze_candidates
from m3rec_spark.evaluation.contract import make_contract
from m3rec_spark.evaluation.ranks import LIST_RANKS, rank_lists
from m3rec_spark.schema import CANDIDATES
from m3rec_spark.stages.bench import Bench
from m3rec_spark.stages.compare_runs import Run
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.systems import SYSTEMS

log = logging.getLogger(__name__)

_RANKS = "ranks"
_SEAL = "_contract"  # hidden from Spark: the SHA-256 of the candidate lists beside it


def rank_runs(
    context: Context, bench: Bench, runs: Sequence[Run], listed: Sequence[tuple[DataFrame, Mapping[str, Any]]]
) -> DataFrame:
    """RANKS of the test half under every contract (LIST_RANKS), for every run; what is ranked already is kept.

    A user's lists stand side by side, so that a network scores his market once for all contracts. The users are spread
    over the tasks: one of a large market costs several of a small one.

    Raises:
        M3RecError: no run is left, as all have diverged.
    """
    if not runs:
        raise M3RecError("every run diverged, so there is nothing to rank: give other settings in compare.settings")
    spark, arrays, frames = context.spark(), context.workspace.folder("arrays"), []
    of_test = [lists.filter("half = 'test'").withColumn("seen", F.lit(c["seen"])) for lists, c in listed]
    tasks, key = int(spark.conf.get("spark.sql.shuffle.partitions") or 1), digest([c["sha256"] for _, c in listed])
    spread = functools.reduce(DataFrame.unionByName, of_test).repartition(tasks, "market", "user")
    users = sum(contract["counts"]["test"] for _, contract in listed)
    lists = spread.sortWithinPartitions("market", "user").cache()
    for run in runs:
        place = run.folder / _RANKS / key[:12]
        if _rows(place) != users:
            start = time.perf_counter()
            scorer = SYSTEMS[run.system].scorer(bench, run.folder, run.name)
            frame = rank_lists(lists, [scorer], arrays, context.config.evaluate.block)
            frame.write.mode("overwrite").parquet(str(place))
            log.info("%s: ranked (%.0f s)", run.name, time.perf_counter() - start)
        frames.append(str(place))
    lists.unpersist()
    return spark.read.schema(LIST_RANKS).parquet(*frames)


def _rows(place: Path) -> int:
    """Of a folder of Parquet files that Spark has finished; -1 where it has not, or a file is damaged."""
    try:
        finished = (place / "_SUCCESS").is_file()
        return sum(pq.read_metadata(file).num_rows for file in place.glob("*.parquet")) if finished else -1
    except (OSError, pa.ArrowException) as error:
        log.warning("%s is damaged (%s): made again", place, error)
        return -1


def contracts(context: Context, folder: Path) -> list[tuple[DataFrame, dict[str, Any]]]:
    """The workspace's frozen candidates, and those of the other contract (seen items in, or out), made once."""
    spark, workspace = context.spark(), context.workspace
    own = workspace.facts("candidates")["contract"]
    seen: Seen = "included" if own["seen"] == "excluded" else "excluded"
    place, settings = folder / f"candidates-{seen}-{workspace.key('candidates')[:12]}", context.config.candidates
    ids = {name: workspace.read(spark, name) for name in ("markets", "users", "items")}

    def frozen() -> tuple[DataFrame, dict[str, Any]]:
        lists = spark.read.schema(CANDIDATES).parquet(str(place))
        return lists, make_contract(lists, **ids, negatives=settings.negatives, seen=seen, seed=settings.seed)

    seal = place / _SEAL
    other = frozen() if _rows(place) > 0 else None
    if other and not (seal.is_file() and seal.read_text(encoding="utf-8") == other[1]["sha256"]):
        other = None
    if not other and place.exists():
        log.warning("the candidate lists in %s are not those that were frozen there: made again", place)
    if not other:
        frame = freeze_candidates(spark, workspace, workspace.folder("arrays"), settings.negatives, seen, settings.seed)
        frame.filter(F.size("negatives") > 0).write.mode("overwrite").parquet(str(place))
        other = frozen()
        seal.write_text(other[1]["sha256"], encoding="utf-8")
    found = [(workspace.read(spark, "candidates"), dict(own)), other]
    return sorted(found, key=lambda pair: str(pair[1]["name"]), reverse=True)  # standard, paper-like
