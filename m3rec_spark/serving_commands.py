"""The commands that use a trained model: recommend, explain, register, promote. They print, the stages do."""

from __future__ import annotations

import argparse

from m3rec_spark.config import Config
from m3rec_spark.errors import UsageError
from m3rec_spark.evaluation.gate import Verdict
from m3rec_spark.stages import explain, recommend, register
from m3rec_spark.stages.pipeline import after
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.registry import Registry
from m3rec_spark.tracking.runs import tracking_uri


def run_command(arguments: argparse.Namespace, config: Config, workspace: Workspace) -> int:
    """Runs one of them; 1 where a model was refused, else 0."""
    if arguments.command == "explain":
        wanted = (arguments.market, arguments.user, arguments.item)
        print(after("train", "explain", config, workspace, lambda context: explain.explain(context, *wanted)))
        return 0
    if arguments.command == "recommend":
        facts = after("train", "recommend", config, workspace, lambda context: recommend.run(context, arguments.users))
        for market, counts in facts["markets"].items():
            print(f"market {market}: {counts['rows']:,} items for {counts['users']:,} users")
        table = recommend.TABLE if arguments.users is None else recommend.TABLE_OF_LIST
        print(f"table:   {table} in {workspace.root}, now {workspace.folder(table)}")
        return 0
    if not config.tracking.enabled:
        raise UsageError(f"m3rec {arguments.command} needs MLflow: set tracking.enabled=true")
    uri = tracking_uri(config.tracking.uri, workspace.root)
    registry = Registry.open(config.registry.name, uri, config.registry.uri)
    if arguments.command == "register":
        version = after("evaluate", "register", config, workspace, lambda context: register.register(context, registry))
        print(f"version {version.version} of '{registry.name}' in {uri}, alias challenger")
        return 0
    if arguments.rollback:
        before, now = registry.rollback()
        print(f"'{registry.name}': version {now} serves again in the place of version {before}")
        return 0
    passed, compared = after(
        "evaluate", "promote", config, workspace,
        lambda context: register.promote(context, registry, arguments.dry_run),
    )  # fmt: skip
    print(_told(registry.name, passed, compared, arguments.dry_run))
    return 0 if passed else 1


def _told(name: str, passed: bool, compared: list[Verdict], dry_run: bool) -> str:
    lines = [f"{'market':<12}{'champion':>10}{'challenger':>12}   NDCG@10, test half"] if compared else []
    for one in compared:
        mark = "" if one.passed else "   refused"
        lines.append(f"{one.market:<12}{100 * one.champion:>10.2f}{100 * one.challenger:>12.2f}{mark}")
    if not passed:
        end = f"'{name}': the champion stays"
    elif dry_run:
        end = f"'{name}': it would serve (dry run: registered as challenger, the champion was left as it is)"
    else:
        end = f"'{name}': the model of this workspace serves now (alias champion)"
    return "\n".join([*lines, end])
