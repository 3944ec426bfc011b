"""One step of the blocked symmetric sweep, tile by tile (Goodnight 1979, Am. Stat. 33(3), with blocks as pivots).

Pivot D = T_kk = L L', panel C_i = T_ik (its mirror image T_ki' above the diagonal), Y_i = C_i L'^-1. Step k maps
    T_ij -> T_ij - Y_i Y_j',    T_ik -> Y_i L^-1 = C_i D^-1,    T_kk -> -D^-1        i, j != k,
and after all q steps T = -(A + lambda I)^-1. As in Cholesky's method, |Y|^2 <= |T|: nothing grows with the condition
number, unlike in T_ij - (C_i D^-1) C_j'. Cost of a step: n^2 t flops, n^2 / 2 numbers read and as many written.

One job a step, though its update needs the panel and the panel needs the pivot: generation k, what step k reads, holds
Y_i in the place of T_ik, L in that of T_kk, and the next pivot's factor besides, one step ahead (`advance`).

Notation: n items; t side of a tile, q = n / t; T_ij, i >= j, are kept, the rest is their mirror image. Generation k of
a tile is the file step-k/i-j.npy: a step never writes what it reads, so that a task that is killed, or runs twice,
gives the same bytes.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray

from m3rec_spark.paths import replacing
from m3rec_spark.schema import GRAM
from m3rec_spark.similarity import dense
from m3rec_spark.similarity.dense import Matrix

BAND = 8  # tiles of a column loaded at once
AHEAD = "ahead"  # generation k's file of the factor of pivot k + 1
SPARE = "step-spare"


@dataclass(frozen=True)
class Tiles:
    """The lower tiles of a symmetric (n, n) matrix in `folder`, on a path that all workers share."""

    folder: str
    n_items: int
    side: int

    @property
    def count(self) -> int:
        """q: tiles on a side, and steps of the sweep."""
        return -(-self.n_items // self.side)

    def items(self, i: int) -> slice:
        """The items of tile row i; the last one may be short."""
        return slice(i * self.side, min((i + 1) * self.side, self.n_items))

    def generation(self, step: int) -> Path:
        """The folder of what step `step` reads."""
        return Path(self.folder) / f"step-{step:05d}"

    def open(self, step: int, i: int, j: int) -> Matrix:
        """T_ij, i >= j, memory-mapped."""
        return self._load(step, f"{i}-{j}", "r")

    def read(self, step: int, i: int, j: int) -> Matrix:
        """T_ij, i >= j, as an array to work in, in Fortran order."""
        return self._load(step, f"{i}-{j}", None)

    def ahead(self, step: int) -> Matrix:
        """The factor of pivot step + 1, memory-mapped."""
        return self._load(step, AHEAD, "r")

    def _load(self, step: int, name: str, mode: Literal["r"] | None) -> Matrix:
        matrix: Matrix = np.load(self.generation(step) / f"{name}.npy", mmap_mode=mode)
        return matrix

    def panel(self, step: int, i: int) -> Matrix:
        """Y_i of the step."""
        return self.open(step, i, step) if i > step else self.open(step, step, i).T

    def is_whole(self, step: int) -> bool:
        """Whether all files of a generation are there, in their full size."""
        sizes = [items.stop - items.start for items in map(self.items, range(self.count))]
        expected = {f"{i}-{j}": (sizes[i], sizes[j]) for i in range(self.count) for j in range(i + 1)}
        if step + 1 < self.count:
            expected[AHEAD] = sizes[step + 1], sizes[step + 1]
        try:
            return all(self._load(step, name, "r").shape == shape for name, shape in expected.items())
        except (OSError, ValueError):  # absent, or shorter than its header says
            return False

    def save(self, step: int, name: str, array: Matrix) -> None:
        """Writes a file of a generation, whole or not at all."""
        self.generation(step).mkdir(exist_ok=True)
        with replacing(self.generation(step) / f"{name}.npy") as temporary:
            with self._reused_or_new(name, temporary) as file:
                np.save(file, array)
                file.truncate()
            if step and not self.generation(step - 1).is_dir():
                raise FileNotFoundError(f"step {step - 1} is over: this task read files that may be written over")

    def retire(self, step: int) -> None:
        """Gives a generation that no step reads any more to `save`, to write over."""
        self.remove_spare()
        if self.generation(step).is_dir():
            self.generation(step).rename(Path(self.folder) / SPARE)

    def remove_spare(self) -> None:
        """Removes what is left of the generation retired last."""
        shutil.rmtree(Path(self.folder) / SPARE, ignore_errors=True)

    def _reused_or_new(self, name: str, path: Path) -> BinaryIO:
        """To write over a file costs a third of a new one, whose memory has to be found, and the old one's freed.

        A retired generation has been renamed: a task of a lost executor that still reads it will not publish.
        """
        try:
            os.rename(Path(self.folder) / SPARE / f"{name}.npy", path)
            return open(path, "r+b", buffering=0)
        except OSError:  # taken, or there is none, or the store cannot write over files
            return open(path, "wb", buffering=0)


@dataclass(frozen=True)
class Run:
    """The work of a task: tiles (row, j) for the first <= j < last."""

    row: int
    first: int
    last: int


def runs_of_step(count: int, step: int, cores: int) -> list[Run]:
    """The runs of a step, in the order to start them.

    The one that also makes the next factor is first, then the long ones. Rows are cut where a whole one would keep the
    other cores waiting, but the factor's run keeps the tile before the diagonal, from which it is made.
    """
    longest = max(2, math.ceil(count * (count + 1) / 2 / (1.5 * cores)))
    runs = []
    for row in range(count):
        pieces = -(-(row + 1) // longest)
        bounds = [(row + 1) * piece // pieces for piece in range(pieces + 1)]
        runs += [Run(row, first, last) for first, last in itertools.pairwise(bounds)]

    def order(run: Run) -> tuple[bool, int, int, int]:
        makes_factor = run.row == step + 2 and run.last == run.row + 1
        return not makes_factor, run.first - run.last, run.row, run.first

    return sorted(runs, key=order)


def sweep_run(tiles: Tiles, step: int, run: Run) -> int:
    """Step `step` on the tiles of a run. Memory: two tiles, and what is mapped.

    Returns:
        -1, or the item at which the pivot after the next, and so A + lambda I, is not positive definite.
    """
    for j in range(run.first, run.last):
        tiles.save(step + 1, f"{run.row}-{j}", advance(tiles, step, run.row, j))
    return save_ahead(tiles, step + 1) if (run.row, run.last) == (step + 2, step + 3) else -1


def advance(tiles: Tiles, k: int, i: int, j: int) -> Matrix:
    """Generation k + 1 of tile i, j: step k of the sweep, and what generation k + 1 holds in the next panel's place."""
    if i == j:
        return _advance_diagonal(tiles, k, i)
    if k in (i, j):  # Y_i, or Y_j' as it lies above the diagonal
        solve = dense.solve_right if j == k else dense.solve_left
        tile = solve(tiles.read(k, i, j), tiles.open(k, k, k), transposed=i == k)
    else:
        tile = dense.product(tiles.panel(k, i), tiles.panel(k, j).T, tiles.read(k, i, j), alpha=-1.0)
    return to_panel(tile, tiles.ahead(k), right=j == k + 1) if k + 1 in (i, j) else tile


