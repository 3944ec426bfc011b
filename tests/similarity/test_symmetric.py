from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gram_table import random_counts, write_cells, write_gram
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rec_spark.errors import CorruptTableError, UsageError
from m3rec_spark.similarity.symmetric import SymmetricGram, open_symmetric, symmetric_gram

FIRST = np.array([[5, 2, 0, 1], [2, 3, 1, 0], [0, 1, 1, 0], [1, 0, 0, 2]])
SECOND = np.array([[4, 3, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def build(tmp_path: Path, markets: list[np.ndarray], weights: list[float], **cut: int) -> SymmetricGram:
    folder = tmp_path / "symmetric"
    folder.mkdir()
    gram = write_gram(markets, tmp_path / "gram", **cut)
    return symmetric_gram(gram, folder, len(markets[0]), np.array(weights))


def row(gram: SymmetricGram, item: int) -> dict[int, float]:
    cells = slice(gram.starts[item], gram.ends[item])
    found = dict(zip(gram.partners[cells].tolist(), gram.values[cells].tolist(), strict=True))
    assert len(found) == cells.stop - cells.start  # a partner once
    return found


def dense(gram: SymmetricGram) -> np.ndarray:
    A = np.diag(gram.diagonal)
    for a in range(gram.n_items):
        for b, value in row(gram, a).items():
            assert A[a, b] == 0  # the pair in one row only
            A[a, b] = A[b, a] = value
    return A


def test_markets_are_added_with_their_weights(tmp_path: Path) -> None:
    gram = build(tmp_path, [FIRST, SECOND], [2, 0.5])
    np.testing.assert_array_equal(gram.diagonal, [12, 8, 2, 4])
    # partners, by market: 0 has 1, 3, 1; 1 has 0, 2, 0; 2 has 1; 3 has 0. So the order is 2, 3, 0, 1
    assert [row(gram, item) for item in range(4)] == [{1: 5.5}, {}, {1: 2}, {0: 2}]
    assert gram.values.dtype == np.float64


def test_unit_weights_keep_counts(tmp_path: Path) -> None:
    gram = build(tmp_path, [FIRST, SECOND], [1, 1])
    assert gram.values.dtype == np.int32
    np.testing.assert_array_equal(dense(gram), FIRST + SECOND)


@pytest.mark.parametrize(("weights", "dtype"), [([1], np.int32), ([1, 1], np.float64)])
def test_sums_that_may_exceed_int32_are_floats(tmp_path: Path, weights: list[float], dtype: type) -> None:
    popular = np.full((2, 2), 2**30)
    gram = build(tmp_path, [popular] * len(weights), weights)
    assert gram.values.dtype == dtype
    np.testing.assert_array_equal(dense(gram), popular * len(weights))


def test_no_row_is_longer_than_the_root_of_twice_the_cells(tmp_path: Path) -> None:
    n = 60
    star = np.diag(np.full(n, 90))
    star[0, :] = star[:, 0] = star[1, :] = star[:, 1] = 7  # two bestsellers, everybody's partners
    star[0, 0] = star[1, 1] = 900
    gram = build(tmp_path, [star], [1])
    cells = np.count_nonzero(np.triu(star, 1))
    assert len(gram.partners) == cells
    assert (gram.ends - gram.starts).max() <= np.sqrt(2 * cells)
    assert [len(row(gram, item)) for item in range(4)] == [1, 0, 2, 2]  # 0 is before 1: equal degrees, lower index


def test_any_cut_of_the_table_gives_the_same_bits(tmp_path: Path) -> None:
    markets = [random_counts(12, 30, seed) for seed in range(3)]
    weights = [0.1, 0.2, 0.3]  # (0.1 + 0.2) + 0.3 is not 0.1 + (0.2 + 0.3)
    found = []
    for number, cut in enumerate(({"files": 1}, {"files": 3}, {"files": 7, "backwards": True})):
        (tmp_path / str(number)).mkdir()
        found.append(dense(build(tmp_path / str(number), markets, weights, **cut)))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[0], (0.1 * markets[0] + 0.2 * markets[1]) + 0.3 * markets[2])


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 15), markets=st.integers(1, 3), seed=st.integers(0, 10**6), density=st.floats(0, 0.5))
def test_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, n: int, markets: int, seed: int, density: float
) -> None:
    counts = [random_counts(n, 10, seed + market, density) for market in range(markets)]
    gram = build(tmp_path_factory.mktemp("symmetric"), counts, [1] * markets)
    np.testing.assert_array_equal(dense(gram), sum(counts))


def test_items_without_partners(tmp_path: Path) -> None:
    gram = build(tmp_path, [np.diag([3, 0, 2])], [1])
    np.testing.assert_array_equal(dense(gram), np.diag([3, 0, 2]))
    assert len(gram.partners) == 0


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_weights_are_positive_and_finite(tmp_path: Path, weight: float) -> None:
    with pytest.raises(UsageError, match=r"must be positive and finite, got \[1.0, "):
        build(tmp_path, [FIRST, SECOND], [1.0, weight])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([0, 1, 4, 1], "outside the upper half of 4 items"),
        ([0, -1, 2, 1], "outside the upper half of 4 items"),
        ([0, 2, 1, 1], "outside the upper half of 4 items"),
        ([2, 0, 0, 1], "1 cells of the Gram are of markets outside 0..1"),
    ],
)
def test_a_foreign_gram_is_refused(tmp_path: Path, cell: list[int], message: str) -> None:
    gram = write_cells([np.array([value], np.int32) for value in cell], tmp_path / "gram")
    with pytest.raises(CorruptTableError, match=message):
        symmetric_gram(gram, tmp_path, 4, np.ones(2))


def test_opened_as_built(tmp_path: Path) -> None:
    built = build(tmp_path, [FIRST], [1])
    np.testing.assert_array_equal(dense(open_symmetric(tmp_path / "symmetric")), dense(built))


@pytest.mark.parametrize("name", ["diagonal", "starts", "ends", "partners", "values"])
@pytest.mark.parametrize("damage", ["absent", "cut", "short"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    build(tmp_path, [FIRST], [1])
    file = tmp_path / "symmetric" / f"gram_{name}.npy"
    if damage == "absent":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        np.save(file, np.load(file)[:-1])
    with pytest.raises(CorruptTableError, match="run the stage again"):
        open_symmetric(tmp_path / "symmetric")
