from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from m3rec_spark.compiled import compiled


def total(values: np.ndarray) -> float:
    result = 0.0
    for value in values:
        result += value
    return result


def test_compiled_code_computes_the_same() -> None:
    values = np.array([0.1, 0.2, 1e16, -1e16])
    assert compiled(total)(values) == total(values)  # in this order: fast-math would be free to sum otherwise


def test_nowhere_to_keep_compiled_code_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def no_locator(cache: bool = False, nogil: bool = False):
        if cache:
            raise RuntimeError("cannot cache function 'total': no locator available")
        return njit(nogil=nogil)

    monkeypatch.setattr(numba, "njit", no_locator)
    assert compiled(total)(np.array([1.0, 2.0])) == 3.0


def test_a_read_only_place_without_a_home(tmp_path: Path) -> None:
    """The real thing: a module that nobody may write beside, in a process whose caches cannot be made."""
    module = tmp_path / "frozen.py"
    module.write_text("from m3rec_spark.compiled import compiled\n@compiled\ndef one(x):\n    return x + 1\n")
    program = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"  # as where no folder is writable: root can write anywhere
        "import frozen; print(frozen.one(1))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout == "2\n", run.stderr
