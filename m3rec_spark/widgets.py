"""Parameters of a notebook: Databricks widgets where there are any, else the environment, else the default."""

from __future__ import annotations

import os
import sys


def parameter(name: str, default: str) -> str:
    """The value of the widget `name` (made if need be), or of M3REC_<NAME>, or the default.

    >>> parameter("no_such_parameter", "build/demo")
    'build/demo'
    """
    utilities = getattr(sys.modules["__main__"], "dbutils", None)  # a notebook's own namespace
    if utilities is None:
        return os.environ.get(f"M3REC_{name.upper()}", default)
    utilities.widgets.text(name, default)
    return str(utilities.widgets.get(name))
