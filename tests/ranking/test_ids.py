from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from m3rec_spark.errors import CorruptTableError
from m3rec_spark.ranking.ids import open_ids, save_ids

SORTED = sorted(["a", "b", "é", "Z", "日本", "a b", "𝄞", "｡"], key=str.encode)


def test_both_ways(tmp_path: Path) -> None:
    save_ids(tmp_path / "ids.arrow", pa.array(SORTED))
    ids = open_ids(tmp_path / "ids.arrow")
    assert list(ids) == SORTED
    assert [ids[k] for k in range(len(ids))] == SORTED
    assert [ids.find(one) for one in SORTED] == list(range(len(SORTED)))
    assert [ids.find(one) for one in ("", "A", "c", "zz", "\U0010ffff")] == [None] * 5
    part = ids.part(2, 5)
    assert [part.find(one) for one in SORTED] == [None, None, 0, 1, 2, None, None, None]


def test_none_and_damage(tmp_path: Path) -> None:
    save_ids(tmp_path / "none.arrow", pa.array([], pa.string()))
    assert len(open_ids(tmp_path / "none.arrow")) == 0
    assert open_ids(tmp_path / "none.arrow").find("a") is None
    (tmp_path / "cut.arrow").write_bytes((tmp_path / "none.arrow").read_bytes()[:20])
    for name in ("cut.arrow", "absent.arrow"):
        with pytest.raises(CorruptTableError, match=name):
            open_ids(tmp_path / name)
