from __future__ import annotations

import json
import logging
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from m3rec_spark.errors import CapacityError, DataError, UsageError
from m3rec_spark.similarity import sweep as module
from m3rec_spark.similarity import sweep_tiles
from m3rec_spark.similarity.certificate import certificate
from m3rec_spark.similarity.sweep import SweptWeights, sweep
from m3rec_spark.similarity.sweep_tiles import Run, Tiles, load_column, runs_of_step, save_ahead, sweep_run

LAMBDA = 2.5


def shop(n_items: int, n_markets: int = 2, seed: int = 0) -> np.ndarray:
    """(markets, n, n) Grams of random 0/1 interactions; the last item but one has no users."""
    X = np.random.default_rng(seed).random((n_markets, 40, n_items)) < 0.3
    X[:, :, -2:-1] = False
    return np.einsum("mui,muj->mij", X.astype(np.int64), X.astype(np.int64))


def write_gram(grams: np.ndarray, folder: Path, files: int = 3) -> Path:
    """Upper cells as the table GRAM, in files by item_a, each sorted by market, item_a, item_b."""
    folder.mkdir()
    market, item_a, item_b = np.nonzero(np.triu(grams))
    for number, items in enumerate(np.array_split(np.arange(grams.shape[1]), files)):
        of_file = np.isin(item_a, items)
        cells = [array[of_file].astype(np.int32) for array in (market, item_a, item_b, grams[market, item_a, item_b])]
        table = pa.table(dict(zip(("market", "item_a", "item_b", "count"), cells, strict=True)))
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=20)
    return folder


def reference(gram: np.ndarray, lambda_f: float = LAMBDA) -> np.ndarray:
    C = np.linalg.inv(gram + lambda_f * np.eye(len(gram)))
    B = -C / np.diagonal(C)
    np.fill_diagonal(B, 0)
    return B


def tile_bytes(folder: Path) -> dict[str, bytes]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def stopped_at(step: int) -> Callable[..., int]:
    """As the driver's commit, but it dies with the tiles of `step` written and not yet committed."""
    commit = module._commit

    def dying(tiles: Tiles, reached: int, *rest: object) -> int:
        if reached == step:
            raise KeyboardInterrupt
        return commit(tiles, reached, *rest)

    return dying


# --- kernels


def swept(folder: str, A: np.ndarray, side: int) -> np.ndarray:
    """-C by the kernels alone: loads A from a table of its cells and makes every step."""
    write_gram(np.asarray(A)[None], Path(folder) / "gram")
    tiles = Tiles(folder, len(A), side)
    for j in range(tiles.count):
        assert load_column(tiles, f"{folder}/gram", LAMBDA, np.ones(1), j) == -1
    assert tiles.count == 1 or save_ahead(tiles, 0) == -1
    for step in range(tiles.count):
        assert {sweep_run(tiles, step, run) for run in runs_of_step(tiles.count, step, cores=2)} == {-1}
    minus_C = np.full(A.shape, np.nan)
    for i in range(tiles.count):
        for j in range(i + 1):
            minus_C[tiles.items(i), tiles.items(j)] = tiles.open(tiles.count, i, j)
            minus_C[tiles.items(j), tiles.items(i)] = tiles.open(tiles.count, i, j).T
    return minus_C


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_tiles_become_the_inverse(n: int, side: int, band: int, seed: int) -> None:
    X = np.random.default_rng(seed).integers(-3, 4, (n, n))
    A = X.T @ X
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_tiles, "BAND", band)
        minus_C = swept(folder, A, side)
    np.testing.assert_allclose((A + LAMBDA * np.eye(n)) @ -minus_C, np.eye(n), atol=1e-12)
    np.testing.assert_array_equal(minus_C, minus_C.T)


def test_no_digits_are_lost_to_the_condition_number(tmp_path: Path) -> None:
    """A of rank 12, at condition 1e8: the residual is that of LAPACK. By T - (C D^-1) C' it is 1e7 times as large."""
    X = np.random.default_rng(3).integers(0, 3000, (12, 30))
    A = X.T @ X
    square = A + LAMBDA * np.eye(30)
    assert np.linalg.cond(square) > 1e8

    def residual(C: np.ndarray) -> float:
        return float(np.abs(square @ C - np.eye(30)).max() / np.abs(square).max())

    assert residual(-swept(str(tmp_path), A, 4)) < 10 * residual(np.linalg.inv(square))


