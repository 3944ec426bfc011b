"""Validation between epochs: the sample, and NDCG@10 against ranks worked out one by one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import DataError, DivergedError, UsageError
from m3rec_spark.evaluation import validation
from m3rec_spark.evaluation.validation import MEAN, Validator, cosine_scores, market_ndcg, mean_ndcg, validation_sample
from m3rec_spark.models.m3rec import M3Rec
from m3rec_spark.ranking.scorers import PopularityScorer
from m3rec_spark.tables import arrow_schema

# Market 0: users 0, 1, items 0-3 (slots 0-3); market 1: user 0, items 2, 3, 5 (slots 4-6).
CPU = torch.device("cpu")
ARRAYS = MarketArrays(
    indptr=np.array([0, 1, 1, 2]),
    slots=np.array([0, 4], np.int32),
    user_offsets=np.array([0, 2, 3]),
    slot_items=np.array([0, 1, 2, 3, 2, 3, 5], np.int32),
    slot_offsets=np.array([0, 4, 7]),
    slot_counts=np.ones(7, np.int32),
    n_items=6,
)


def candidates(rows: list[tuple[int, int, int, list[int]]], half: str = "valid") -> pa.Table:
    return pa.Table.from_pylist(
        [{"market": m, "user": u, "positive": p, "half": half, "cold": False, "negatives": n} for m, u, p, n in rows],
        schema=arrow_schema("candidates"),
    )


def test_ndcg_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "BLOCK", 1)
    angles = np.deg2rad([0, 50, 20, 80, 0, 30, 60])  # by slot
    model = M3Rec(3, 7, 2, None, np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    with torch.no_grad():
        model.u_loca.weight[1] = torch.tensor([0.0, 1.0])  # market 0, user 1: at 90 degrees, no history
    sample = candidates([
        (1, 0, 5, [3]),  # at 0 degrees: item 3 at 30, positive 5 at 60: rank 2
        (0, 0, 2, [1, 3]),  # at 0 degrees: positive at 20, then 50 and 80: rank 1
        (0, 1, 0, [1, 2, 3]),  # at 90 degrees: 80, 50, 20, positive at 0: rank 4
    ])  # fmt: skip
    figures = Validator(ARRAYS, sample, {0: "de", 1: "fr"}).figures(cosine_scores(model, ARRAYS), CPU)
    de, fr = (1 + 1 / math.log2(5)) / 2, 1 / math.log2(3)
    assert figures == pytest.approx({"de/valid_ndcg_10": de, "fr/valid_ndcg_10": fr, MEAN: (de + fr) / 2})


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_lists_of_their_own_give_the_same_figures(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """A score that only (row, slot) decide, asked for by list and for all items of the block."""
    monkeypatch.setattr(validation, "_LISTS", at_once)
    table = torch.from_numpy(np.random.default_rng(3).random((3, 7)))
    score = lambda _, rows, slots: table[rows[:, None], slots if slots.ndim == 2 else slots[None]]  # noqa: E731
    sample = candidates([(1, 0, 5, [3]), (0, 0, 2, [1, 3]), (0, 1, 0, [1, 2, 3])])
    validator = Validator(ARRAYS, sample, {0: "de", 1: "fr"})
    by_lists = validator.figures(score, CPU, by_lists=True)
    assert by_lists == validator.figures(score, CPU)
    ranks = [1 + (table[0, [1, 3]] > table[0, 2]).sum().item(), 1 + (table[1, 1:4] > table[1, 0]).sum().item()]
    assert by_lists["de/valid_ndcg_10"] == pytest.approx(np.mean([1 / math.log2(1 + rank) for rank in ranks]))


def test_ties_count_half() -> None:
    model = M3Rec(3, 7, 2, None, np.ones((7, 2), np.float32))
    figures = Validator(ARRAYS, candidates([(0, 0, 2, [1, 3])]), {0: "de"}).figures(cosine_scores(model, ARRAYS), CPU)
    assert figures[MEAN] == pytest.approx(1 / math.log2(1 + 2))  # three level: rank 2


def test_a_handful_of_users_does_not_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users in de, one in fr: the mean is de's as long as two are needed."""
    sample = candidates([(0, 0, 2, [1, 3]), (0, 1, 0, [1, 2, 3]), (1, 0, 5, [3])])
    table = torch.from_numpy(np.random.default_rng(3).random((3, 7)))
    score = lambda _, rows, slots: table[rows[:, None], slots[None]]  # noqa: E731
    for fewest, judges in ((2, ["de"]), (1, ["de", "fr"]), (3, ["de", "fr"])):  # 3: nobody has so many
        monkeypatch.setattr(validation, "FEWEST", fewest)
        figures = Validator(ARRAYS, sample, {0: "de", 1: "fr"}).figures(score, CPU)
        assert figures[MEAN] == pytest.approx(np.mean([figures[f"{name}/valid_ndcg_10"] for name in judges]))
        scorer = PopularityScorer()
        assert set(market_ndcg(scorer, ARRAYS, sample)) == {["de", "fr"].index(name) for name in judges}


