"""The documents as a site: they build without a warning, and what is generated is up to date."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-f",
        str(ROOT / "mkdocs.yml"),
        "-d",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    assert "Recommender" in (tmp_path / "api" / "index.html").read_text(encoding="utf-8")


def test_the_configuration_reference_is_that_of_the_schema() -> None:
    reference = runpy.run_path(str(ROOT / "scripts" / "config_reference.py"))["reference"]()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference


def test_every_decision_is_listed() -> None:
    listed = (ROOT / "docs" / "decisions" / "index.md").read_text(encoding="utf-8")
    assert all(f"({file.name})" in listed for file in (ROOT / "docs" / "decisions").glob("0*.md"))