def test_a_generation_by_hand(tmp_path: Path) -> None:
    """A + I = [[4, 2, 0], [2, 5, 2], [0, 2, 5]] in tiles of one number.

    L_0 = 2, Y_1 = 1, Y_2 = 0, and ahead L_1 = sqrt(5 - 1) = 2. Step 0: T_00 = -1/4, T_10 = Y_1 / L_0 = 1/2, T_20 = 0;
    the next panel Y_0 = T_10 / L_1 = 1/4 in the place of T_10 and Y_2 = (2 - 0) / 2 = 1; ahead L_2 = sqrt(5 - 1) = 2.
    """
    folder = write_gram(np.array([[[3, 2, 0], [2, 4, 2], [0, 2, 4]]]), tmp_path / "gram")
    tiles = Tiles(str(tmp_path), 3, 1)
    for j in range(3):
        load_column(tiles, str(folder), 1.0, np.ones(1), j)
    save_ahead(tiles, 0)
    read = lambda step, names: [np.load(tiles.generation(step) / f"{name}.npy").item() for name in names]  # noqa: E731
    names = ("0-0", "1-0", "2-0", "1-1", "2-1", "2-2", "ahead")
    assert read(0, names) == [2, 1, 0, 5, 2, 5, 2]
    for run in runs_of_step(3, 0, cores=1):
        sweep_run(tiles, 0, run)
    assert read(1, names) == [-0.25, 0.25, 0, 2, 1, 5, 2]


def test_a_band_may_have_more_than_two_to_the_31_numbers() -> None:
    rows, items = slice(8, 100_008), slice(8, 100_008)
    places = sweep_tiles.places(np.array([8, 100_007], np.int32), np.array([9, 100_007], np.int32), rows, items)
    assert places.tolist() == [1, 99_999 * 100_000 + 99_999]


@pytest.mark.parametrize("count", [1, 2, 7, 12])
@pytest.mark.parametrize("cores", [1, 2, 5, 64])
def test_runs_take_every_tile_once(count: int, cores: int) -> None:
    for step in range(count):
        runs = runs_of_step(count, step, cores)
        tiles = [(run.row, j) for run in runs for j in range(run.first, run.last)]
        assert sorted(tiles) == [(i, j) for i in range(count) for j in range(i + 1)]
        if step + 2 < count:
            assert (runs[0].row, runs[0].last) == (step + 2, step + 3)  # the one that makes the next factor
            assert runs[0].first <= step + 1
        lengths = [run.last - run.first for run in runs[1:]]
        assert lengths == sorted(lengths, reverse=True)


def test_rows_are_cut_for_many_cores_only() -> None:
    assert Run(11, 0, 12) in runs_of_step(12, 0, cores=2)
    assert max(run.last - run.first for run in runs_of_step(12, 0, cores=16)) <= 4  # 78 tiles on 16 cores


def test_files_of_a_retired_generation_are_written_over(tmp_path: Path) -> None:
    tiles = Tiles(str(tmp_path), 4, 2)
    tiles.save(0, "1-0", np.eye(2))
    tiles.save(0, "ahead", np.eye(2))
    tiles.generation(1).mkdir()
    inodes = [(tiles.generation(0) / f"{name}.npy").stat().st_ino for name in ("1-0", "ahead")]
    tiles.retire(0)
    tiles.save(2, "1-0", np.full((2, 2), 7.0))
    tiles.save(2, "ahead", np.ones((1, 1)))  # shorter
    assert [(tiles.generation(2) / f"{name}.npy").stat().st_ino for name in ("1-0", "ahead")] == inodes
    np.testing.assert_array_equal(tiles.open(2, 1, 0), np.full((2, 2), 7.0))
    assert (tiles.generation(2) / "ahead.npy").stat().st_size == 128 + 8
    tiles.save(2, "1-0", np.zeros((2, 2)))  # a second attempt finds none and makes a new one
    np.testing.assert_array_equal(tiles.open(2, 1, 0), np.zeros((2, 2)))


def test_a_task_of_a_step_that_is_over_publishes_nothing(tmp_path: Path) -> None:
    tiles = Tiles(str(tmp_path), 4, 2)
    tiles.save(0, "1-0", np.eye(2))
    tiles.save(1, "1-0", np.ones((2, 2)))
    tiles.retire(0)
    with pytest.raises(FileNotFoundError, match="step 0 is over"):
        tiles.save(1, "1-0", np.zeros((2, 2)))
    np.testing.assert_array_equal(tiles.open(1, 1, 0), np.ones((2, 2)))
    assert [file.name for file in tiles.generation(1).iterdir()] == ["1-0.npy"]


