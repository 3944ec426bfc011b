from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from m3rec_spark.data.arrays import MarketArrays, save_arrays
from m3rec_spark.errors import DataError, UsageError
from m3rec_spark.similarity import markets
from m3rec_spark.similarity.certificate import certificate
from m3rec_spark.similarity.market_blocks import NOBODY, SHARED, EliminatedWeights, split_items

LAMBDA = 3.0
Market = tuple[np.ndarray, np.ndarray]  # (users, n) 0/1 purchases; (n,) whether it sells the item


def market_arrays(shop: list[Market]) -> MarketArrays:
    """By the definition of MarketArrays, from dense purchases."""
    slots, first, items = [], 0, []
    for X, sells in shop:
        sold = np.flatnonzero(sells)
        slots += [first + np.flatnonzero(row[sold]) for row in X]
        first += len(sold)
        items.append(sold)
    lengths = [len(history) for history in slots]
    all_slots = np.concatenate([np.array([], np.int64), *slots]).astype(np.int32)
    return MarketArrays(
        indptr=np.cumsum([0, *lengths]).astype(np.int64),
        slots=all_slots,
        user_offsets=np.cumsum([0] + [len(X) for X, _ in shop]).astype(np.int64),
        slot_items=np.concatenate(items).astype(np.int32),
        slot_offsets=np.cumsum([0] + [len(sold) for sold in items]).astype(np.int64),
        slot_counts=np.bincount(all_slots, minlength=first).astype(np.int32),
        n_items=len(shop[0][1]),
    )


def write_gram(shop: list[Market], folder: Path) -> None:
    """The table GRAM by its definition, a file a market with several row groups."""
    folder.mkdir(parents=True)
    for market, (X, _) in enumerate(shop):
        upper = np.triu(X.T @ X)
        a, b = np.nonzero(upper)
        columns = [np.full(len(a), market), a, b, upper[a, b]]
        table = pa.table([pa.array(c, pa.int32()) for c in columns], names=["market", "item_a", "item_b", "count"])
        pq.write_table(table, folder / f"part-{market}.parquet", row_group_size=50)


def reference(shop: list[Market], weights: np.ndarray) -> np.ndarray:
    """B of eq. 4 by a dense inverse."""
    A = sum(w * (X.T @ X) for w, (X, _) in zip(weights, shop, strict=True))
    C = np.linalg.inv(A + LAMBDA * np.eye(len(A)))
    B = -C / np.diag(C)
    np.fill_diagonal(B, 0)
    return B


def random_market(rng: np.random.Generator, users: int, sold: list[int], n: int, share: float = 0.3) -> Market:
    sells = np.isin(np.arange(n), sold)
    return ((rng.random((users, n)) < share) & sells).astype(np.int64), sells


def random_shop(seed: int = 0) -> list[Market]:
    """24 items: 0..3 in markets 0 and 1, 4, 5 in 0 and 2, 6 in 1 and 3: all that market 3 sells; 23 is sold nowhere."""
    rng = np.random.default_rng(seed)
    shop = [
        random_market(rng, 90, [0, 1, 2, 3, 4, 5, 7, 9, 11, 13, 22], 24),
        random_market(rng, 5, [0, 1, 2, 3, 6, 8, 10, 12, 14, 15, 16, 17, 18], 24),  # fewer users than own items
        random_market(rng, 40, [4, 5, 19, 20, 21, 22], 24),
        random_market(rng, 7, [6], 24, share=0.6),
    ]
    shop[2][0][:, 22] = 0  # cold in market 2: market 0 alone has a user of it
    return shop


def eliminated(
    spark: SparkSession, shop: list[Market], folder: Path, weights: np.ndarray | None = None, whole: bool = True
) -> EliminatedWeights:
    (folder / "arrays").mkdir(parents=True)
    save_arrays(market_arrays(shop), folder / "arrays")
    write_gram(shop, folder / "gram")
    weights = np.ones(len(shop)) if weights is None else weights
    return markets.eliminate(
        spark, folder / "gram", folder / "arrays", folder / "blocks", LAMBDA, weights, whole_histories=whole
    )


WEIGHTS = np.array([1.0, 0.3, 2.5, 7.0])


