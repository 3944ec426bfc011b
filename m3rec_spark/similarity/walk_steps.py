"""The step of a random walk, compiled: a uniform point of the item's line (walk_graph), and node2vec's rejection.

128 walks are under way at once, all at the same phase of a step (ThunderRW, VLDB 2021): each phase is a loop over them
whose reads do not wait for each other, so that cache misses overlap. A walk that ends makes room for the next.

Random numbers are Philox words at the counter (start item, walk number, step, attempt): a walk is a function of these
and of the seed, whatever walks beside it and wherever it was interrupted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.errors import UsageError
from m3rec_spark.similarity.philox import below, fraction, key, philox4x32
from m3rec_spark.similarity.walk_graph import WalkGraph

_SLOTS = 128
_WALKER, _START, _NUMBER, _STEP, _ATTEMPT, _PREVIOUS, _HERE, _POINT, _ENTRY, _USER, _WORD, _CHANCE = range(12)
_SHIFT, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_BIAS_BOUNDS = (0.01, 100.0)  # of p and q: no step is drawn more than 10,000 times on average

Slots = NDArray[np.int64]  # (12, _SLOTS): a column is a walk under way


def advance(
    graph: WalkGraph,
    walks: NDArray[np.int32],
    steps: NDArray[np.int64],
    numbers: NDArray[np.int64],
    seed: int,
    return_p: float = 1.0,
    inout_q: float = 1.0,
) -> None:
    """Goes on with walks, in place, until they are whole or a step leads to a user who is not in the graph.

    A walk whose item has no neighbour stays as it is.

    Args:
        graph: of some users or of all.
        walks: (W, length) items, of which those before steps[k] are given.
        steps: (W,) items that each walk has, 1 up; counted up.
        numbers: (W,) the walk's number among those of its start, below 2^32.
        seed: its low 64 bits count.
        return_p: node2vec's p; like q, other than 1 for the graph of all users only.
        inout_q: node2vec's q.

    Raises:
        UsageError: p or q outside 0.01 to 100.
    """
    require_bias(return_p, inout_q)
    writable = np.array(numbers, np.int64)  # arrays from Arrow are read-only: another type to the kernel
    _advance(graph, walks, steps, writable, graph.user_bits, key(seed), (1.0 / return_p, 1.0 / inout_q))


def require_bias(return_p: float, inout_q: float) -> None:
    """Raises UsageError where p or q would have a step drawn again and again."""
    low, high = _BIAS_BOUNDS
    for name, value in (("return_p", return_p), ("inout_q", inout_q)):
        if not low <= value <= high:
            raise UsageError(
                f"walks.{name} is {value}, outside {low} to {high}: a step would be drawn over 10,000 times; "
                "node2vec's authors try 0.25 to 4"
            )


@compiled
def _advance(
    graph: WalkGraph,
    walks: NDArray[np.int32],
    steps: NDArray[np.int64],
    numbers: NDArray[np.int64],
    bits: int,
    seed: tuple[np.uint64, np.uint64],
    bias: tuple[float, float],
) -> None:
    slots = np.zeros((12, _SLOTS), np.int64)
    active = waiting = 0
    while active or waiting < len(numbers):
        while active < _SLOTS and waiting < len(numbers):
            active += _enter(slots[:, active], waiting, walks, steps, numbers)
            waiting += 1
        active = _draw(graph, slots, active, seed)
        _find_user(graph, slots, active, bits)
        active = _move(graph, slots, active, walks, steps, bits, bias)


@compiled
def _enter(
    slot: NDArray[np.int64],
    walker: int,
    walks: NDArray[np.int32],
    steps: NDArray[np.int64],
    numbers: NDArray[np.int64],
) -> int:
    """1, or 0 for a walk that is whole."""
    step = steps[walker]
    if step == walks.shape[1]:
        return 0
    slot[_WALKER], slot[_START], slot[_NUMBER] = walker, walks[walker, 0], numbers[walker]
    slot[_STEP], slot[_ATTEMPT], slot[_HERE] = step, 0, walks[walker, step - 1]
    slot[_PREVIOUS] = walks[walker, step - 2] if step > 1 else -1
    return 1


@compiled
def _draw(graph: WalkGraph, slots: Slots, active: int, seed: tuple[np.uint64, np.uint64]) -> int:
    """A point of each item's line, and the bucket of the guide that it lies in; how many walks are still active."""
    for k in range(active):
        c0, c1 = np.uint64(slots[_START, k]), np.uint64(slots[_NUMBER, k])
        c2, c3 = np.uint64(slots[_STEP, k]), np.uint64(slots[_ATTEMPT, k])
        w0, w1, w2, w3 = philox4x32(c0, c1, c2, c3, seed[0], seed[1])
        slots[_WORD, k], slots[_CHANCE, k] = np.int64(w0 << _SHIFT | w1), np.int64(w2 << _SHIFT | w3)
    k = 0
    while k < active:
        item, word = graph.rows[slots[_HERE, k]], np.uint64(slots[_WORD, k])
        point = np.int64(below(np.uint64(item.total), word >> _SHIFT, word & _LOW)) - item.before
        if 0 <= point < item.weight:
            slots[_POINT, k], slots[_USER, k] = point, item.first
            slots[_ENTRY, k] = item.first + np.int64(point * item.scale)
            k += 1
        else:  # another part of the graph has this user
            active -= 1
            slots[:, k] = slots[:, active]
    return active