# --- on Spark


@pytest.fixture(scope="module")
def gram_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gram(shop(13), tmp_path_factory.mktemp("gram") / "gram")


def run(spark: SparkSession, gram: Path, folder: Path, tile: int = 3, **other: object) -> SweptWeights:
    arguments = {"n_items": 13, "lambda_f": LAMBDA, "weights": np.ones(2), "key": "k", "cores": 2, **other}
    return sweep(spark, gram, folder, tile=tile, **arguments)  # type: ignore[arg-type]


def test_two_items_by_hand(spark: SparkSession, tmp_path: Path) -> None:
    """A + I = [[3, 1], [1, 3]], C = [[3, -1], [-1, 3]] / 8, B_01 = 1/3."""
    gram = write_gram(np.array([[[2, 1], [1, 2]]]), tmp_path / "gram", files=1)
    B = sweep(spark, gram, tmp_path / "t", 2, 1.0, np.ones(1), tile=1, key="k", cores=2).rows(0, 2)
    np.testing.assert_allclose(B, [[0, 1 / 3], [1 / 3, 0]], rtol=1e-15)
    assert (np.diagonal(B) == 0).all()


@pytest.mark.parametrize("tile", [3, 5, 100])  # 5 tiles of 3 (the last has 1), 3 of 5 (3), one
def test_agrees_with_the_dense_inverse(spark: SparkSession, tmp_path: Path, gram_folder: Path, tile: int) -> None:
    weights = run(spark, gram_folder, tmp_path, tile)
    B = reference(shop(13).sum(axis=0))
    assert weights.n_items == 13
    np.testing.assert_allclose(weights.rows(0, 13), B, atol=1e-13)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(weights)).rows(4, 11), B[4:11], atol=1e-13)
    np.testing.assert_array_equal(weights.rows(11, 12), np.zeros((1, 13)))  # no users
    assert [file.name for file in tmp_path.glob("step-*")] == [f"step-{weights.tiles.count:05d}"]


def test_weighted_markets_and_their_certificate(spark: SparkSession, tmp_path: Path, gram_folder: Path) -> None:
    w = np.array([0.3, 1.7])
    B = run(spark, gram_folder, tmp_path, weights=w).rows(0, 13)
    np.testing.assert_allclose(B, reference(np.tensordot(w, shop(13), 1)), atol=1e-13)
    table = pq.read_table(gram_folder).to_batches()
    assert certificate(lambda: table, B, np.arange(13), LAMBDA, w).residual < 1e-12


def test_tiles_are_of_equal_size(spark: SparkSession, tmp_path: Path, gram_folder: Path) -> None:
    assert run(spark, gram_folder, tmp_path, tile=8).tiles.side == 7  # 7 and 6, not 8 and 5


def test_same_bytes_for_any_tasks_and_files(spark: SparkSession, tmp_path: Path) -> None:
    results = []
    for cores in (1, 3, 7):
        gram = write_gram(shop(30), tmp_path / f"gram-{cores}", files=cores)
        sweep(spark, gram, tmp_path / str(cores), 30, LAMBDA, np.array([0.3, 1.7]), tile=8, key="k", cores=cores)
        results.append(tile_bytes(tmp_path / str(cores)))
    assert len(results[0]) == 4 * 5 // 2 + 2
    assert results[0] == results[1] == results[2]


