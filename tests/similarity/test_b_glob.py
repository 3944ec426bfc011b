from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy import sparse

from m3rec_spark.similarity import b_glob, similarity_table


def test_filter_and_normalise_by_hand() -> None:
    weights = np.array([[0, 0.3, 0.1, 0.009], [0.5, 0, -0.9, 0.01], [-0.2, 0.001, 0, 0], [0, 0, 0.02, 0]])
    kept = b_glob.filter_rows(weights, 0.01)
    expected = np.array([[0, 0.3, 0.1, 0], [0.5, 0, 0, 0.01], [0, 0, 0, 0], [0, 0, 0.02, 0]], np.float32)
    np.testing.assert_array_equal(kept.toarray(), expected)
    rows = b_glob.normalise_rows(kept)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(
        rows.toarray(), [[0, 3 / 4, 1 / 4, 0], [50 / 51, 0, 0, 1 / 51], [0, 0, 0, 0], [0, 0, 1, 0]], rtol=1e-6
    )


def test_epsilon_zero_keeps_no_zeros() -> None:
    assert b_glob.filter_rows(np.array([[0, 1.0], [-1.0, 0]]), 0.0).nnz == 1


def test_a_sparse_matrix_is_filtered_as_a_dense_one() -> None:
    weights = np.random.default_rng(0).normal(size=(9, 9))
    weights[np.abs(weights) < 0.3] = 0
    weights[2, 3] = 0.5
    for epsilon in (0.0, 0.5):
        found = b_glob.filter_sparse(sparse.csr_matrix(weights), epsilon)
        np.testing.assert_array_equal(found.toarray(), b_glob.filter_rows(weights, epsilon).toarray())
        assert found.nnz == b_glob.filter_rows(weights, epsilon).nnz
        assert found.dtype == np.float32


def test_tailor_by_hand() -> None:
    similarity = sparse.csr_matrix(np.array([[0, 0.25, 0.75], [1, 0, 0], [0.5, 0.5, 0]], np.float32))
    tailored = b_glob.tailor(similarity, np.array([2, 1]))  # 2 -> 1 is all that is left of row 2; of row 1 nothing
    np.testing.assert_array_equal(tailored.toarray(), [[0, 1], [0, 0]])
    assert similarity.nnz == 5


def test_similarity_round_trip() -> None:
    matrix = sparse.random(20, 20, 0.2, format="csr", dtype=np.float32, random_state=0)
    batches = [similarity_table.similarity_batch(matrix[first : first + 6], first) for first in (0, 6, 12, 18)]
    found = similarity_table.similarity_matrix(pa.Table.from_batches(batches), 20)
    np.testing.assert_array_equal(found.toarray(), matrix.toarray())
