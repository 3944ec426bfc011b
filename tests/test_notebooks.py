"""The notebooks, executed: all cells top to bottom, on a small generated shop.

One after the other in a process of their own, with one Spark for all as on a cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
SMALL = "demo.scale=0.03 skipgram.dimension=16 skipgram.epochs=1 train.epochs=2 spark.master=local[2]"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks") / "demo"


IN_TURN = """
import runpy, sys
for notebook in sys.argv[1:]:
    runpy.run_path(notebook, run_name="__main__")
    print("%% the next one", flush=True)
"""


def run(notebooks: list[Path], workspace: Path) -> list[str]:
    """What each prints."""
    environment = os.environ | {
        "M3REC_WORKSPACE": str(workspace),
        "M3REC_SETTINGS": SMALL,
        "M3REC_CONFIG": str(ROOT / "conf" / "demo.yaml"),
    }
    command = [sys.executable, "-c", IN_TURN, *map(str, notebooks)]
    done = subprocess.run(command, env=environment, cwd=workspace.parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    *texts, end = done.stdout.split("%% the next one\n")
    assert end == ""
    return texts


@pytest.mark.spark
@pytest.mark.slow
def test_all_run_in_order(workspace: Path) -> None:
    """One test, as each stands on the workspace of the first."""
    quick, similar, compared, served = run(NOTEBOOKS, workspace)
    assert "NDCG@10" in quick
    assert "popularity" in quick
    assert "items like" in similar
    assert (workspace / "reports" / "shared_items.png").stat().st_size > 5_000
    assert "margin loss (eq. 12)" in compared
    assert "serves" in served
    assert "known" in served
    assert "the user's own part" in served
    assert (workspace / "recommendations").is_dir()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_databricks_source_and_call_the_library(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    assert text.startswith("# Databricks notebook source\n# MAGIC %md\n")
    assert text.count("# COMMAND ----------") >= 3
    assert "def " not in text
    assert "class " not in text
    assert 'parameter("workspace"' in text


def test_widgets_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from m3rec_spark.widgets import parameter

    class Widgets:
        """As dbutils.widgets: a text widget keeps the value that the user gave it."""

        def __init__(self) -> None:
            self.values = {"item": "I000007"}

        def text(self, name: str, default: str) -> None:
            self.values.setdefault(name, default)

        def get(self, name: str) -> str:
            return self.values[name]

    class Utilities:
        widgets = Widgets()

    monkeypatch.setenv("M3REC_WORKSPACE", "from the environment")
    assert parameter("workspace", "default") == "from the environment"
    monkeypatch.setattr(sys.modules["__main__"], "dbutils", Utilities(), raising=False)
    assert parameter("workspace", "default") == "default"
    assert parameter("item", "x") == "I000007"
