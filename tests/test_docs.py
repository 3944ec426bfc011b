"""What the documents name exists, and nothing in the project points at one machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from m3rec_spark.schema import TABLES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NAMED = re.compile(r"`([\w/]+\.py): ([\w., ]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
TEXT = {".py", ".md", ".yaml", ".toml", ".txt", ".sh", ".cfg", ""}
SKIPPED = {
    ".git",
    ".venv",
    "build",
    "dist",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "__pycache__",
}


def names(file: Path) -> set[str]:
    """Functions and classes of a module, methods as Class.method."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def project_files() -> list[Path]:
    files = [path for path in ROOT.rglob("*") if not SKIPPED & set(path.relative_to(ROOT).parts) and path.is_file()]
    return [path for path in files if path.suffix in TEXT and not any(p.endswith(".egg-info") for p in path.parts)]


def columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_paper_map_names_what_exists() -> None:
    found = NAMED.findall((DOCS / "paper_map.md").read_text(encoding="utf-8"))
    assert len(found) > 30
    for file, listed in found:
        path = ROOT / ("tests" if "/test_" in file else "m3rec_spark") / file
        assert path.is_file(), f"{file} does not exist"
        for name in listed.split(", "):
            assert name in names(path), f"{file} has no {name}"


def test_paper_map_has_every_equation_with_code_and_test() -> None:
    rows = [columns(line) for line in (DOCS / "paper_map.md").read_text(encoding="utf-8").splitlines()]
    equations = {row[0]: row for row in rows if row[0].isdigit()}
    assert sorted(equations, key=int) == [str(number) for number in range(1, 14)]
    for number, row in equations.items():
        assert len(row) == 4
        assert "not implemented" in row[2] or (NAMED.search(row[2]) and "test_" in row[3]), f"eq. {number}"


@pytest.mark.parametrize("table", sorted(TABLES))
def test_data_model_has_every_table_with_its_columns(table: str) -> None:
    rows = [columns(line) for line in (DOCS / "data_model.md").read_text(encoding="utf-8").splitlines()]
    (row,) = (row for row in rows if row[0] == f"`{table}`")
    schema = TABLES[table].schema
    if schema is None:
        assert row[1] == TABLES[table].stage
    else:
        outside_brackets = re.sub(r"\([^)]*\)", "", row[2])
        assert re.findall(r"`(\w+)`", outside_brackets) == schema.fieldNames()


def test_links_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    assert len(documents) > 5
    for document in documents:
        for target in LINK.findall(document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} -> {target}"


def test_decisions_are_numbered_without_gaps() -> None:
    files = sorted((DOCS / "decisions").glob("0*.md"))
    assert [file.name[:4] for file in files] == [f"{number:03d}-" for number in range(1, len(files) + 1)]
    for file in files:
        assert file.read_text(encoding="utf-8").startswith(f"# {file.name[:3]} ")


def test_no_file_names_a_place_of_one_machine() -> None:
    files = project_files()
    assert len(files) > 50
    places = re.compile(
        "|".join([r"/ro" + "ot/", r"/wo" + "rk/", r"/ho" + r"me/\w", r"/Us" + "ers/", r"/tm" + r"p/\w"])
    )
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            assert not places.search(line), f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
