"""One step of the blocked symmetric sweep, tile by tile (Goodnight 1979, Am. Stat. 33(3), with blocks as pivots).

Pivot D = T_kk, panel C_i = T_ik (its mirror image T_ki' above the diagonal), W_i = C_i D^-1. Step k maps
    T_ij -> T_ij - W_i C_j',    T_ik -> W_i,    T_kk -> -D^-1        i, j != k,
and after all q steps T = -(A + lambda I)^-1. Cost of a step: n^2 t flops, n^2 / 2 numbers read and as many written.

Notation: n items; t side of a tile, q = n / t; T_ij, i >= j, are kept, the rest is their mirror image. Generation k of
a tile, what step k reads, is the file step-k/i-j.npy: a step never writes what it reads, so that a task that is
killed, or runs twice, gives the same bytes.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from m3rec_spark.paths import replacing
from m3rec_spark.schema import GRAM

Matrix = NDArray[np.float64]
PIVOT = "pivot"  # the file of D^-1 in a generation
SPARE = "step-spare"
_DIAGONAL_BLOCKS = 4  # a diagonal tile is updated in 10 of 16 blocks


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

    def pivot(self, step: int) -> Matrix:
        """D^-1 of the step, memory-mapped."""
        return self._load(step, PIVOT, "r")

    def _load(self, step: int, name: str, mode: Literal["r"] | None) -> Matrix:
        matrix: Matrix = np.load(self.generation(step) / f"{name}.npy", mmap_mode=mode)
        return matrix

    def panel(self, step: int, i: int) -> Matrix:
        """C_i of the step."""
        return self.open(step, i, step) if i > step else self.open(step, step, i).T

    def is_whole(self, step: int) -> bool:
        """Whether all files of a generation are there, in their full size."""
        sizes = [items.stop - items.start for items in map(self.items, range(self.count))]
        expected = {f"{i}-{j}": (sizes[i], sizes[j]) for i in range(self.count) for j in range(i + 1)}
        if step < self.count:
            expected[PIVOT] = sizes[step], sizes[step]
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
        spare = Path(self.folder) / SPARE
        shutil.rmtree(spare, ignore_errors=True)
        if self.generation(step).is_dir():
            self.generation(step).rename(spare)

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

    The one that holds the next pivot is first, since it has an inverse to make besides; then the long ones. A run makes
    its row's W anew, so that rows are cut only where a whole one would keep the other cores waiting.
    """
    longest = math.ceil(count * (count + 1) / 2 / (1.5 * cores))
    runs = []
    for row in (row for row in range(count) if row != step):
        pieces = -(-(row + 1) // longest)
        bounds = [(row + 1) * piece // pieces for piece in range(pieces + 1)]
        runs += [Run(row, first, last) for first, last in itertools.pairwise(bounds)]

    def order(run: Run) -> tuple[bool, int, int, int]:
        makes_pivot = run.row == step + 1 and run.last == run.row + 1
        return not makes_pivot, run.first - run.last, run.row, run.first

    return [*sorted(runs, key=order), Run(step, step, step + 1)]


def sweep_run(tiles: Tiles, step: int, run: Run) -> int:
    """Step `step` on the tiles of a run. The run with the diagonal also writes its row's panel tile and the next pivot.

    Memory: three tiles, and what is mapped.

    Returns:
        -1, or the item at which the next pivot, and so A + lambda I, is not positive definite.
    """
    i, k = run.row, step
    inverse = tiles.pivot(k)
    if i == k:
        tiles.save(k + 1, f"{k}-{k}", -inverse)
        return -1
    W = product(1.0, tiles.panel(k, i), inverse) if i > k else product(1.0, inverse, tiles.panel(k, i).T).T
    for j in range(run.first, run.last):
        if j not in (i, k):
            tiles.save(k + 1, f"{i}-{j}", product(-1.0, W, tiles.panel(k, j).T, tiles.read(k, i, j)))
    if run.last <= i:
        return -1
    tiles.save(k + 1, *((f"{i}-{k}", W) if i > k else (f"{k}-{i}", W.T)))
    updated = subtract_symmetric(tiles.read(k, i, i), W, tiles.panel(k, i))
    tiles.save(k + 1, f"{i}-{i}", updated)
    return save_pivot(tiles, i, updated) if i == k + 1 else -1


def save_pivot(tiles: Tiles, step: int, pivot: Matrix) -> int:
    """Writes D^-1 of a step; gives -1, or the item at which D is not positive definite."""
    inverse, failing = invert(pivot)
    if failing < 0:
        tiles.save(step, PIVOT, inverse)
    return failing if failing < 0 else step * tiles.side + failing


def product(alpha: float, left: Matrix, right: Matrix, plus: Matrix | None = None) -> Matrix:
    """Gives alpha left right + plus, in the memory of plus and in Fortran order, without a copy of the factors.

    BLAS takes the transpose of an array in C order for one in Fortran order.
    """
    (a, trans_a), (b, trans_b) = ((m, 0) if m.flags.f_contiguous else (m.T, 1) for m in (left, right))
    result: Matrix = blas.dgemm(alpha, a, b, float(plus is not None), plus, trans_a, trans_b, overwrite_c=1)
    return result


def subtract_symmetric(tile: Matrix, W: Matrix, panel: Matrix) -> Matrix:
    """In place, tile - W panel', which is symmetric: its lower half is reckoned, the upper one mirrors it exactly."""
    width = -(-len(tile) // _DIAGONAL_BLOCKS)
    for start in range(0, len(tile), width):
        columns = slice(start, start + width)
        tile[start:, columns] -= product(1.0, W[start:], panel[columns].T)
    return mirror(tile)


def mirror(tile: Matrix, block: int = 256) -> Matrix:
    """Copies the lower half onto the upper, in place."""
    for start in range(0, len(tile), block):
        stop = start + block
        tile[start:stop, stop:] = tile[stop:, start:stop].T
        corner = tile[start:stop, start:stop]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
    return tile


def invert(pivot: Matrix) -> tuple[Matrix, int]:
    """D^-1 of the lower half of D by Cholesky, exactly symmetric; and -1, or the row at which that fails."""
    factor, minor = lapack.dpotrf(pivot, lower=1, clean=0)
    if minor:
        return factor, minor - 1
    inverse = mirror(lapack.dpotri(factor, lower=1, overwrite_c=1)[0])
    bad = np.flatnonzero(~np.isfinite(inverse).all(axis=0))
    return inverse, int(bad[0]) if len(bad) else -1


def load_column(tiles: Tiles, gram_folder: str, lambda_f: float, weights: Matrix, j: int) -> int:
    """Generation 0 of tile column j, T_ij = A_ij + lambda [i = j], from the cells of its items only.

    Memory: t x n numbers, and a batch of the Gram.

    Returns:
        As `save_pivot` of the first step, if j = 0; else -1.
    """
    items = tiles.items(j)
    lower = np.zeros((tiles.n_items - items.start, items.stop - items.start), order="F")
    flat = lower.reshape(-1, order="F")  # a view
    for item_a, item_b, values in _weighted_cells(gram_folder, items, weights):
        cells = (item_a - items.start) * np.int64(len(lower)) + (item_b - items.start)
        np.add.at(flat, cells, values)
    corner = mirror(np.asfortranarray(lower[: lower.shape[1]]))
    corner[np.diag_indices(len(corner))] += lambda_f
    tiles.save(0, f"{j}-{j}", corner)
    for i in range(j + 1, tiles.count):
        tiles.save(0, f"{i}-{j}", np.asfortranarray(lower[(i - j) * tiles.side : (i - j + 1) * tiles.side]))
    return save_pivot(tiles, 0, corner) if j == 0 else -1


def _weighted_cells(gram_folder: str, items: slice, weights: Matrix) -> Iterator[tuple[Any, Any, Matrix]]:
    """Batches (item_a, item_b, w_m count) of the upper half with item_a among `items`."""
    gram, item_a, market = ds.dataset(gram_folder, format="parquet"), ds.field("item_a"), ds.field("market")
    of_items = (item_a >= items.start) & (item_a < items.stop)
    exact = (weights == np.floor(weights)).all()  # whole numbers add up to the same in any order
    for part in [of_items] if exact else [of_items & (market == m) for m in range(len(weights))]:
        for batch in gram.to_batches(columns=GRAM.fieldNames(), filter=part, use_threads=False):
            markets, a, b, count = (column.to_numpy() for column in batch.columns)
            yield a, b, weights[markets] * count