def test_one_shared_item_by_hand(spark: SparkSession, tmp_path: Path) -> None:
    """Item 0 and own items 1, 2 of two markets; every user buys both. A + 3 I = [[5, 1, 1], [1, 4, 0], [1, 0, 4]].

    Its inverse is [[16, -4, -4], [-4, 19, 1], [-4, 1, 19]] / 72.
    """
    shop = [(np.array([[1, 1, 0]]), np.array([1, 1, 0])), (np.array([[1, 0, 1]]), np.array([1, 0, 1]))]
    found = eliminated(spark, shop, tmp_path).rows(0, 3)
    expected = [[0, 4 / 19, 4 / 19], [4 / 16, 0, -1 / 19], [4 / 16, -1 / 19, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_owners_by_hand() -> None:
    """0 is bought in both markets, 1 sold in both but bought in market 1 alone, 5 sold and never bought, 6 not sold."""
    shop = [
        (np.array([[1, 0, 1, 0, 0, 0, 0]]), np.array([1, 1, 1, 0, 0, 0, 0])),
        (np.array([[1, 0, 0, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0, 0]]), np.array([1, 1, 0, 1, 1, 1, 0])),
    ]
    split = split_items(market_arrays(shop))
    assert split.owner.tolist() == [SHARED, 1, 0, 1, 1, NOBODY, NOBODY]
    assert split.place.tolist() == [0, 0, 0, 1, 2, 0, 1]
    assert split.items(1).tolist() == [1, 3, 4]


@pytest.mark.parametrize("whole", [True, False])
def test_as_the_dense_inverse(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Unequal weights, a market from its users, one without own items, an item cold in a market, one sold nowhere."""
    monkeypatch.setattr(markets, "_USER_FLOPS", 0.0)
    shop = random_shop()
    weights = eliminated(spark, shop, tmp_path, WEIGHTS, whole)
    found = weights.rows(0, 24)
    np.testing.assert_allclose(found, reference(shop, WEIGHTS), atol=1e-12)
    assert (np.diag(found) == 0).all()
    assert not found[23].any()
    assert not found[:, 23].any()
    gram = pq.read_table(tmp_path / "gram")
    assert certificate(gram.to_batches, found, np.arange(24), LAMBDA, WEIGHTS, tolerance=1e-13).residual >= 0


def test_blocks_of_b(spark: SparkSession, tmp_path: Path) -> None:
    shop = random_shop()
    weights: EliminatedWeights = pickle.loads(pickle.dumps(eliminated(spark, shop, tmp_path, WEIGHTS)))
    B = reference(shop, WEIGHTS)
    assert weights.n_items == 24
    np.testing.assert_allclose(weights.rows(5, 9), B[5:9], atol=1e-12)  # two shared, own of two markets
    for _, sells in shop:
        items = np.flatnonzero(sells)
        np.testing.assert_allclose(weights.block(items, items), B[np.ix_(items, items)], atol=1e-12)
    rows, columns = np.array([0, 3, 8, 9, 20, 23]), np.array([2, 3, 7, 8, 12, 21, 22])
    np.testing.assert_allclose(weights.block(rows, columns), B[np.ix_(rows, columns)], atol=1e-12)
    assert weights.block(np.array([3, 8]), np.array([3, 8]))[[0, 1], [0, 1]].tolist() == [0, 0]
    assert weights.block(np.array([], np.int64), columns).shape == (0, 7)


@pytest.mark.parametrize(
    "shop",
    [
        [random_market(np.random.default_rng(1), 30, list(range(8)), 8)],  # one market
        [random_market(np.random.default_rng(m), 30, list(range(4 * m, 4 * m + 4)), 8) for m in range(2)],  # no overlap
        [random_market(np.random.default_rng(m), 30, list(range(8)), 8) for m in range(2)],  # nothing but overlap
        [random_market(np.random.default_rng(1), 0, [0, 1], 8), random_market(np.random.default_rng(2), 9, [1, 5], 8)],
    ],
    ids=["one market", "no overlap", "all shared", "a market without users"],
)
def test_special_shops(spark: SparkSession, tmp_path: Path, shop: list[Market]) -> None:
    weights = np.linspace(1, 2, len(shop))
    found = eliminated(spark, shop, tmp_path, weights).rows(0, 8)
    np.testing.assert_allclose(found, reference(shop, weights), atol=1e-12)


@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(st.integers(0, 12), st.sets(st.integers(0, 9), min_size=1), st.floats(0.1, 9)), min_size=1, max_size=4
    ),
)
@settings(deadline=None, max_examples=60)
def test_any_shop(tmp_path_factory: pytest.TempPathFactory, seed: int, drawn: list) -> None:
    """The steps without Spark, one market after the other."""
    rng = np.random.default_rng(seed)
    shop = [random_market(rng, users, list(sold), 10, rng.random()) for users, sold, _ in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markets, "_USER_FLOPS", 0.0)
        found = eliminated(_Here(), shop, tmp_path_factory.mktemp("shop"), np.array([w for *_, w in drawn]))  # type: ignore[arg-type]
    np.testing.assert_allclose(found.rows(0, 10), reference(shop, np.array([w for *_, w in drawn])), atol=1e-12)


class _Here:
    """As much of a SparkSession as the solver needs, in this process."""

    def range(self, start: int, end: int, numPartitions: int) -> _Here:
        self.ids = np.arange(start, end)
        return self

    def mapInArrow(self, kernel, schema: str) -> _Here:  # noqa: N802
        self.batches = kernel(iter([pa.RecordBatch.from_pydict({"id": self.ids})]))
        return self

    def collect(self) -> list[dict]:
        return [row for batch in self.batches for row in batch.to_pylist()]


def test_both_sides_agree(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A market of 60 own and 10 shared items with 25 users, from its Gram and from its users."""
    monkeypatch.setattr(markets, "_USER_FLOPS", 0.0)
    rng = np.random.default_rng(3)
    shop = [random_market(rng, 25, list(range(70)), 80), random_market(rng, 200, [*range(10), *range(70, 80)], 80)]
    weights = np.array([0.7, 1.0])
    sides = [eliminated(spark, shop, tmp_path / str(whole), weights, whole).rows(0, 80) for whole in (True, False)]
    np.testing.assert_allclose(sides[0], sides[1], atol=1e-13)
    np.testing.assert_allclose(sides[0], reference(shop, weights), atol=1e-12)
    assert (sides[0] != sides[1]).any()  # two ways, indeed


def test_cost_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """By items: 3^3 + 2 9 2 + 3 4, and H_m: 2 3 2 4; the most numbers: 4 (3 + 2). From 2 users: 2^3 + 5 2 (2 + 5)."""
    assert markets.market_cost(own=3, sold=2, shared=4, users=0) == markets.Cost(75 + 66, 8 * (12 + 9), False)
    assert not markets.market_cost(own=3, sold=2, shared=4, users=2).by_users
    monkeypatch.setattr(markets, "_USER_FLOPS", 4.0)
    held = 3 * 5 + 4 + 25 + 2 * (2 + 10)
    assert markets.market_cost(own=3, sold=2, shared=4, users=2) == markets.Cost(8 + 56 + 66, 8 * held, True)
    fits = {size: markets.market_cost(3, 2, 4, 2, task_bytes=size).by_users for size in (8 * held - 1, 8 * held)}
    assert fits == {8 * held - 1: False, 8 * held: True}


@pytest.mark.parametrize("whole", [True, False])
def test_an_ill_conditioned_gram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """Condition about 1e9: the optimum still holds to rounding error, from either side."""
    monkeypatch.setattr(markets, "_USER_FLOPS", 0.0)
    rng = np.random.default_rng(0)
    shop = [random_market(rng, 20, [*range(20), *range(20 + 60 * m, 80 + 60 * m)], 140, 0.1) for m in range(2)]
    weights = np.full(2, 1e8)
    found = eliminated(_Here(), shop, tmp_path, weights, whole).rows(0, 140)  # type: ignore[arg-type]
    gram = pq.read_table(tmp_path / "gram")
    residual = certificate(gram.to_batches, found, np.arange(140), LAMBDA, weights).residual
    assert residual < 1e-12 * 1e8 * gram["count"].to_numpy().max()


def test_same_bytes_on_any_cores(spark: SparkSession, tmp_path: Path) -> None:
    """One market after the other in one process, and in Spark's tasks."""
    shop, found = random_shop(), []
    for name, session in (("here", _Here()), ("spark", spark), ("again", spark)):
        eliminated(session, shop, tmp_path / name, WEIGHTS)
        blocks = tmp_path / name / "blocks"
        found.append({file.relative_to(blocks): file.read_bytes() for file in sorted(blocks.rglob("*.npy"))})
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 4 + 4 * 4  # owner, place, shared, diagonal; sold, factor, inverse, response of 4 markets
    assert not [file for file in (tmp_path / "spark" / "blocks").rglob("*") if file.name.startswith(".")]


def test_a_task_that_runs_again_changes_nothing(tmp_path: Path) -> None:
    class Twice(_Here):
        def range(self, start: int, end: int, numPartitions: int) -> _Here:
            super().range(start, end, numPartitions)
            self.ids = np.repeat(self.ids, 2)
            return self

    once, twice = (
        eliminated(session, random_shop(), tmp_path / name, WEIGHTS)  # type: ignore[arg-type]
        for name, session in (("once", _Here()), ("twice", Twice()))
    )
    np.testing.assert_array_equal(once.rows(0, 24), twice.rows(0, 24))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_positive(spark: SparkSession, tmp_path: Path, value: float) -> None:
    with pytest.raises(UsageError, match="must be positive and finite"):
        eliminated(spark, random_shop(), tmp_path, np.array([1, 1, 1, value]))


def test_a_gram_of_other_data_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    shop = random_shop()
    eliminated(spark, shop, tmp_path, WEIGHTS)
    shop[2][0][:, 7] = 1  # market 2 does not sell item 7
    write_gram(shop, tmp_path / "other")
    with pytest.raises(DataError, match="market 2: the Gram has items that no user of the market bought"):
        markets.eliminate(spark, tmp_path / "other", tmp_path / "arrays", tmp_path / "b", LAMBDA, WEIGHTS)


def test_not_positive_definite_names_the_item(spark: SparkSession, tmp_path: Path) -> None:
    shop = random_shop()
    eliminated(spark, shop, tmp_path, WEIGHTS)
    table = pq.read_table(tmp_path / "gram" / "part-0.parquet").to_pandas()
    table.loc[(table.item_a == 9) & (table.item_b == 9), "count"] = -50
    table.to_parquet(tmp_path / "gram" / "part-0.parquet")
    with pytest.raises(DataError, match=r"market 0: .*not positive definite.*at item 9"):
        markets.eliminate(spark, tmp_path / "gram", tmp_path / "arrays", tmp_path / "b", LAMBDA, WEIGHTS)
