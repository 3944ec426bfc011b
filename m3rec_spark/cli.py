"""The command line: `m3rec <stage> [--config FILE] [--workspace DIR] [section.key=value ...]`.

Exit codes: 0 done, 1 failure, 2 wrong usage or data that cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from m3rec_spark import __version__
from m3rec_spark.config import Config, SystemName, load, to_yaml
from m3rec_spark.errors import M3RecError, UsageError, did_you_mean
from m3rec_spark.paths import write_atomically
from m3rec_spark.schema import STAGES
from m3rec_spark.tables import Workspace

log = logging.getLogger("m3rec_spark")

_EXAMPLES = """examples:
  m3rec demo
  m3rec data xmarket --to data/xmarket
  m3rec run --config conf/xmarket.yaml --workspace build/xmarket source.path=data/xmarket
  m3rec train --config conf/xmarket.yaml --workspace build/xmarket train.loss=margin --resume
  spark-submit jobs/pretrain.py --config conf/xmarket.yaml --workspace build/xmarket
"""
_SERVING = {
    "recommend": "write the table of recommendations: for all users, or for those of a list",
    "explain": "say why an item is recommended to a user, and which markets' shoppers support it",
    "register": "pack the model into one artifact for all markets and register it (alias challenger)",
    "promote": "register, compare with the champion, test the artifact, and let it serve (alias champion)",
}
_QUICK = (
    "compare.models=[ease, random_walk, lightgcn, neumf, m3rec]",
    "compare.seeds=1",
    "compare.seeds_of={}",
    "compare.trials=1",
    "compare.run_seconds=120",
)
_NEXT = """next:    m3rec data xmarket --to data/xmarket    (the five real markets of the paper)
         m3rec run --config conf/xmarket.yaml --workspace build/xmarket source.path=data/xmarket
         m3rec demo {given}train.loss=margin             (the paper's own loss: only train and evaluate run again)"""


def entry() -> None:
    """Console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns its exit code."""
    try:
        arguments, overrides = _parse(argv)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    _configure_logging(arguments.quiet)
    try:
        return _run(arguments, overrides)
    except M3RecError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "interrupted: what is finished stays and is skipped when the same command is run again"
            + ("; a training goes on with --resume" if arguments.command in ("train", "run", "demo") else ""),
            file=sys.stderr,
        )
        return 130
    except Exception as error:  # the last door: no user should need to read a JVM stack trace
        return _unexpected(error, arguments)


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    # the commands import what they need: `m3rec --help` and `m3rec doctor` do not wait for torch and MLflow
    if arguments.command == "doctor":
        from m3rec_spark.doctor import report, run_checks

        checks = run_checks(arguments.workspace, load(arguments.config, overrides).tracking.uri)
        print(report(checks))
        return 1 if any(check.status == "fail" for check in checks) else 0
    if arguments.command == "data":
        from m3rec_spark.data.download import download_xmarket

        download_xmarket(Path(arguments.to))
        return 0
    if arguments.command == "compare":
        overrides = [*(_QUICK if arguments.quick else ()), *_models(arguments.models), *overrides]
    config = load(arguments.config, overrides)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return 0
    if arguments.command == "pretrain" and arguments.plan:
        from m3rec_spark.stages.pipeline import plan_pretrain

        print(plan_pretrain(config, Workspace(_workspace(arguments))))
        return 0
    if arguments.command == "compare":
        return _compare(config, Workspace(_workspace(arguments)))
    if arguments.command in _SERVING:
        from m3rec_spark.serving_commands import run_command

        return run_command(arguments, config, Workspace(_workspace(arguments)))
    _stages(arguments, config, Workspace(_workspace(arguments)))
    if arguments.command == "demo":
        print(_NEXT.format(given="".join(f"{override} " for override in overrides)))
    return 0


def _stages(arguments: argparse.Namespace, config: Config, workspace: Workspace) -> None:
    """Runs the command's stages; prints the table and the paths where they end with an evaluation."""
    from m3rec_spark.stages import evaluate
    from m3rec_spark.stages.pipeline import run_stages
    from m3rec_spark.tracking.runs import tracking_uri

    stages = STAGES if arguments.command in ("run", "demo") else (arguments.command,)
    run_stages(stages, config, workspace, force=arguments.force, resume=arguments.resume)
    if stages[-1] != "evaluate":
        return
    print((workspace.root / evaluate.TABLE).read_text(encoding="utf-8"))
    print(f"report:  {workspace.root / evaluate.REPORT}")
    if config.tracking.enabled:
        uri = tracking_uri(config.tracking.uri, workspace.root)
        print(f"MLflow:  {uri}    (look: mlflow ui --backend-store-uri {uri})")


