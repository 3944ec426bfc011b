"""SLIM: by hand, and by the conditions of its optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from m3rec_spark.errors import UsageError
from m3rec_spark.similarity.slim import fit_slim


def test_two_items_by_hand() -> None:
    """A = [[3, 2], [2, 4]], l1 = 1, l2 = 1: b_01 = (2 - 1/2) / (3 + 1), b_10 = (2 - 1/2) / (4 + 1)."""
    weights, restless = fit_slim(sparse.csr_matrix(np.array([[3.0, 2.0], [2.0, 4.0]])), l1=1.0, l2=1.0)
    np.testing.assert_allclose(weights.toarray(), [[0, 0.375], [0.3, 0]], atol=1e-6)
    assert restless == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3), st.floats(0.1, 20))
def test_no_entry_could_be_better(seed: int, l1: float, l2: float) -> None:
    """The slope of the objective is 0 at positive entries and not negative at those of 0; all other entries are 0."""
    X = (np.random.default_rng(seed).random((12, 8)) < 0.35).astype(float)
    A = X.T @ X
    weights, restless = fit_slim(sparse.csr_matrix(A), l1, l2, tolerance=1e-9, passes=5000)
    B = weights.toarray().astype(float)
    slope = 2 * (A @ B - A) + l1 + 2 * l2 * B
    np.fill_diagonal(slope, 0)
    assert restless == 0
    assert (B >= 0).all()
    assert (np.diag(B) == 0).all()
    assert np.abs(slope[B > 0]).max(initial=0) < 1e-4
    assert slope.min() > -1e-4


def test_what_did_not_come_to_rest_is_counted() -> None:
    X = (np.random.default_rng(0).random((30, 10)) < 0.5).astype(float)
    _, restless = fit_slim(sparse.csr_matrix(X.T @ X), l1=0.0, l2=0.1, tolerance=1e-12, passes=1)
    assert restless == 10


@pytest.mark.parametrize(("l1", "l2"), [(-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_weights_out_of_range(l1: float, l2: float) -> None:
    with pytest.raises(UsageError, match="SLIM needs"):
        fit_slim(sparse.identity(3, format="csr"), l1, l2)