def test_goes_on_from_the_last_whole_step(
    spark: SparkSession,
    tmp_path: Path,
    gram_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(spark, gram_folder, tmp_path / "clean")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_commit", stopped_at(3))
        with pytest.raises(KeyboardInterrupt):
            run(spark, gram_folder, tmp_path / "stopped")
    assert json.loads((tmp_path / "stopped" / module.MANIFEST).read_text())["step"] == 2
    assert len(list((tmp_path / "stopped" / "step-00003").glob("*.npy"))) == 16  # what the dead driver had got so far
    with caplog.at_level(logging.INFO, logger=module.__name__):
        run(spark, tmp_path / "no gram needed", tmp_path / "stopped")
    assert "goes on after panel 2 of 5" in caplog.text
    assert tile_bytes(tmp_path / "stopped") == tile_bytes(tmp_path / "clean")


def test_a_finished_sweep_is_not_done_again(spark: SparkSession, tmp_path: Path, gram_folder: Path) -> None:
    B = run(spark, gram_folder, tmp_path).rows(0, 13)
    np.testing.assert_array_equal(run(spark, tmp_path / "no gram needed", tmp_path).rows(0, 13), B)


def test_other_arguments_start_anew(spark: SparkSession, tmp_path: Path, gram_folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_commit", stopped_at(2))
        with pytest.raises(KeyboardInterrupt):
            run(spark, gram_folder, tmp_path)
    (tmp_path / "notes.txt").write_text("not ours")
    weights = run(spark, gram_folder, tmp_path, lambda_f=7.0)
    np.testing.assert_allclose(weights.rows(0, 13), reference(shop(13).sum(axis=0), 7.0), atol=1e-13)
    assert (tmp_path / "notes.txt").is_file()


@pytest.fixture
def stopped(tmp_path: Path) -> Tiles:
    """Generation 1 of tiles of 5, 5 and 3, committed; a part of generation 2."""
    tiles = Tiles(str(tmp_path), 13, 5)
    tiles.generation(0).mkdir()
    for name in ("0-0", "1-0", "1-1"):
        tiles.save(1, name, np.eye(5))
        tiles.save(2, name, np.eye(5))
    for name, shape in {"2-0": (3, 5), "2-1": (3, 5), "2-2": (3, 3), "ahead": (3, 3)}.items():
        tiles.save(1, name, np.zeros(shape))
    module._commit(tiles, 1, -1, IDENTITY)
    return tiles


IDENTITY = {"n": 13, "side": 5, "lambda_f": LAMBDA, "weights": [1.0, 1.0], "key": "k"}


def test_resumes_what_is_whole(stopped: Tiles) -> None:
    assert module._resume(stopped, IDENTITY) == 1
    assert [folder.name for folder in Path(stopped.folder).glob("step-*")] == ["step-00001"]


@pytest.mark.parametrize("other", [{"lambda_f": 7.0}, {"key": "x"}, {"weights": [1.0, 2.0]}, {"side": 4}, {"n": 14}])
def test_resumes_no_other_arguments(stopped: Tiles, other: dict) -> None:
    assert module._resume(stopped, IDENTITY | other) == -1
    assert not list(Path(stopped.folder).iterdir())


@pytest.mark.parametrize("name", ["2-1", "ahead"])
@pytest.mark.parametrize("damage", ["missing", "short", "of another shape"])
def test_resumes_no_damaged_tiles(stopped: Tiles, name: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    file = stopped.generation(1) / f"{name}.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        np.save(file, np.zeros((2, 2)))
    assert module._resume(stopped, IDENTITY) == -1
    assert not list(Path(stopped.folder).iterdir())
    assert "from the start" in caplog.text


def test_resumes_no_damaged_manifest(stopped: Tiles) -> None:
    for text in ("{", "{}"):
        (Path(stopped.folder) / module.MANIFEST).write_text(text)
        assert module._whole_generation(stopped, IDENTITY) == -1


@pytest.mark.parametrize("item", [1, 12])  # in the first pivot, which the loading inverts, and in the last
def test_names_the_item_that_is_not_positive_definite(spark: SparkSession, tmp_path: Path, item: int) -> None:
    A = np.diag(np.full(13, 4))
    A[item, 0] = A[0, item] = 9  # (4 + 2.5)^2 < 9^2
    gram = write_gram(A[None], tmp_path / "gram")
    with pytest.raises(DataError, match=rf"at item {item}\b"):
        run(spark, gram, tmp_path / "t", weights=np.ones(1))


def test_refuses_what_it_cannot_do(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for lambda_f in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(UsageError, match="lambda_f"):
            run(spark, tmp_path, tmp_path / "t", lambda_f=lambda_f)
    for weight in (0.0, np.nan, np.inf):
        with pytest.raises(UsageError, match="weights"):
            run(spark, tmp_path, tmp_path / "t", weights=np.array([1.0, weight]))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CapacityError, match=r"1,808 bytes.*1,000 are free"):  # 8 * 13 * 16 + 2 * 8 * 9
        run(spark, tmp_path, tmp_path / "t")


def test_the_driver_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=module.__name__):
        assert list(module._with_progress(range(2, 5))) == [2, 3, 4]
    lines = [record.message.split(",")[0] for record in caplog.records]
    assert lines == ["sweep: panel 3 of 5", "sweep: panel 4 of 5", "sweep: panel 5 of 5"]