def _models(names: str | None) -> list[str]:
    """--models a,b as an override. Raises: UsageError, for a name that is no system."""
    if names is None:
        return []
    systems = get_args(SystemName)
    for name in map(str.strip, names.split(",")):
        if name not in systems:
            raise UsageError(
                f"--models: '{name}' is no system.{did_you_mean(name, systems)} The systems: {', '.join(systems)}"
            )
    return [f"compare.models=[{names}]"]


def _compare(config: Config, workspace: Workspace) -> int:
    from m3rec_spark.stages import compare
    from m3rec_spark.stages.pipeline import after

    after("pretrain", "compare", config, workspace, compare.run)
    print((workspace.root / compare.TEXT).read_text(encoding="utf-8"))
    print(f"report:  {workspace.root / compare.REPORT}\npage:    {workspace.root / compare.PAGE}")
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="m3rec", description="Multi-market recommendation on Spark, torch and MLflow.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"m3rec_spark {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", help="YAML file; conf/base.yaml shows every key")
    common.add_argument("--workspace", help="folder of the run (default: build/<name of the config>)")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument("--quiet", action="store_true", help="warnings and errors only")
    running = argparse.ArgumentParser(add_help=False)
    running.add_argument("--force", action="store_true", help="run even what is fresh")
    running.add_argument("--resume", action="store_true", help="train: go on from the last checkpoint")
    running.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    described = {
        "prepare": "read, clean, index, split; freeze the candidate lists",
        "pretrain": "mine item similarity: Gram, EASE, walks, skip-gram",
        "train": "the market model, all markets together",
        "evaluate": "rank, and write reports/evaluate.json",
        "run": "all stages; what is fresh is skipped",
        "demo": "all stages on a generated five-market shop",
    }
    for name, text in described.items():
        command = commands.add_parser(name, parents=[common, running], help=text, description=text)
        if name == "pretrain":
            command.add_argument("--plan", action="store_true", help="print solver, time and memory, and stop")
    text = "Tables 2, 3 and 4: every system trained, tuned and ranked under both contracts; goes on where it was cut"
    command = commands.add_parser("compare", parents=[common], help=text, description=text)
    command.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    command.add_argument("--models", help="systems, separated by commas, instead of compare.models")
    command.add_argument(
        "--quick", action="store_true", help="one seed and no search: EASE, walks, LightGCN, NeuMF, M3Rec"
    )
    for name, text in _SERVING.items():
        command = commands.add_parser(name, parents=[common], help=text, description=text)
        command.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
        if name == "recommend":
            command.add_argument("--users", help="CSV (with a header) or Parquet of market and user_id; default: all")
        if name == "explain":
            for option in ("market", "user", "item"):
                command.add_argument(f"--{option}", required=True, help=f"id of the {option}")
        if name == "promote":
            command.add_argument("--dry-run", action="store_true", help="register and compare, but leave the champion")
            command.add_argument("--rollback", action="store_true", help="give the alias back to the version before")
    commands.add_parser("doctor", parents=[common], help="check versions, Java, write access, tracking")
    data = commands.add_parser("data", parents=[common], help="download public data")
    data.add_argument("name", choices=["xmarket"])
    data.add_argument("--to", required=True, help="folder to fill")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "demo" and arguments.config is None:
        arguments.config = str(Path(__file__).parent / "demo.yaml")
    for extra in rest:
        if extra.startswith("-") or "=" not in extra:
            known = [option for action in common._actions + running._actions for option in action.option_strings]
            raise UsageError(f"'{extra}' is no option and no section.key=value.{did_you_mean(extra, known)}")
    return arguments, rest


def _workspace(arguments: argparse.Namespace) -> str:
    return arguments.workspace or f"build/{Path(arguments.config).stem if arguments.config else 'm3rec'}"


def _configure_logging(quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False


def _unexpected(error: Exception, arguments: argparse.Namespace) -> int:
    text = traceback.format_exc()
    if arguments.debug:
        print(text, file=sys.stderr)
    path = Workspace(_workspace(arguments)).root / "reports" / "last_error.txt"
    try:
        write_atomically(path, text.encode())
        where = f"the traceback is in {path}"
    except OSError:
        where = "--debug shows the traceback"
    print(f"error: unexpected {type(error).__name__}: {_told(error)}; {where}", file=sys.stderr)
    return 1


def _told(error: Exception) -> str:
    """The line of an error that says something: a Python worker's own exception inside a JVM stack, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"^[\w.]*(Error|Exception): ", line)]
    return (raised or lines or [""])[-1 if raised else 0][:400]