@compiled
def _find_user(graph: WalkGraph, slots: Slots, active: int, bits: int) -> None:
    """The user whose stretch the point is on, and the place of one of his items, by the point's distance to its end."""
    for k in range(active):
        slots[_ENTRY, k] = slots[_USER, k] + graph.guide[slots[_ENTRY, k]]
    for k in range(active):
        entry = slots[_ENTRY, k]
        while graph.entries[entry] >> bits <= slots[_POINT, k]:
            entry += 1
        slots[_USER, k] = graph.entries[entry] & ((np.int64(1) << bits) - 1)
        slots[_POINT, k] = (graph.entries[entry] >> bits) - 1 - slots[_POINT, k]
    for k in range(active):
        slots[_POINT, k] += graph.indptr[slots[_USER, k]]


@compiled
def _move(
    graph: WalkGraph,
    slots: Slots,
    active: int,
    walks: NDArray[np.int32],
    steps: NDArray[np.int64],
    bits: int,
    bias: tuple[float, float],
) -> int:
    """The next items, where they are accepted; how many walks are still active."""
    second_order = bias[0] != 1.0 or bias[1] != 1.0
    for k in range(active):
        item, step = np.int64(graph.items[slots[_POINT, k]]), slots[_STEP, k]
        if item == slots[_HERE, k] and not graph.self_loops[0]:  # one of all but his last: the last stands in for it
            item = np.int64(graph.items[graph.indptr[slots[_USER, k] + 1] - 1])
        if second_order and step > 1 and not _accepted(graph, slots[:, k], item, bits, bias):
            slots[_ATTEMPT, k] += 1
            continue
        slots[_PREVIOUS, k], slots[_HERE, k] = slots[_HERE, k], item
        slots[_STEP, k], slots[_ATTEMPT, k] = step + 1, 0
        walks[slots[_WALKER, k], step] = item
        steps[slots[_WALKER, k]] = step + 1
    k = 0
    while k < active:
        if slots[_STEP, k] == walks.shape[1]:
            active -= 1
            slots[:, k] = slots[:, active]
        else:
            k += 1
    return active


@compiled
def _accepted(graph: WalkGraph, slot: NDArray[np.int64], item: np.int64, bits: int, bias: tuple[float, float]) -> bool:
    """With probability alpha / max(1, 1/p, 1/q); co-occurrence is looked up only where it decides."""
    back, out = bias
    word, previous = np.uint64(slot[_CHANCE]), slot[_PREVIOUS]
    level = fraction(word >> _SHIFT, word & _LOW) * max(1.0, back, out)
    if item == previous:
        return level < back
    if level < min(1.0, out) or level >= max(1.0, out):
        return level < out
    return _co_occur(graph, previous, item, bits) == (out < 1.0)


@compiled
def _co_occur(graph: WalkGraph, a: np.int64, b: np.int64, bits: int) -> bool:
    """Whether two items share a user: those of the less popular one are looked up among the other's."""
    mask = (np.int64(1) << bits) - 1
    if graph.rows[b + 1].first - graph.rows[b].first < graph.rows[a + 1].first - graph.rows[a].first:
        a, b = b, a
    low, end = graph.rows[b].first, graph.rows[b + 1].first
    for k in range(graph.rows[a].first, graph.rows[a + 1].first):
        user, high = graph.entries[k] & mask, end
        while low < high:
            middle = (low + high) // 2
            if graph.entries[middle] & mask < user:
                low = middle + 1
            else:
                high = middle
        if low == end:
            return False
        if graph.entries[low] & mask == user:
            return True
    return False
