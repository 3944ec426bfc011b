"""Tests on counts of differences against scipy's on all users."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from m3rec_spark.evaluation.significance import bootstrap_interval, compare, holm, mean_over_markets, paired_t, wilcoxon

differences = st.lists(st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.2, 0.5, 1.0]), min_size=12, max_size=80)


def counted(all_users: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(all_users, return_counts=True)


@settings(max_examples=60, deadline=None)
@given(differences)
def test_paired_t_is_that_of_all_users(all_users: list[float]) -> None:
    if len(set(all_users)) > 1:
        assert paired_t(*counted(all_users)) == pytest.approx(stats.ttest_1samp(all_users, 0).pvalue, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(differences)
def test_wilcoxon_is_that_of_all_users(all_users: list[float]) -> None:
    if any(all_users):
        expected = stats.wilcoxon(all_users, zero_method="wilcox", correction=False, method="approx").pvalue
        assert wilcoxon(*counted(all_users)) == pytest.approx(expected, abs=1e-12)


def test_nothing_to_test() -> None:
    none = np.array([]), np.array([], np.int64)
    assert math.isnan(paired_t(*none))
    assert math.isnan(wilcoxon(*none))
    same = np.array([0.0]), np.array([9])
    assert paired_t(*same) == wilcoxon(*same) == 1.0
    assert math.isnan(paired_t(np.array([0.5]), np.array([90])))  # everybody gains the same: no spread to judge by


@pytest.mark.parametrize("users", [[0, 0], [1, 0], [2, 0], [4, 5]])
def test_a_few_users_are_not_tested(users: list[int]) -> None:
    found = compare(np.array([0.4, 0.6]), np.array(users))
    assert found.users == sum(users)
    assert all(map(math.isnan, (found.low, found.high, found.p_t, found.p_wilcoxon)))
    assert math.isnan(found.difference) == (not sum(users))
    enough = compare(np.array([0.4, 0.6]), np.array([5, 5]))
    assert enough.difference == pytest.approx(0.5)
    assert 0 < enough.p_t < 1e-6


def test_bootstrap_covers_the_normal_interval() -> None:
    values, users = np.array([-1.0, 0.0, 1.0]), np.array([300, 500, 400])
    low, high = bootstrap_interval(values, users, seed=1, draws=4000)
    mean, error = 100 / 1200, math.sqrt((700 / 1200 - (100 / 1200) ** 2) / 1200)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.004)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.004)
    assert bootstrap_interval(values[::-1], users[::-1], seed=1, draws=4000) == (low, high)


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.001, 0.03, 0.5]) == pytest.approx([0.09, 0.004, 0.09, 0.5])  # 3 x 0.03 lifts the next
    assert math.isnan(holm([math.nan, 0.02])[0])
    assert holm([math.nan, 0.02])[1] == 0.02


def test_all_of_it() -> None:
    found = compare(np.array([-0.5, 0.0, 0.5]), np.array([10, 50, 40]), seed=3)
    assert (found.users, found.difference) == (100, pytest.approx(0.15))
    assert found.low < 0.15 < found.high
    assert found.p_t < 1e-3
    assert found.p_wilcoxon < 1e-3


def test_the_mean_over_markets_is_that_of_two_independent_samples() -> None:
    """Half the sum of two means: Welch's standard error, halved; against scipy's test of their difference from 0."""
    one, two = [0.0, 0.5, 1.0, -0.1] * 10, [-0.2, 0.1, 0.4] * 20
    found = mean_over_markets([counted(one), counted(two)])
    error = math.sqrt(np.var(one, ddof=1) / 40 + np.var(two, ddof=1) / 60) / 2
    assert found.users == 100
    assert found.difference == pytest.approx((0.35 + 0.1) / 2)
    assert found.high - found.difference == pytest.approx(1.959964 * error, rel=1e-6)
    assert found.difference - found.low == pytest.approx(1.959964 * error, rel=1e-6)
    assert found.p_t == pytest.approx(2 * stats.norm.sf(0.225 / error))
    welch = stats.ttest_ind(one, [-x for x in two], equal_var=False).statistic
    assert 0.225 / error == pytest.approx(welch)


def test_the_mean_over_markets_without_spread_or_without_markets() -> None:
    level = counted([0.0] * 12)
    assert mean_over_markets([level, level]).p_t == 1.0
    assert math.isnan(mean_over_markets([counted([0.5] * 12)]).p_t)
    nothing = mean_over_markets([])
    assert nothing.users == 0
    assert math.isnan(nothing.difference)
