from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_workspace import publish, publish_shop

from m3rec_spark.data.arrays import open_arrays, save_arrays
from m3rec_spark.data.build_arrays import build_arrays
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.tables import Workspace

# items: a 0, b 1, c 2, d 3.  M1: x has b, d; y has a, b.  M2: x has b, and d is known from the hold-out only.
TRAIN = [("M1", "y", "b"), ("M1", "x", "d"), ("M2", "x", "b"), ("M1", "x", "b"), ("M1", "y", "a")]
HELD = [("M2", "x", "d", "test"), ("M1", "y", "c", "valid")]


def shop(tmp_path: Path) -> Workspace:
    return publish_shop(tmp_path / "w", TRAIN, HELD)


def test_by_hand(tmp_path: Path) -> None:
    arrays = build_arrays(shop(tmp_path))
    assert arrays.user_offsets.tolist() == [0, 2, 3]
    assert arrays.slot_offsets.tolist() == [0, 4, 6]
    assert arrays.slot_items.tolist() == [0, 1, 2, 3, 1, 3]  # M1: a b c d, M2: b d
    assert arrays.slot_counts.tolist() == [1, 2, 0, 1, 1, 0]
    assert arrays.indptr.tolist() == [0, 2, 4, 5]
    assert arrays.slots.tolist() == [1, 3, 0, 1, 4]  # M1/x: b d, M1/y: a b, M2/x: b
    assert arrays.items.tolist() == [1, 3, 0, 1, 1]
    assert (arrays.n_markets, arrays.n_rows, arrays.n_items) == (2, 3, 4)
    assert [getattr(arrays, n).dtype for n in ("indptr", "slots", "slot_items")] == [np.int64, np.int32, np.int32]


def test_history(tmp_path: Path) -> None:
    arrays = build_arrays(shop(tmp_path))
    assert arrays.history(0).toarray().tolist() == [[0, 1, 0, 1], [1, 1, 0, 0]]
    assert arrays.history(1).toarray().tolist() == [[1, 0]]
    some = arrays.history(0, np.array([1, 0, 1], np.int32))
    assert some.dtype == np.float32
    assert some.toarray().tolist() == [[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0]]


def test_saved_arrays_are_mapped(tmp_path: Path) -> None:
    arrays = build_arrays(shop(tmp_path))
    save_arrays(arrays, tmp_path)
    opened = open_arrays(tmp_path)
    assert opened.n_items == arrays.n_items
    for name in ("indptr", "slots", "user_offsets", "slot_items", "slot_offsets", "slot_counts"):
        np.testing.assert_array_equal(getattr(opened, name), getattr(arrays, name))
        assert isinstance(getattr(opened, name).base, np.memmap)


names = st.sampled_from(["", "a", "B", "10", "9", "é"])


@given(st.sets(st.tuples(names, names, names), min_size=1))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arrays_hold_exactly_the_pairs(tmp_path_factory: pytest.TempPathFactory, pairs: set) -> None:
    workspace = publish_shop(tmp_path_factory.mktemp("w"), pairs)
    arrays = open_arrays(workspace.folder("arrays"))
    users = workspace.read_arrow("users").to_pylist()  # in the order of market and user: the rows
    items = workspace.read_arrow("items")["item_id"].to_pylist()
    markets = workspace.read_arrow("markets")["market_id"].to_pylist()
    found = [
        (markets[user["market"]], user["user_id"], items[arrays.slot_items[slot]])
        for row, user in enumerate(users)
        for slot in arrays.slots[arrays.indptr[row] : arrays.indptr[row + 1]]
    ]
    assert sorted(found) == sorted(pairs)


@pytest.mark.parametrize(
    ("table", "rows", "message"),
    [
        ("users", [(0, 0, "x"), (1, 0, "x")], "interactions.user"),  # M1/y is missing
        ("users", [(0, 0, "x"), (0, 1, "y"), (2, 0, "x")], "users.market"),
        ("interactions", [(0, 0, 1, None, "train")], "counts 5 train pairs"),
        ("interactions", [(0, 0, i, None, "train") for i in (0, 1, 2, 3)] * 2, "does not count"),
        ("interactions", [(0, 0, i, None, "train") for i in (0, 1, 1, 2, 3)], "repeats"),
        (
            "interactions",
            [(0, 0, i, None, "train") for i in (0, 1, 2, 3)] + [(1, 0, 0, None, "train")],
            "does not count",
        ),
        ("interactions", [(0, -1, 1, None, "train")], "interactions.user"),
        ("market_items", [(0, 1, 1, 5, 1), (0, 3, 0, 0, 1)], "ascending"),
        ("market_items", [(0, 1, 0, 5, 1), (0, 4, 1, 0, 1)], "market_items.item"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, table: str, rows: list, message: str) -> None:
    workspace = shop(tmp_path)
    publish(workspace, table, rows)
    with pytest.raises(CorruptTableError, match=message):
        build_arrays(workspace)


@pytest.mark.parametrize("harm", ["truncated", "absent", "other shape", "no header"])
def test_damaged_files(tmp_path: Path, harm: str) -> None:
    save_arrays(build_arrays(shop(tmp_path)), tmp_path)
    if harm == "truncated":
        (tmp_path / "slots.npy").write_bytes((tmp_path / "slots.npy").read_bytes()[:-4])
    elif harm == "absent":
        (tmp_path / "slots.npy").unlink()
    elif harm == "other shape":
        np.save(tmp_path / "slots.npy", np.zeros(3, np.int32))
    else:
        (tmp_path / "arrays.json").write_text("{}")
    with pytest.raises(CorruptTableError, match="rerun prepare"):
        open_arrays(tmp_path)
