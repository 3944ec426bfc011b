from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from scipy import sparse

from m3rec_spark.similarity import b_glob, similarity_table, weights
from m3rec_spark.similarity.market_rows import market_rows
from m3rec_spark.similarity.weights import DenseWeights, MarketItems, Outputs

ITEMS = ([0, 2, 3, 6, 7, 8, 9], [1, 2, 9], [4, 5])  # of each market; 10 is in none
N = 11


def markets() -> MarketItems:
    return MarketItems(np.concatenate(ITEMS).astype(np.int32), np.cumsum([0, *map(len, ITEMS)]))


def outputs(tmp_path: Path) -> Outputs:
    return Outputs(
        markets(), 0.1, tmp_path / "ease", np.array([1, 7]), tmp_path / "proof", block=4
    )  # 11 items: two whole blocks, a rest


def some_weights() -> np.ndarray:
    B = np.random.default_rng(0).normal(size=(N, N))
    np.fill_diagonal(B, 0)
    return B


def published(tmp_path: Path) -> pa.Table:
    return pa.Table.from_batches(weights.similarity_on_driver(DenseWeights(some_weights()), outputs(tmp_path)))


def test_b_glob_is_the_filtered_whole(tmp_path: Path) -> None:
    found = similarity_table.similarity_matrix(published(tmp_path), N)
    expected = b_glob.normalise_rows(b_glob.filter_rows(some_weights(), 0.1))
    np.testing.assert_array_equal(found.toarray(), expected.toarray())


def test_markets_get_their_own_rows_and_columns(tmp_path: Path) -> None:
    published(tmp_path)
    for market, items in enumerate(ITEMS):
        expected = some_weights()[np.ix_(items, items)].astype(np.float32)
        rows = market_rows(str(tmp_path / "ease"), market)
        np.testing.assert_array_equal(rows(np.arange(len(items))), expected)
        np.testing.assert_array_equal(rows(np.array([1])), expected[[1]])
        assert rows(np.array([], np.int64)).shape == (0, len(items))
    some = np.array([0, 2, 5])  # of three blocks
    rows = market_rows(str(tmp_path / "ease"), 0)
    np.testing.assert_array_equal(rows(some), some_weights()[np.ix_([0, 3, 8], ITEMS[0])].astype(np.float32))


def test_columns_of_the_certificate(tmp_path: Path) -> None:
    published(tmp_path)
    np.testing.assert_array_equal(weights.solution_columns(tmp_path / "proof"), some_weights()[:, [1, 7]])


def test_on_spark_as_on_the_driver(spark: SparkSession, tmp_path: Path) -> None:
    here, there = tmp_path / "driver", tmp_path / "spark"
    table = published(here)
    frame = weights.similarity_on_spark(spark, DenseWeights(some_weights()), outputs(there))
    found = similarity_table.similarity_matrix(frame.toArrow(), N)
    np.testing.assert_array_equal(found.toarray(), similarity_table.similarity_matrix(table, N).toarray())
    files = sorted(file.relative_to(here) for file in here.rglob("*.npy"))
    assert len(files) > 8
    assert files == sorted(file.relative_to(there) for file in there.rglob("*") if file.is_file())
    assert all((here / file).read_bytes() == (there / file).read_bytes() for file in files)


def test_sparse_weights_by_market(tmp_path: Path) -> None:
    B = sparse.csr_matrix(np.where(some_weights() > 0.5, some_weights(), 0))
    weights.publish_sparse(B, markets(), tmp_path)
    for market, items in enumerate(ITEMS):
        found = market_rows(str(tmp_path), market)(np.array([0, len(items) - 1]))
        expected = B.toarray()[np.ix_([items[0], items[-1]], items)].astype(np.float32)
        np.testing.assert_array_equal(found.toarray(), expected)


def test_missing_rows_are_told(tmp_path: Path) -> None:
    published(tmp_path)
    with pytest.raises(FileNotFoundError, match="no rows of market 7"):
        market_rows(str(tmp_path / "ease"), 7)
    (tmp_path / "ease" / "market-00000" / "rows-000000003.npy").unlink()
    with pytest.raises(ValueError, match="rows of market 0 are missing"):
        market_rows(str(tmp_path / "ease"), 0)
