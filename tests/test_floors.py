"""The architecture, held by reading the code: imports point to lower floors, heavy libraries have one door each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "m3rec_spark"
FLOORS = {
    "errors": 0, "schema": 0, "compiled": 0, "widgets": 0, "paths": 1, "config": 1, "tables": 2, "data": 3,
    "similarity": 4,
    "models": 5, "training": 6, "ranking": 7, "evaluation": 8, "tracking": 9, "stages": 10, "doctor": 11,
    "serving_commands": 11, "cli": 12,
}  # fmt: skip
DOORS = {
    "mlflow": "tracking/",
    "petastorm": "training/feed.py",
    "pydantic": "config.py",
    "yaml": "config.py",
    "numba": "compiled.py",
}
CONFIG_READERS = {"stages", "doctor", "serving_commands", "cli"}  # everything else takes plain values


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(dotted module imported, whether at module level) of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or "", id(node) in top
            if node.module == "m3rec_spark":
                yield from ((f"m3rec_spark.{alias.name}", id(node) in top) for alias in node.names)


def place(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


FILES = [f for f in sorted(ROOT.rglob("*.py")) if place(f) != "__init__.py"]


def floor(dotted: str) -> int:
    return FLOORS[dotted.split(".")[1]]


@pytest.mark.parametrize("file", FILES, ids=place)
def test_imports_point_down(file: Path) -> None:
    own = place(file).removesuffix(".py").split("/")[0]
    for module, _ in imports(file):
        if module.startswith("m3rec_spark.") and module.split(".")[1] in FLOORS:
            other = module.split(".")[1]
            same_folder = other == own  # inside a folder modules may build on each other
            assert same_folder or FLOORS[other] < FLOORS[own], f"{place(file)} must not import {module}"
            assert other != "config" or own in CONFIG_READERS, f"{place(file)} takes plain values, not the config"


@pytest.mark.parametrize("file", FILES, ids=place)
def test_heavy_libraries_have_one_door(file: Path) -> None:
    for module, _ in imports(file):
        door = DOORS.get(module.split(".")[0])
        assert door is None or place(file).startswith(door), f"{place(file)} imports {module}: its door is {door}"


@pytest.mark.parametrize("file", FILES, ids=place)
def test_no_rdd_and_no_hidden_session(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"rdd", "sparkContext", "_jvm", "_jdf"}, f"{place(file)}:{node.lineno} {node.attr}"


def test_every_module_is_on_a_floor() -> None:
    assert FILES
    assert {place(f).removesuffix(".py").split("/")[0] for f in FILES} <= set(FLOORS)