def _advance_diagonal(tiles: Tiles, k: int, i: int) -> Matrix:
    if i == k:
        return -dense.inverse_of_factored(tiles.open(k, k, k))
    if i == k + 1:
        return tiles.ahead(k)
    return dense.subtract_square(tiles.read(k, i, i), tiles.panel(k, i))


def to_panel(tile: Matrix, L: Matrix, right: bool) -> Matrix:
    """Y_i = C_i L'^-1 in the memory of C_i; Y_i' = L^-1 C_i' if C_i' is given, not right."""
    return dense.solve_right(tile, L, transposed=True) if right else dense.solve_left(tile, L, transposed=False)


def save_ahead(tiles: Tiles, step: int) -> int:
    """The factor of T - Y Y' for pivot step + 1, of a generation; gives -1, or the item at which it fails."""
    pivot = step + 1
    updated = dense.subtract_square(tiles.read(step, pivot, pivot), tiles.panel(step, pivot))
    return _save_factor(tiles, step, AHEAD, updated, pivot)


def _save_factor(tiles: Tiles, step: int, name: str, pivot: Matrix, row: int) -> int:
    factor, failing = dense.factor(pivot)
    if failing < 0:
        tiles.save(step, name, factor)
    return failing if failing < 0 else row * tiles.side + failing


