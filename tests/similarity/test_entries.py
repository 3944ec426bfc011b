from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from m3rec_spark.errors import CorruptTableError, DataError
from m3rec_spark.similarity.entries import Entries, open_entries, save_entries, transpose

HISTORIES = st.lists(st.sets(st.integers(0, 8)), max_size=12)


def csr(histories: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.cumsum([0, *(len(history) for history in histories)]).astype(np.int64)
    return indptr, np.array([item for history in histories for item in sorted(history)], np.int32)


def by_column(entries: Entries) -> list[list[tuple[int, int]]]:
    pairs = list(zip(entries.users.tolist(), entries.positions.tolist(), strict=True))
    return [pairs[a:b] for a, b in zip(entries.indptr[:-1], entries.indptr[1:], strict=True)]


def test_three_users_by_hand() -> None:
    # user 0 has 1, 3; user 1 nothing; user 2 has 0, 1, 3: column 1 is first of user 0 and second of user 2
    entries = transpose(*csr([{1, 3}, set(), {0, 1, 3}]), 5)
    assert by_column(entries) == [[(2, 0)], [(0, 0), (2, 1)], [], [(0, 1), (2, 2)], []]
    assert [getattr(entries, name).dtype for name in ("indptr", "users", "positions")] == ["int64", "int32", "int32"]


@given(HISTORIES)
@settings(deadline=None)
def test_same_pairs_by_column(histories: list[set[int]]) -> None:
    expected = [
        [(user, sorted(history).index(column)) for user, history in enumerate(histories) if column in history]
        for column in range(9)
    ]
    assert by_column(transpose(*csr(histories), 9)) == expected


def test_saved_and_mapped(tmp_path: Path) -> None:
    entries = transpose(*csr([{1, 3}, {0, 1}]), 4)
    save_entries(entries, tmp_path)
    found = open_entries(tmp_path)
    assert by_column(found) == by_column(entries)
    assert not found.users.flags.owndata


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    save_entries(transpose(*csr([{1, 3}, {0, 1}]), 4), tmp_path)
    np.save(tmp_path / "entries_users.npy", np.zeros(3, np.int32))
    with pytest.raises(CorruptTableError, match="do not fit each other"):
        open_entries(tmp_path)
    (tmp_path / "entries_users.npy").unlink()
    with pytest.raises(CorruptTableError, match="cannot be read"):
        open_entries(tmp_path)


@pytest.mark.parametrize("column", [-1, 4])
def test_a_column_outside_is_refused(column: int) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        transpose(np.array([0, 2]), np.array([1, column], np.int32), 4)


def test_more_users_than_int32_are_refused() -> None:
    indptr = as_strided(np.zeros(1, np.int64), shape=(2**31 + 1,), strides=(0,))  # 2^31 users without a pair
    with pytest.raises(DataError, match=r"2,147,483,648 users.*2,147,483,647"):
        transpose(indptr, np.zeros(0, np.int32), 1)
