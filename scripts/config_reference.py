"""docs/configuration.md from the schema: every section and key with its type, default and meaning.

python scripts/config_reference.py > docs/configuration.md
"""

from __future__ import annotations

import ast
import inspect
import itertools
from typing import Any

from m3rec_spark import config

HEAD = """# Configuration

Every key, generated from the schema (`python scripts/config_reference.py`); a test holds that it is up to date. Keys go
into a YAML file (`--config`) or on the command line (`train.epochs=5`); unknown ones are refused. `conf/base.yaml` has
them all with their defaults, `m3rec run --print-config` prints the resolved ones.
"""


def main() -> None:
    print(reference(), end="")


def reference() -> str:
    parts = [HEAD]
    for name, field in config.Config.model_fields.items():
        section: Any = field.annotation
        parts.append(f"\n## {name}\n\n{inspect.cleandoc(section.__doc__ or '')}\n")
        parts.append("| key | type | default | |\n|---|---|---|---|")
        parts += rows(section)
    return "\n".join(parts) + "\n"


def rows(section: Any, prefix: str = "") -> list[str]:
    """A line a key; those of a section within one too."""
    told, lines = meanings(section), []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, config.Section):
            lines += rows(field.annotation, f"{prefix}{name}.")
            continue
        kind = ast.unparse(annotations(section)[name]).replace("|", "\\|")
        default = str(field.default).replace("|", "\\|").replace("None", "null") or "''"
        lines.append(
            f"| `{prefix}{name}` | `{kind}` | `{default}` | {told.get(name, '').replace('|', chr(92) + '|')} |"
        )
    return lines


def annotations(section: Any) -> dict[str, ast.expr]:
    body = ast.parse(inspect.getsource(section)).body[0].body  # type: ignore[attr-defined]
    return {node.target.id: node.annotation for node in body if isinstance(node, ast.AnnAssign)}


def meanings(section: Any) -> dict[str, str]:
    """Key -> the text that stands below it in the code."""
    body = ast.parse(inspect.getsource(section)).body[0].body  # type: ignore[attr-defined]
    found = {}
    for node, below in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[node.target.id] = " ".join(str(below.value.value).split())
    return found


if __name__ == "__main__":
    main()
