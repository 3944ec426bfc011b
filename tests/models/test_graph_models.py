"""LightGCN and Bi-TGCF against dense matrices."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from shops import SMALL, batch

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.models.bitgcf import transfer_matrix
from m3rec_spark.models.catalogue import build

LIGHT = {"dimension": 3, "layers": 2, "l2": 0.1}
BI = LIGHT | {"keep": 0.75}


def normalised(columns: np.ndarray, n: int) -> np.ndarray:
    """D^-1/2 A D^-1/2 by its definition."""
    A = np.zeros((5 + n, 5 + n))
    for row in range(5):
        for column in columns[SMALL.indptr[row] : SMALL.indptr[row + 1]]:
            A[row, 5 + column] = A[5 + column, row] = 1
    degree = A.sum(axis=1)
    with np.errstate(divide="ignore"):
        scale = np.where(degree > 0, 1 / np.sqrt(degree), 0)
    return scale[:, None] * A * scale


def test_lightgcn_is_the_mean_of_its_layers() -> None:
    model = build("lightgcn", SMALL, LIGHT, seed=3)
    start, A = model.start.detach().numpy().astype(float), normalised(SMALL.items, 4)
    whole = (start + A @ start + A @ A @ start) / 3
    users, items = (part.detach().numpy() for part in model.propagated())
    np.testing.assert_allclose(np.concatenate([users, items]), whole, atol=1e-6)
    scores = model.scorer()(1, torch.tensor([4, 2]), torch.tensor([3, 5])).detach().numpy()
    np.testing.assert_allclose(scores, whole[[4, 2]] @ whole[[5 + 1, 5 + 3]].T, atol=1e-6)  # slots 3, 5: items 1, 3


def test_loss_of_lightgcn() -> None:
    model = build("lightgcn", SMALL, LIGHT, seed=3)
    users, items = (part.detach().numpy() for part in model.propagated())
    start = model.start.detach().numpy()
    expected = 0.0
    for row, positive, negatives in ((1, 2, [0, 1]), (3, 1, [2, 3]), (2, 1, [3, 2])):  # items
        scores = [users[row] @ items[item] for item in (positive, *negatives)]
        expected += np.mean([math.log1p(math.exp(other - scores[0])) for other in scores[1:]])
        norms = [(start[5 + item] ** 2).sum() for item in (positive, *negatives)]
        expected += 0.1 * ((start[row] ** 2).sum() + np.mean(norms))
    found = model.loss(batch([1, 3, 2], [2, 3, 3], [1, 2], [[[0, 1]], [[4, 5], [5, 4]]]))
    assert found.item() == pytest.approx(expected / 3, rel=1e-5)


def test_transfer_by_hand() -> None:
    """Item 1 is slots 1 (1 pair) and 3 (2 pairs); item 2 slots 2 (1) and 4 (1); items 0 and 3 have one slot."""
    found = transfer_matrix(SMALL, keep=0.75).toarray()
    expected = np.eye(6)
    expected[[1, 3], [1, 3]] = (0.75 + 1 / 3) / 2, (0.75 + 2 / 3) / 2
    expected[[1, 3], [3, 1]] = (0.25 + 2 / 3) / 2, (0.25 + 1 / 3) / 2
    expected[[2, 4], [2, 4]] = expected[[2, 4], [4, 2]] = (0.75 + 0.5) / 2, (0.75 + 0.5) / 2
    expected[[2, 4], [4, 2]] = (0.25 + 0.5) / 2
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_cold_slot_only_receives() -> None:
    """Item 1: slot 1 has 3 pairs and slot 3 none. Item 2: both cold."""
    arrays = dataclasses.replace(SMALL, slot_counts=np.array([1, 3, 0, 0, 0, 0], np.int32))
    expected = np.eye(6)
    expected[3, 3], expected[3, 1] = 0.75 / 2, (0.25 + 1) / 2
    np.testing.assert_allclose(transfer_matrix(arrays, keep=0.75).toarray(), expected, atol=1e-7)
    # one item in three markets, with 3, 1 and 0 pairs: the first two give to each other, both to the third
    thrice = dataclasses.replace(
        SMALL, slot_items=np.zeros(3, np.int32), slot_counts=np.array([3, 1, 0], np.int32), n_items=1
    )
    mixed = np.array([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.125, 0.125, 0.75]])
    common = np.array([0.75, 0.25, 0.0])
    np.testing.assert_allclose(transfer_matrix(thrice, keep=0.75).toarray(), (mixed + common) / 2, atol=1e-7)


@pytest.mark.parametrize(("name", "settings"), [("lightgcn", LIGHT), ("bitgcf", BI)])
def test_vectors_of_markets_without_a_common_item_are_by_slot(name: str, settings: dict) -> None:
    """Items 1, 3 in one market and 0, 2 in the other: as many slots as items, in another order."""
    arrays = MarketArrays(
        indptr=np.array([0, 2, 3, 4]),
        slots=np.array([0, 1, 2, 3], np.int32),
        user_offsets=np.array([0, 1, 3]),
        slot_items=np.array([1, 3, 0, 2], np.int32),
        slot_offsets=np.array([0, 2, 4]),
        slot_counts=np.ones(4, np.int32),
        n_items=4,
    )
    model = build(name, arrays, settings, seed=3)
    users, items = model.vectors()
    for market, rows, slots in ((0, [0], [0, 1]), (1, [1, 2], [2, 3])):
        expected = model.scorer()(market, torch.tensor(rows), torch.tensor(slots))
        torch.testing.assert_close(users[rows] @ items[slots].T, expected)


def test_bitgcf_transfers_after_every_layer() -> None:
    model = build("bitgcf", SMALL, BI, seed=3)
    start, A = model.start.detach().numpy().astype(float), normalised(SMALL.slots, 6)
    T = np.eye(11)
    T[5:, 5:] = transfer_matrix(SMALL, keep=0.75).toarray()
    mean = (start + T @ A @ start + T @ A @ T @ A @ start) / 3
    users, items = (part.detach().numpy() for part in model.vectors())
    np.testing.assert_allclose(np.concatenate([users, items]), mean, rtol=1e-5, atol=1e-6)


def test_loss_of_bitgcf() -> None:
    model = build("bitgcf", SMALL, BI, seed=3)
    users, items = (part.detach().numpy() for part in model.vectors())
    start = model.start.detach().numpy()
    scores = [users[3] @ items[slot] for slot in (3, 4, 5)]
    norms = [(start[5 + slot] ** 2).sum() for slot in (3, 4, 5)]
    expected = np.mean([math.log1p(math.exp(other - scores[0])) for other in scores[1:]])
    expected += 0.1 * ((start[3] ** 2).sum() + np.mean(norms))
    assert model.loss(batch([3], [3], [1], [[[4, 5]]])).item() == pytest.approx(expected, rel=1e-5)