def load_column(tiles: Tiles, gram_folder: str, lambda_f: float, weights: Matrix, j: int) -> int:
    """Generation 0 of tile column j but for `ahead`: T_ij = A_ij + lambda [i = j], from the cells of its items only.

    Memory: BAND + 3 tiles, and a batch of the Gram, whose part of the column is read once for every BAND tiles.

    Returns:
        -1, or the item at which the first pivot is not positive definite.
    """
    for first in range(j, tiles.count, BAND):
        last = min(first + BAND, tiles.count)
        rows = slice(tiles.items(first).start, tiles.items(last - 1).stop)
        band = _band(gram_folder, rows, tiles.items(j), weights)
        for i in range(first, last):
            tile = np.asfortranarray(band[(i - first) * tiles.side : (i - first + 1) * tiles.side])
            if i == j:
                tile = dense.mirror(tile)
                tile[np.diag_indices(len(tile))] += lambda_f
            if j > 0:
                tiles.save(0, f"{i}-{j}", tile)
            elif i > 0:
                tiles.save(0, f"{i}-{j}", to_panel(tile, tiles.open(0, 0, 0), right=True))
            elif (failing := _save_factor(tiles, 0, "0-0", tile, 0)) >= 0:
                return failing
    return -1


def _band(gram_folder: str, rows: slice, items: slice, weights: Matrix) -> Matrix:
    """(rows, items) of A, of which those above its diagonal stay 0."""
    band = np.zeros((rows.stop - rows.start, items.stop - items.start), order="F")
    flat = band.reshape(-1, order="F")  # a view
    for item_a, item_b, values in _weighted_cells(gram_folder, rows, items, weights):
        np.add.at(flat, places(item_a, item_b, rows, items), values)
    return band


def places(item_a: NDArray[np.int32], item_b: NDArray[np.int32], rows: slice, items: slice) -> NDArray[np.int64]:
    """Where cells lie in a band, column after column."""
    found: NDArray[np.int64] = (item_a.astype(np.int64) - items.start) * (rows.stop - rows.start) + item_b - rows.start
    return found


def _weighted_cells(
    gram_folder: str, rows: slice, items: slice, weights: Matrix
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], Matrix]]:
    """Batches (item_a, item_b, w_m count) of the upper half with item_a among `items` and item_b among `rows`."""
    gram, market = ds.dataset(gram_folder, format="parquet"), ds.field("market")
    wanted = _within("item_a", items) & _within("item_b", rows)
    exact = (weights == np.floor(weights)).all()  # whole numbers add up to the same in any order
    for part in [wanted] if exact else [wanted & (market == m) for m in range(len(weights))]:
        for batch in gram.to_batches(columns=GRAM.fieldNames(), filter=part, use_threads=False):
            markets, a, b, count = (column.to_numpy() for column in batch.columns)
            yield a, b, weights[markets] * count


def _within(name: str, items: slice) -> ds.Expression:
    return (ds.field(name) >= items.start) & (ds.field(name) < items.stop)
