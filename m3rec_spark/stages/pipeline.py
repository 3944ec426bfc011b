"""Runs stages in order: skips what is fresh, refuses what stands on missing or stale tables, tracks what runs.

The key of a stage is the digest of its settings and of the key of the stage before it; the first one's is that of the
source's content. So "fresh" means: the published tables are exactly what the present config and source would give.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from m3rec_spark.config import Config, digest, flatten, provenance
from m3rec_spark.errors import CorruptTableError, DataError, MissingTableError
from m3rec_spark.paths import write_atomically
from m3rec_spark.schema import SCHEMA_VERSION, STAGES, TABLES
from m3rec_spark.stages import evaluate, prepare, pretrain, train
from m3rec_spark.stages.context import Context, spark_session
from m3rec_spark.stages.prepare import source_digest
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.runs import Tracker, pipeline_run

log = logging.getLogger(__name__)

Result = TypeVar("Result")
RUN: dict[str, Callable[[Context], None]] = {
    "prepare": prepare.run,
    "pretrain": pretrain.run,
    "train": train.run,
    "evaluate": evaluate.run,
}
_SOURCE = "source.json"  # digest of the source as prepare read it


def run_stages(
    stages: Sequence[str], config: Config, workspace: Workspace, force: bool = False, resume: bool = False
) -> None:
    """Runs the stages in the order given, each unless its tables are fresh.

    Args:
        stages: names out of schema.STAGES, in their order.
        config: of the run.
        workspace: where the tables are.
        force: run even what is fresh.
        resume: let train go on from its last checkpoint.

    Raises:
        MissingTableError: a table of an earlier stage is missing or stale; names the stage to run.
    """
    if "prepare" in stages:
        prepare.refuse_workspace(config, workspace.root)
    workspace.require_writable()
    keys = stage_keys(config, _source_digest(config, workspace, reads_source="prepare" in stages))
    todo: list[str] = []
    for stage in stages:
        if not force and not todo and _is_fresh(stage, workspace, keys):
            log.info("%s: fresh, skipped (--force runs it)", stage)
        else:
            _say_why(stage, workspace, keys)
            todo.append(stage)
    if not todo:
        return
    for stage in STAGES[: STAGES.index(todo[0])]:
        require_fresh(stage, workspace, keys[stage])
    name = f"m3rec {stages[0] if len(stages) == 1 else 'run'}"
    if not config.tracking.enabled:
        _run_all(todo, config, workspace, keys, Tracker(), resume, force)
        return
    with pipeline_run(config.tracking.uri, config.tracking.experiment, name, workspace.root) as tracker:
        tracker.params(dict(flatten(config)))
        tracker.json(config.model_dump(mode="json"), "config.json")
        _run_all(todo, config, workspace, keys, tracker, resume, force)


def plan_pretrain(config: Config, workspace: Workspace) -> str:
    """What pretrain would do on this workspace: solvers with time and memory, bytes of the other steps.

    Raises:
        MissingTableError: prepare has not run.
        CapacityError: it would be refused.
    """
    keys = stage_keys(config, _source_digest(config, workspace, reads_source=False))
    require_fresh("prepare", workspace, keys["prepare"])
    return pretrain.plan(Context(config, workspace, Tracker(), keys["pretrain"]))


def after(stage: str, name: str, config: Config, workspace: Workspace, action: Callable[[Context], Result]) -> Result:
    """Does something with what a stage has published, in a tracked run of its own; the context has the stage's key.

    Raises:
        MissingTableError: the stage, or one before it, has not run on this config and source.
    """
    workspace.require_writable()
    keys = stage_keys(config, _source_digest(config, workspace, reads_source=False))
    for earlier in STAGES[: STAGES.index(stage) + 1]:
        require_fresh(earlier, workspace, keys[earlier])
    if not config.tracking.enabled:
        return action(Context(config, workspace, Tracker(), keys[stage]))
    with pipeline_run(config.tracking.uri, config.tracking.experiment, f"m3rec {name}", workspace.root) as tracker:
        tracker.params(dict(flatten(config)))
        return action(Context(config, workspace, tracker, keys[stage]))


def stage_keys(config: Config, source: str) -> dict[str, str]:
    """The provenance key of each stage under this config, for a source with this digest."""
    layout = config.source.model_dump(mode="json", exclude={"path", "holdout", "markets", "holdouts"})
    markets = [sorted(config.source.markets), sorted(config.source.holdouts)]
    settings = {
        "prepare": (SCHEMA_VERSION, source, layout, markets, config.clean, config.split, config.candidates),
        "pretrain": tuple(provenance(config, name) for name in ("gram", "ease", "linear", "walks", "skipgram")),
        "train": (provenance(config, "train"),),
        "evaluate": (config.evaluate,),
    }
    keys: dict[str, str] = {}
    key = ""
    for stage in STAGES:
        key = digest(stage, key, *settings[stage])
        keys[stage] = key
    return keys


def require_fresh(stage: str, workspace: Workspace, key: str) -> None:
    """Raises MissingTableError or CorruptTableError, naming the stage to run, unless all its tables are fresh."""
    for table in _tables_of(stage):
        state = workspace.state(table, key)
        if state == "missing":
            raise MissingTableError(f"table '{table}' is missing in {workspace.root}: run `m3rec {stage}` first")
        if state == "stale":
            raise MissingTableError(
                f"table '{table}' in {workspace.root} is stale: the config or the source changed since it was written. "
                f"Run `m3rec {stage}`, or go back to the config it was written with"
            )
        if state == "corrupt":
            raise CorruptTableError(f"table '{table}' in {workspace.root} is damaged: run `m3rec {stage} --force`")


def _run_all(
    stages: Sequence[str],
    config: Config,
    workspace: Workspace,
    keys: dict[str, str],
    tracker: Tracker,
    resume: bool,
    force: bool,
) -> None:
    workspace.clear_scratch()
    for stage in stages:
        log.info("%s: starts", stage)
        start = time.perf_counter()
        with tracker.child(stage) as child:
            child.params(dict(flatten(config)))
            RUN[stage](Context(config, workspace, child, keys[stage], resume, force))
            seconds = time.perf_counter() - start
            child.metrics({"seconds": seconds})
        log.info("%s: done in %.1f s", stage, seconds)


def _is_fresh(stage: str, workspace: Workspace, keys: dict[str, str]) -> bool:
    if stage == "evaluate" and evaluate.read_report(workspace, keys[stage]) is None:
        return False
    return all(workspace.state(table, keys[stage]) == "fresh" for table in _tables_of(stage))


def _say_why(stage: str, workspace: Workspace, keys: dict[str, str]) -> None:
    states = {table: workspace.state(table, keys[stage]) for table in _tables_of(stage)}
    damaged = [table for table, state in states.items() if state == "corrupt"]
    if damaged:
        log.warning("%s: made anew, as %s is damaged", stage, ", ".join(damaged))
    elif "stale" in states.values():
        log.info("%s: made anew, as the config or the source changed", stage)


def _tables_of(stage: str) -> list[str]:
    return [name for name, table in TABLES.items() if table.stage == stage]


def _source_digest(config: Config, workspace: Workspace, reads_source: bool) -> str:
    """The digest of the source now; for later stages what prepare read, where the source is no longer there."""
    memory = workspace.root / _SOURCE
    try:
        found = source_digest(config, lambda: spark_session(config.spark))
    except DataError:
        if reads_source or not memory.is_file():
            raise
        log.warning("the source cannot be read any more; going by what prepare read")
        return str(json.loads(memory.read_text(encoding="utf-8"))["digest"])
    if reads_source:
        write_atomically(memory, json.dumps({"digest": found}).encode())
    return found
