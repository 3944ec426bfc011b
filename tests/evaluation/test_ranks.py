from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.errors import PythonException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from small_workspace import KEY, publish_ease, publish_model, publish_random_shop

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.evaluation.candidates import publish_candidates
from m3rec_spark.evaluation.ranks import expected_ranks, rank_lists, rank_users
from m3rec_spark.ranking.scorers import CosineScorer, EaseScorer, PopularityScorer, Scorer
from m3rec_spark.tables import Workspace


def mean_rank_over_all_orders(scores: list[int], positive: int) -> Fraction:
    """Sorts by score with every possible order among the ties, all equally likely."""
    ranks = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            ranks.append(order.index(positive) + 1)
    return Fraction(sum(ranks), len(ranks))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.data())
@settings(deadline=None, max_examples=60)
def test_expected_rank_is_the_mean_over_all_orders_of_the_ties(scores: list[int], data: st.DataObject) -> None:
    positive = data.draw(st.integers(0, len(scores) - 1))
    rivals = np.array([[i != positive for i in range(len(scores))]])
    rank = expected_ranks(np.array([scores], np.float32), np.array([positive]), rivals)
    assert Fraction(float(rank[0])) == mean_rank_over_all_orders(scores, positive)


def test_only_rivals_count() -> None:
    scores = np.array([[9.0, 8.0, 7.0, 8.0], [1.0, np.inf, -np.inf, 0.0]])
    rivals = np.array([[True, True, True, False], [False, True, True, False]])
    assert expected_ranks(scores, np.array([3, 0]), rivals).tolist() == [1 + 1 + 0.5, 1 + 1]


def test_nan_is_an_error_and_no_rank() -> None:
    with pytest.raises(ValueError, match="NaN"):
        expected_ranks(np.array([[0.0, np.nan]]), np.array([0]), np.array([[False, False]]))


@pytest.fixture(scope="module")
def shop(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, MarketArrays, list[Scorer]]:
    workspace = publish_random_shop(tmp_path_factory.mktemp("ranks"))
    publish_candidates(spark, workspace, KEY, negatives=6, seen="excluded", seed=1)
    arrays = open_arrays(workspace.folder("arrays"))
    weights = np.random.default_rng(5).integers(-2, 3, (arrays.n_items, arrays.n_items))  # small integers: many ties
    ease = EaseScorer(publish_ease(workspace, weights))
    return workspace, arrays, [PopularityScorer(), ease, CosineScorer(publish_model(workspace, arrays))]


def plain_ranks(workspace: Workspace, arrays: MarketArrays, scorer: Scorer) -> list[tuple]:
    """Candidate and full rank by loops over sets."""
    rows = []
    for row in workspace.read_arrow("candidates").to_pylist():
        market, user = row["market"], row["user"]
        slots = arrays.market_slots(market)
        items, counts = arrays.slot_items[slots].tolist(), arrays.slot_counts[slots].tolist()
        score = dict(zip(items, scorer.score(arrays, market, np.array([user], np.int32))[0].tolist(), strict=True))
        first, last = arrays.indptr[arrays.user_offsets[market] + user :][:2]
        seen = {arrays.slot_items[slot] for slot in arrays.slots[first:last]}
        pool = {item for item, count in zip(items, counts, strict=True) if count} - seen - {row["positive"]}
        ranks = []
        for rivals in (row["negatives"], pool):
            own = score[row["positive"]]
            ranks.append(1 + sum(score[i] > own for i in rivals) + sum(score[i] == own for i in rivals) / 2)
        rows.append((scorer.name, market, user, row["half"], row["cold"], *ranks))
    return rows


def test_ranks_against_loops_on_any_partitioning_and_block(
    spark: SparkSession, shop: tuple[Workspace, MarketArrays, list[Scorer]]
) -> None:
    workspace, arrays, scorers = shop
    expected = sorted(row for scorer in scorers for row in plain_ranks(workspace, arrays, scorer))
    assert len(expected) == 3 * 55
    assert any(row[5] % 1 for row in expected)  # there are ties
    for partitions, block in ((1, 256), (3, 5), (7, 1)):
        candidates = workspace.read(spark, "candidates").repartition(partitions)
        ranks = rank_users(candidates, scorers, workspace.folder("arrays"), block, "excluded")
        assert sorted(map(tuple, ranks.collect())) == expected


def test_seen_items_are_rivals_in_the_paper_like_full_rank(
    spark: SparkSession, shop: tuple[Workspace, MarketArrays, list[Scorer]]
) -> None:
    workspace, arrays, _ = shop
    candidates = workspace.read(spark, "candidates").filter("market = 1 and user = 0")
    ranks = rank_users(candidates, [PopularityScorer()], workspace.folder("arrays"), 8, "included").collect()
    positive = candidates.collect()[0]["positive"]
    slots = arrays.market_slots(1)
    counts = dict(zip(arrays.slot_items[slots].tolist(), arrays.slot_counts[slots].tolist(), strict=True))
    own = counts.pop(positive)
    others = [count for count in counts.values() if count]
    assert ranks[0]["full_rank"] == 1 + sum(c > own for c in others) + sum(c == own for c in others) / 2


def test_lists_of_two_contracts_are_ranked_as_each_alone(
    spark: SparkSession, shop: tuple[Workspace, MarketArrays, list[Scorer]], tmp_path: Path
) -> None:
    """And a user whose lists stand side by side is scored once."""
    workspace, _, scorers = shop
    folder, lists = workspace.folder("arrays"), workspace.read(spark, "candidates")
    alone = [
        (*row, seen)
        for seen in ("included", "excluded")
        for row in rank_users(lists, scorers, folder, 8, seen).collect()
    ]
    assert {row[6] for row in alone if row[7] == "included"} != {row[6] for row in alone if row[7] == "excluded"}
    both = lists.withColumn("seen", F.lit("included")).unionByName(lists.withColumn("seen", F.lit("excluded")))
    for partitions, block in ((1, 256), (3, 5), (7, 1)):
        spread = both.repartition(partitions, "market", "user").sortWithinPartitions("market", "user")
        found = rank_lists(spread, scorers, folder, block).collect()
        assert sorted(map(tuple, found)) == sorted(alone)
    told = str(tmp_path / "asked")

    class CountingScorer:  # local, so that it travels to the workers
        name = "counting"

        def score(self, arrays: MarketArrays, market: int, users: np.ndarray) -> np.ndarray:
            with open(told, "a") as file:
                file.write(f"{len(users)} ")
            return PopularityScorer().score(arrays, market, users)

    rank_lists(both.coalesce(1).sort("market", "user"), [CountingScorer()], folder, 256).collect()
    assert sum(map(int, Path(told).read_text().split())) == lists.count()


def test_a_model_with_nan_is_named(spark: SparkSession, shop: tuple[Workspace, MarketArrays, list[Scorer]]) -> None:
    workspace, arrays, _ = shop
    broken = EaseScorer(publish_ease(workspace, np.full((arrays.n_items, arrays.n_items), np.nan)))
    ranks = rank_users(workspace.read(spark, "candidates"), [broken], workspace.folder("arrays"), 8, "excluded")
    with pytest.raises(PythonException, match=r"model 'ease' in market \d: scores hold NaN"):
        ranks.collect()