@pytest.mark.parametrize("by_lists", [False, True])
def test_scores_that_are_no_numbers_name_the_market(by_lists: bool) -> None:
    """As after a last step that took the weights to infinity: the loss before it was a number."""
    score = lambda market, rows, slots: torch.full((len(rows), slots.shape[-1]), math.nan if market else 0.0)  # noqa: E731
    validator = Validator(ARRAYS, candidates([(0, 0, 2, [1, 3]), (1, 0, 5, [3])]), {0: "de", 1: "fr"})
    with pytest.raises(DivergedError, match=r"NaN in market fr: lower train\.learning_rate"):
        validator.figures(score, CPU, by_lists)


def test_no_validation_user_is_an_error() -> None:
    with pytest.raises(DataError, match="validation half"):
        Validator(ARRAYS, candidates([]), {0: "de"})


def test_the_test_half_chooses_nothing(published: Path) -> None:
    sample = validation_sample(published, 10, 1, half="test")
    assert sample.num_rows == 1
    with pytest.raises(UsageError, match="got users of 'test': the test half only judges"):
        Validator(ARRAYS, sample, {0: "de"})
    with pytest.raises(UsageError, match="got users of 'test'"):
        mean_ndcg(PopularityScorer(), ARRAYS, sample)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    rows = [(market, user, 0, [user]) for market in (0, 1) for user in range(300)]
    pq.write_table(candidates(rows[:200]), tmp_path / "a.parquet")
    pq.write_table(candidates(rows[200:], "valid"), tmp_path / "b.parquet")
    pq.write_table(candidates([(0, 999, 0, [])], "test"), tmp_path / "c.parquet")
    return tmp_path


def test_the_sample_is_by_user_not_by_place(published: Path, tmp_path: Path) -> None:
    def chosen(folder: Path, users: int, seed: int = 1) -> set[tuple[int, int]]:
        table = validation_sample(folder, users, seed)
        assert table["negatives"].to_pylist() == [[user] for user in table["user"].to_pylist()]
        return set(zip(table["market"].to_pylist(), table["user"].to_pylist(), strict=True))

    few = chosen(published, 100)
    assert len(few) == 100
    assert 30 < sum(market for market, _ in few) < 70  # not the first market alone
    assert few < chosen(published, 200)
    assert few != chosen(published, 100, seed=2)
    assert len(chosen(published, 600)) == len(chosen(published, 10_000)) == 600  # the test half is never in it
    again = tmp_path / "again"
    again.mkdir()
    whole = pa.concat_tables([pq.read_table(published / name) for name in ("b.parquet", "a.parquet")])
    pq.write_table(whole, again / "other.parquet")
    assert chosen(again, 100) == few
