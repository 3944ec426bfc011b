from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from m3rec_spark.data.arrays import MarketArrays, save_arrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.schema import WALKS
from m3rec_spark.similarity import walks_partitioned
from m3rec_spark.similarity.walk_blocks import build_blocks, open_block, open_routes, user_blocks
from m3rec_spark.similarity.walks import build_graph, walk, walk_matrix

PER_ITEM, LENGTH, SEED = 3, 6, 17
MARKETS = np.array([0, 2, 5, 7])  # 3 markets: users 0 1, 2 3 4, 5 6
INDPTR = np.array([0, 2, 4, 14, 24, 34, 35, 36])  # with 4, 30 and 2 pairs


@pytest.fixture(scope="module")
def shop() -> MarketArrays:
    """3 markets, 60 + 3 x 30 items; many of the markets' own have no neighbour."""
    return generate_arrays(markets=3, users=40, own_items=30, shared_items=60, history=6, groups=5, seed=2)


@pytest.fixture(scope="module")
def arrays(shop: MarketArrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    save_arrays(shop, folder)
    return folder


@pytest.fixture(scope="module")
def expected(shop: MarketArrays) -> np.ndarray:
    graph = build_graph(shop.indptr, shop.items, shop.n_items)
    starts = np.flatnonzero(graph.degrees()).astype(np.int32)
    assert 0 < len(starts) < shop.n_items
    return walk(graph, np.repeat(starts, PER_ITEM), np.tile(np.arange(PER_ITEM), len(starts)), LENGTH, SEED)


def partitioned(spark: SparkSession, arrays: Path, place: Path, blocks: np.ndarray, **options: int) -> Path:
    """The folder of the written walks."""
    for name in ("graph", "scratch", "walks"):
        (place / name).mkdir(parents=True)
    build_blocks(spark, arrays, place / "graph", blocks)
    count = walks_partitioned.write_walks(
        spark, place / "graph", place / "scratch", place / "walks", PER_ITEM, LENGTH, SEED, **options
    )
    table = ds.dataset(place / "walks", format="parquet").to_table()
    assert count == len(table) == len(set(table["walk"].to_pylist()))
    return place / "walks"


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (100, [0, 7]),  # all fit in one
        (34, [0, 5, 7]),  # the first two markets, and the third
        (30, [0, 2, 5, 7]),  # a market a block
        (
            15,
            [0, 2, 4, 7],
        ),  # the second market in two halves; its second user crosses the middle; the third fits behind
        (10, [0, 2, 3, 4, 5, 7]),  # in three
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),  # a user is never parted
    ],
)
def test_user_blocks_by_hand(pairs: int, expected: list[int]) -> None:
    assert user_blocks(INDPTR, MARKETS, pairs).tolist() == expected


@given(st.lists(st.lists(st.integers(0, 12), max_size=6), min_size=1, max_size=5), st.integers(1, 40))
def test_blocks_hold_all_users_and_not_much_more_than_asked(markets: list[list[int]], pairs: int) -> None:
    indptr = np.cumsum([0, *(length for users in markets for length in users)])
    offsets = np.cumsum([0, *map(len, markets)])
    blocks = user_blocks(indptr, offsets, pairs)
    assert blocks[0] == 0
    assert blocks[-1] == len(indptr) - 1
    assert (np.diff(blocks) > 0).all()
    for first, last in itertools.pairwise(blocks):
        assert indptr[max(first, last - 1)] - indptr[first] <= pairs  # without its last user


def test_blocks_are_the_graph_cut(spark: SparkSession, arrays: Path, shop: MarketArrays, tmp_path: Path) -> None:
    whole = build_graph(shop.indptr, shop.items, shop.n_items)
    blocks = np.array([0, 7, 7, 100, 120])  # one without users
    degrees = build_blocks(spark, arrays, tmp_path, blocks)
    np.testing.assert_array_equal(degrees, whole.degrees())
    routes = open_routes(tmp_path)
    lengths = np.diff(shop.indptr) - 1
    users = np.repeat(np.arange(120), lengths + 1)
    for column, end in enumerate(blocks):
        before = np.bincount(shop.items, (users < end) * lengths[users], minlength=shop.n_items)
        np.testing.assert_array_equal(routes[:, column], before)
    parts = [open_block(tmp_path, block) for block in range(4)]
    assert sum(len(part.items) for part in parts) == len(shop.items)  # replication factor 1
    np.testing.assert_array_equal(np.concatenate([part.items for part in parts]), shop.items)
    np.testing.assert_array_equal(sum(part.rows["weight"] for part in parts), whole.rows["weight"])
    for block, part in enumerate(parts):
        np.testing.assert_array_equal(part.rows["before"][:-1], routes[:, block])
        np.testing.assert_array_equal(part.degrees(), degrees)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["routes.npy"]


@pytest.mark.parametrize(
    ("blocks", "walkers_per_task"),
    [([0, 120], 1000), ([0, 40, 80, 120], 170), ([0, 1, 5, 40, 41, 77, 119, 120], 97)],
)
def test_the_same_walks_as_broadcast(
    spark: SparkSession,
    arrays: Path,
    tmp_path: Path,
    expected: np.ndarray,
    blocks: list[int],
    walkers_per_task: int,
) -> None:
    """On 1, 3 and 7 blocks, each of one task and of more: the same bytes."""
    target = partitioned(spark, arrays, tmp_path, np.array(blocks), walkers_per_task=walkers_per_task)
    walks = walk_matrix(spark.read.schema(WALKS).parquet(str(target)).toArrow())
    assert walks.tobytes() == expected.tobytes()
    assert (tmp_path / "scratch").is_dir()
    assert len(list((tmp_path / "scratch").iterdir())) <= 2  # of all rounds, the last


def test_self_loops(spark: SparkSession, arrays: Path, shop: MarketArrays, tmp_path: Path) -> None:
    for name in ("scratch", "walks"):
        (tmp_path / name).mkdir()
    degrees = build_blocks(spark, arrays, tmp_path, np.array([0, 50, 120]), self_loops=True)
    walks_partitioned.write_walks(spark, tmp_path, tmp_path / "scratch", tmp_path / "walks", 1, 5, 4)
    starts = np.flatnonzero(degrees).astype(np.int32)
    graph = build_graph(shop.indptr, shop.items, shop.n_items, self_loops=True)
    np.testing.assert_array_equal(
        walk_matrix(ds.dataset(tmp_path / "walks", format="parquet").to_table()),
        walk(graph, starts, np.zeros(len(starts), np.int64), 5, 4),
    )
