"""What can be held of the bundle and of MLproject without a Databricks workspace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from m3rec_spark.cli import _parse
from m3rec_spark.config import load

ROOT = Path(__file__).parents[1]
BUNDLE: dict[str, Any] = yaml.safe_load((ROOT / "databricks.yml").read_text(encoding="utf-8"))
TASKS = {task["task_key"]: task for task in BUNDLE["resources"]["jobs"]["m3rec"]["tasks"]}
PROJECT: dict[str, Any] = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TASKS)
def test_the_bundle_runs_commands_that_exist(name: str) -> None:
    task = TASKS[name]["python_wheel_task"]
    assert (task["package_name"], task["entry_point"]) == ("m3rec_spark", "m3rec")
    arguments, overrides = _parse(task["parameters"])
    assert arguments.command == name
    assert arguments.workspace.startswith("/Volumes/")
    load(ROOT / "conf" / "databricks.yaml", overrides)
    assert all(after["task_key"] in TASKS for after in TASKS[name].get("depends_on", []))


def test_every_stage_is_a_task() -> None:
    assert set(TASKS) == {"prepare", "pretrain", "train", "evaluate", "promote", "recommend"}
    assert set(BUNDLE["targets"]) == {"dev", "prod"}
    named = set(re.findall(r"\$\{var\.(\w+)\}", (ROOT / "databricks.yml").read_text(encoding="utf-8")))
    assert named == set(BUNDLE["variables"])


@pytest.mark.parametrize("name", PROJECT["entry_points"])
def test_entry_points_are_commands(name: str) -> None:
    entry = PROJECT["entry_points"][name]
    filled = entry["command"].format(**{key: value["default"] for key, value in entry["parameters"].items()})
    arguments, _ = _parse(filled.split()[1:])
    assert arguments.command == {"main": "run"}.get(name, name)
    assert (ROOT / arguments.config).is_file()
    assert (ROOT / PROJECT["python_env"]).is_file()
