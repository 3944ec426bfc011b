"""N_j: the m items most like item j, by A_ij / sqrt(A_ii A_jj) (the correlation of Steck 2019, arXiv:1910.09645).

Raw counts would make the bestsellers everybody's neighbours. Cost: one pass over A for a range of items, two heaps a
cell; 12 m bytes an item of the range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.similarity.symmetric import SymmetricGram


def choose_neighbours(gram: SymmetricGram, first: int, last: int, neighbours: int) -> NDArray[np.int32]:
    """N_j of items first .. last - 1: one pass over A, 12 m bytes an item.

    Args:
        gram: A.
        first: item.
        last: item after the last one.
        neighbours: m; fewer where an item co-occurs with fewer.

    Returns:
        (last - first, min(m, n - 1)) items, ascending; -1 in front where there are fewer. Of equals, the first ones.
    """
    m = min(neighbours, gram.n_items - 1)
    chosen = _strongest(gram.starts, gram.ends, gram.partners, gram.values, gram.diagonal, first, last, m)
    chosen.sort(axis=1)
    return chosen


@compiled
def _strongest(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    partners: NDArray[np.int32],
    values: NDArray[Any],
    diagonal: NDArray[np.float64],
    first: int,
    last: int,
    m: int,
) -> NDArray[np.int32]:
    """For items j of first..last, the m partners with the largest A_ij^2 / A_ii: the order of the cosine. -1: none."""
    chosen = np.full((last - first, m), -1, np.int32)
    likeness = np.zeros((last - first, m))
    for a in range(len(starts)):
        inside = first <= a < last
        for cell in range(starts[a], ends[a]):
            b = partners[cell]
            if first <= b < last:
                offer(chosen[b - first], likeness[b - first], a, float(values[cell]) ** 2 / diagonal[a])
            if inside:
                offer(chosen[a - first], likeness[a - first], b, float(values[cell]) ** 2 / diagonal[b])
    return chosen


@compiled
def offer(chosen: NDArray[np.int32], likeness: NDArray[np.float64], item: int, value: float) -> None:
    """Takes the item in if it is before the last of those chosen: a heap of m, the last one at its root."""
    m = len(chosen)
    if value < likeness[0] or (value == likeness[0] and item > chosen[0]):
        return
    hole = 0
    while True:
        child = 2 * hole + 1
        if child + 1 < m and (
            likeness[child + 1] < likeness[child]
            or (likeness[child + 1] == likeness[child] and chosen[child + 1] > chosen[child])
        ):
            child += 1
        if child >= m or value < likeness[child] or (value == likeness[child] and item > chosen[child]):
            break
        chosen[hole], likeness[hole] = chosen[child], likeness[child]
        hole = child
    chosen[hole], likeness[hole] = item, value
