from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rec_spark.errors import CapacityError, CorruptTableError, DataError
from m3rec_spark.similarity.walk_graph import (
    WalkGraph,
    _require_63_bits,
    build_graph,
    graph_bytes,
    item_weights,
    open_graph,
    plan,
    save_graph,
)

HISTORIES = [[0, 1, 2], [1, 2], [2, 3], [4], [0, 2, 3, 6]]  # item 4 only with itself, 5 with nobody
N_ITEMS = 7


def graph(histories: list[list[int]], n_items: int, self_loops: bool = False) -> WalkGraph:
    indptr = np.cumsum([0, *map(len, histories)])
    items = np.array([item for history in histories for item in history], np.int32)
    return build_graph(indptr, items, n_items, self_loops)


def line(made: WalkGraph, item: int) -> list[tuple[int, int]]:
    """(end of the stretch, user) of every entry of an item."""
    first, last = made.rows["first"][item : item + 2]
    return [(int(e) >> made.user_bits, int(e) & (2**made.user_bits - 1)) for e in made.entries[first:last]]


def test_by_hand() -> None:
    """Users of item 0: 0 and 4, with 2 and 3 other items; of item 3: 2 and 4, with 1 and 3; of item 4: 3, with none."""
    made = graph(HISTORIES, N_ITEMS)
    assert made.n_items == N_ITEMS
    assert made.user_bits == 3
    assert line(made, 0) == [(2, 0), (5, 4)]
    assert line(made, 3) == [(1, 2), (4, 4)]
    assert line(made, 4) == [(0, 3)]
    assert line(made, 5) == []
    assert made.degrees().tolist() == [5, 3, 2 + 1 + 1 + 3, 4, 0, 0, 3]
    looped = graph(HISTORIES, N_ITEMS, self_loops=True)
    assert line(looped, 4) == [(1, 3)]
    assert looped.degrees().tolist() == [7, 5, 3 + 2 + 2 + 4, 6, 1, 0, 4]


def test_guide_by_hand() -> None:
    """Item 2's line [0, 7) is cut in four buckets at 1.75, 3.5, 5.25; the stretches end at 2, 3, 4 and 7."""
    made = graph(HISTORIES, N_ITEMS)
    first = made.rows["first"][2]
    assert [end for end, _ in line(made, 2)] == [2, 3, 4, 7]
    assert made.guide[first : first + 4].tolist() == [0, 1, 3, 3]  # points 0 1, 2 3, 4 5, 6: of 4 on, entry 3


@given(st.lists(st.sets(st.integers(0, 9)), min_size=1, max_size=15), st.booleans())
@settings(deadline=None)
def test_the_guide_leads_to_every_point(histories: list[set[int]], self_loops: bool) -> None:
    made = graph([sorted(history) for history in histories], 10, self_loops)
    for item in range(10):
        stretches = line(made, item)
        row = made.rows[item]
        owners = [k for k, (end, _) in enumerate(stretches) for _ in range(end - ([0] + [e for e, _ in stretches])[k])]
        assert len(owners) == row["weight"] == row["total"]
        for point, owner in enumerate(owners):
            begin = made.guide[row["first"] + int(point * row["scale"])]
            assert begin <= owner
            assert all(stretches[k][0] <= point for k in range(begin, owner))


def test_a_part_of_the_users() -> None:
    """Users 2 to 4 after users 0 and 1: the same line, cut."""
    made = graph(HISTORIES, N_ITEMS)
    before = np.array([2, 3, 3, 0, 0, 0, 0])
    part = build_graph(
        np.array([0, 2, 3, 7]), np.array([2, 3, 4, 0, 2, 3, 6], np.int32), N_ITEMS, before=before, total=made.degrees()
    )
    np.testing.assert_array_equal(part.degrees(), made.degrees())
    np.testing.assert_array_equal(part.rows["before"][:-1], before)
    assert line(part, 2) == [(4 - 3, 0), (7 - 3, 2)]
    np.testing.assert_array_equal(
        item_weights(part.indptr, part.items, N_ITEMS, self_loops=False), made.degrees() - before
    )


def test_saved_graph_is_mapped(tmp_path: Path) -> None:
    made = graph(HISTORIES, N_ITEMS, self_loops=True)
    save_graph(made, tmp_path)
    save_graph(made, tmp_path)  # a task that is run again
    opened = open_graph(tmp_path)
    for name in WalkGraph._fields:
        np.testing.assert_array_equal(getattr(opened, name), getattr(made, name))
        owner = getattr(opened, name)
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, mmap.mmap)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.npy" for name in WalkGraph._fields)
    stored = sum(array.nbytes for array in made)
    assert 0 <= stored - graph_bytes(13 - 1, N_ITEMS, 5) < 64  # a sentinel each of rows and indptr, one flag


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptTableError, match="run the stage again"):
        open_graph(tmp_path)
    save_graph(graph(HISTORIES, N_ITEMS), tmp_path)
    np.save(tmp_path / "guide.npy", np.zeros(3, np.int32))
    with pytest.raises(CorruptTableError, match="does not fit together"):
        open_graph(tmp_path)


def test_entries_that_overflow_are_refused() -> None:
    _require_63_bits(2**20 - 1, 2**43 - 1)
    with pytest.raises(DataError, match="1,048,576 users and an item of degree 8,796,093,022,207 do not fit"):
        _require_63_bits(2**20, 2**43 - 1)


def test_plan_refuses() -> None:
    assert plan(1000, 10) == 16 * 1000 + 48 * 10
    with pytest.raises(CapacityError, match="walk graph of 1,000,000,000,000,000 pairs"):
        plan(10**15, 10)
