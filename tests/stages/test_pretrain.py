"""The pretrain stage on a small hand-made workspace: what it publishes, and that it refuses before it computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from pyspark.sql import SparkSession
from small_workspace import publish, publish_random_shop, publish_shop

from m3rec_spark.config import load
from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.errors import CapacityError, DataError, UsageError
from m3rec_spark.schema import TABLES
from m3rec_spark.similarity import capacity
from m3rec_spark.similarity.gram import cells_by_market
from m3rec_spark.similarity.market_rows import market_rows
from m3rec_spark.similarity.similarity_table import similarity_matrix
from m3rec_spark.similarity.solvers import Machine
from m3rec_spark.similarity.two_steps import task_bytes, two_steps
from m3rec_spark.similarity.walk_graph import graph_bytes
from m3rec_spark.similarity.walks import walk_matrix
from m3rec_spark.stages import linear, pretrain, solve, walk
from m3rec_spark.stages.context import Context
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.runs import Tracker

KEY = "a" * 64
SETTINGS = [
    "ease.lambda_f=2", "ease.epsilon=0.05", "ease.tile=16", "gram.pairs_per_task=60", "walks.per_item=4",
    "walks.length=6", "skipgram.dimension=8", "skipgram.shared=16", "skipgram.batch_walks=32", "skipgram.epochs=2",
    "train.device=cpu",
]  # fmt: skip


class Recorder(Tracker):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, list[float]] = {}

    def metrics(self, values: Any, step: int | None = None) -> None:
        for name, value in values.items():
            self.logged.setdefault(name, []).append(value)


def run(workspace: Workspace, *overrides: str) -> Recorder:
    tracker = Recorder()
    if workspace.manifest("candidates") is None:
        held = workspace.read_arrow("interactions").filter(pc.field("split") == "valid").to_pylist()
        arrays = open_arrays(workspace.folder("arrays"))
        other = [int(arrays.slot_items[start]) for start in arrays.slot_offsets[:-1]]
        rows = [(row["market"], row["user"], row["item"], "valid", False, [other[row["market"]]]) for row in held]
        publish(workspace, "candidates", rows)
    pretrain.run(Context(load(overrides=[*SETTINGS, *overrides]), workspace, tracker, KEY))
    return tracker


@pytest.fixture(scope="module")
def done(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Recorder]:
    workspace = publish_random_shop(tmp_path_factory.mktemp("pretrain"))
    return workspace, run(workspace)


def train_matrix(workspace: Workspace) -> np.ndarray:
    arrays = open_arrays(workspace.folder("arrays"))
    X = np.zeros((arrays.n_rows, arrays.n_items))
    X[np.repeat(np.arange(arrays.n_rows), np.diff(arrays.indptr)), arrays.items] = 1
    return X


def test_everything_is_published(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    tables = [name for name, table in TABLES.items() if table.stage == "pretrain"]
    assert tables == ["gram", "ease", "linear", "similarity", "walks", "item_vectors"]
    assert [workspace.state(name, KEY) for name in tables] == ["fresh"] * 6


def test_gram_counts_train_pairs_only(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    X = train_matrix(workspace)
    gram = workspace.read_arrow("gram")
    found = np.zeros((X.shape[1], X.shape[1]))
    np.add.at(found, (gram["item_a"].to_numpy(), gram["item_b"].to_numpy()), gram["count"].to_numpy())
    np.testing.assert_array_equal(found, np.triu(X.T @ X))
    assert len(set(gram["market"].to_pylist())) == 3


def test_linear_models_are_eq_2_on_the_weighted_grams(done: tuple[Workspace, Recorder]) -> None:
    """The slope of the objective is 0 where an entry is positive, and not negative elsewhere; for every omega."""
    workspace, _ = done
    arrays, X, settings = open_arrays(workspace.folder("arrays")), train_matrix(workspace), load().linear
    rows = np.repeat(np.arange(3), np.diff(arrays.user_offsets))
    for number, others in enumerate(settings.others):
        for market in range(3):
            items = arrays.slot_items[arrays.market_slots(market)]
            heard = X[:, items] * np.sqrt(np.where(rows == market, 1.0, others))[:, None]
            A, folder = heard.T @ heard, workspace.folder("linear") / f"others-{number:02d}"
            B = market_rows(str(folder), market)(np.arange(len(items))).toarray().astype(float)
            slope = 2 * (A @ B - A) + settings.l1 + 2 * settings.l2 * B
            np.fill_diagonal(slope, 0)
            assert (np.diag(B) == 0).all()
            assert B.min() >= 0
            assert np.abs(slope[B > 0]).max(initial=0) < 0.02  # entries rest within 1e-4
            assert slope.min() > -0.02
    report = json.loads((workspace.root / pretrain.REPORT).read_text())
    assert report["linear_restless"] == 0
    assert report["linear_entries"] > 0


def test_walks_of_two_steps_are_those_of_the_arrays(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    arrays, settings, entries = open_arrays(workspace.folder("arrays")), load().linear, 0
    for market in range(3):
        P = two_steps(arrays, market, settings.walk_neighbours, settings.walk_beta)
        found = market_rows(str(workspace.folder("linear") / "walks"), market)(np.arange(P.shape[0]))
        assert (found != P).nnz == 0
        entries += P.nnz
    assert json.loads((workspace.root / pretrain.REPORT).read_text())["walk_entries"] == entries > 0


def by_hand(workspace: Workspace, market_weights: dict[int, float] | None = None) -> np.ndarray:
    """B of eq. 4 for lambda 2, by the definition."""
    arrays = open_arrays(workspace.folder("arrays"))
    X = train_matrix(workspace)
    for market, weight in (market_weights or {}).items():
        X[arrays.user_offsets[market] : arrays.user_offsets[market + 1]] *= np.sqrt(weight)
    C = np.linalg.inv(X.T @ X + 2.0 * np.eye(X.shape[1]))
    B = -C / np.diag(C)
    np.fill_diagonal(B, 0)
    return B


def assert_ease_is(workspace: Workspace, B: np.ndarray) -> None:
    arrays = open_arrays(workspace.folder("arrays"))
    for market in range(arrays.n_markets):
        items = arrays.slot_items[arrays.market_slots(market)]
        found = market_rows(str(workspace.folder("ease")), market)(np.arange(len(items)))
        np.testing.assert_allclose(found, B[np.ix_(items, items)], atol=1e-7)  # stored as float32


def b_glob(workspace: Workspace) -> np.ndarray:
    n_items = open_arrays(workspace.folder("arrays")).n_items
    return similarity_matrix(workspace.read_arrow("similarity"), n_items).toarray()


def test_ease_is_eq_4(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    assert_ease_is(workspace, by_hand(workspace))
    header = json.loads((workspace.folder("ease") / "ease.json").read_text())
    assert (header["lambda_f"], header["n_items"]) == (2.0, 31)
    assert 0 <= header["certificate"] < 1e-10


@pytest.mark.parametrize("solver", ["driver", "markets", "sweep"])
def test_every_exact_solver_publishes_the_same(
    spark: SparkSession, done: tuple[Workspace, Recorder], tmp_path: Path, solver: str
) -> None:
    workspace = publish_random_shop(tmp_path)
    run(workspace, f"ease.solver={solver}")
    report = json.loads((workspace.root / pretrain.REPORT).read_text())
    assert report["solver"] == solver
    assert report["certificate"] < 1e-10
    assert_ease_is(workspace, by_hand(workspace))
    np.testing.assert_allclose(b_glob(workspace), b_glob(done[0]), atol=1e-7)
    assert not list(workspace.root.glob("_resumable/*/*"))


def test_neighbourhood_with_all_items_is_exact(
    spark: SparkSession, done: tuple[Workspace, Recorder], tmp_path: Path
) -> None:
    """With fewer neighbours than items that co-occur it is another B, and says so."""
    workspace = publish_random_shop(tmp_path)
    run(workspace, "ease.solver=neighbourhood", "ease.neighbours=3")
    report = json.loads((workspace.root / pretrain.REPORT).read_text())
    found = report["neighbourhood"]
    assert found["entries"] <= 3 * 31
    kept, exact = b_glob(workspace) > 0, b_glob(done[0]) > 0
    assert found["support_overlap"] == pytest.approx((kept & exact).sum() / (kept | exact).sum(), abs=1e-3)
    assert 0 < found["ndcg_10"] != found["ndcg_10_exact"] > 0
    assert "certificate" not in report
    assert np.abs(b_glob(workspace) - b_glob(done[0])).max() > 0.01
    assert (b_glob(workspace) > 0).sum(axis=0).max() <= 3


def test_markets_weigh_as_told(spark: SparkSession, tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path)  # markets in the order of their ids: a, b, ü
    run(workspace, "gram.weights={b: 4.0, ü: 0.25}")
    assert_ease_is(workspace, by_hand(workspace, {1: 4.0, 2: 0.25}))


def test_an_unknown_market_in_the_weights_is_named(spark: SparkSession, tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path)
    with pytest.raises(UsageError, match=r"gram.weights names market 'B', which does not exist. Did you mean 'b'"):
        run(workspace, "gram.weights={B: 2.0}")
    assert workspace.manifest("gram") is None


def test_single_precision_is_near_and_reports_its_error(spark: SparkSession, tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path)
    run(workspace, "ease.solver=driver", "ease.precision=float32")
    certificate = json.loads((workspace.root / pretrain.REPORT).read_text())["certificate"]
    assert 1e-9 < certificate < 1e-3
    arrays = open_arrays(workspace.folder("arrays"))
    items = arrays.slot_items[arrays.market_slots(0)]
    found = market_rows(str(workspace.folder("ease")), 0)(np.arange(len(items)))
    np.testing.assert_allclose(found, by_hand(workspace)[np.ix_(items, items)], atol=1e-4)


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's B from here on, off by 0.01."""
    whole = solve.ease.solve
    monkeypatch.setattr(solve.ease, "solve", lambda gram, ridge: whole(gram, ridge) + 0.01 * (1 - np.eye(len(gram))))


def test_a_wrong_solution_is_not_published(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = publish_random_shop(tmp_path)
    wrong(monkeypatch)
    with pytest.raises(DataError, match=r"not at its optimum.*raise ease.lambda_f or set ease.precision=float64"):
        run(workspace, "ease.solver=driver")
    assert [workspace.manifest(name) for name in ("ease", "similarity")] == [None, None]


def test_a_refused_solution_leaves_the_tables_before_it(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under --force, with the same key: the next run would take what it finds for fresh."""
    workspace = publish_random_shop(tmp_path)
    run(workspace, "ease.solver=markets")
    before = [workspace.manifest(name) for name in ("ease", "similarity")]
    wrong(monkeypatch)
    context = Context(load(overrides=[*SETTINGS, "ease.solver=driver"]), workspace, Tracker(), KEY, force=True)
    with pytest.raises(DataError, match="not at its optimum"):
        pretrain.run(context)
    assert [workspace.manifest(name) for name in ("ease", "similarity")] == before


def test_a_resumed_run_needs_no_more_than_what_is_left(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EASE and the walks are there: neither their memory nor their disk is asked for again."""
    workspace = publish_random_shop(tmp_path)
    run(workspace)
    report = json.loads((workspace.root / pretrain.REPORT).read_text())
    for file in (workspace.root / "item_vectors").glob("manifest.json"):
        file.unlink()
    run(workspace, "ease.memory_gb=0.000001")
    again = json.loads((workspace.root / pretrain.REPORT).read_text())
    same = ("plan", "bytes", "task_bytes", "solver")
    assert [again[name] for name in same] == [report[name] for name in same]


def test_tiles_of_this_run_are_not_counted_twice(tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path)
    machine = Machine(2, 2, 10**9, 10**9, disk_bytes=1000)
    context = Context(load(overrides=SETTINGS), workspace, Tracker(), KEY)
    folder = workspace.root / "_resumable" / "sweep" / KEY[:16]
    folder.mkdir(parents=True)
    (folder / "tile").write_bytes(bytes(500))
    assert solve._with_own_tiles(context, machine).disk_bytes == 1500


def test_force_begins_the_sweep_anew(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And tiles from which it cannot go on are not kept."""
    workspace = publish_random_shop(tmp_path)
    context = Context(load(overrides=[*SETTINGS, "ease.solver=sweep"]), workspace, Tracker(), KEY, force=True)
    left = workspace.root / "_resumable" / "sweep" / KEY[:16]
    left.mkdir(parents=True)
    (left / "bad tile").touch()
    seen: list[bool] = []

    def fails(spark: Any, gram: Any, folder: Path, *_: Any) -> None:
        seen.append((folder / "bad tile").exists())
        raise DataError("not positive definite")

    monkeypatch.setattr(solve.sweep, "sweep", fails)
    with pytest.raises(DataError, match="not positive definite"):
        pretrain.run(context)
    assert seen == [False]
    assert not (workspace.root / "_resumable" / "sweep").exists()


def test_walk_biases_out_of_bounds_are_refused_at_once() -> None:
    for name in ("return_p", "inout_q"):
        for value in (0, 0.009, 101, 1000):
            with pytest.raises(UsageError, match=f"walks.{name}"):
                load(overrides=[f"walks.{name}={value}"])


def test_a_cap_is_told(spark: SparkSession, tmp_path: Path) -> None:
    grams = {}
    for seed in ("gram.seed=42", "walks.seed=43", "gram.seed=43"):
        workspace = publish_random_shop(tmp_path / seed)
        lengths = np.diff(open_arrays(workspace.folder("arrays")).indptr)
        run(workspace, "gram.max_history=3", seed)
        report = json.loads((workspace.root / pretrain.REPORT).read_text())
        assert report["capped"] == {"users": int((lengths > 3).sum()), "pairs": int(np.maximum(lengths - 3, 0).sum())}
        grams[seed] = workspace.read_arrow("gram")
        kept = np.minimum(lengths, 3)
        assert pc.sum(grams[seed]["count"]).as_py() == (kept * (kept + 1) // 2).sum()
    assert grams["gram.seed=42"] == grams["walks.seed=43"] != grams["gram.seed=43"]


def test_what_an_interrupted_run_published_is_kept(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And what the report says of it is what an undisturbed run says."""
    cap = ["gram.max_history=3", "ease.solver=sweep", "ease.memory_gb=2"]  # the plan names the memory
    workspace = publish_random_shop(tmp_path / "killed")
    caplog.set_level("INFO")

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pretrain.skipgram, "fit_item_vectors", dies)
        with pytest.raises(KeyboardInterrupt):
            run(workspace, *cap)
    (workspace.root / "_resumable" / "sweep" / "of-another-solver").mkdir(parents=True)
    before = {name: workspace.manifest(name) for name in ("gram", "ease", "similarity", "walks")}
    assert all(before.values())
    assert workspace.manifest("item_vectors") is None
    caplog.clear()
    run(workspace, *cap)
    assert {name: workspace.manifest(name) for name in before} == before
    assert workspace.manifest("item_vectors") is not None
    kept = json.loads((workspace.root / pretrain.REPORT).read_text())
    assert "Gram: approximate, gram.max_history=3 left out" in caplog.text
    assert not (workspace.root / "_resumable" / "sweep").exists()
    undisturbed = publish_random_shop(tmp_path / "undisturbed")
    run(undisturbed, *cap)
    whole = json.loads((undisturbed.root / pretrain.REPORT).read_text())
    assert {"capped", "gram_cells", "solver", "certificate", "weights_error", "walks", "walk_engine"} <= set(kept)
    assert {name: value for name, value in kept.items() if name != "seconds"} == {
        name: value for name, value in whole.items() if name != "seconds"
    }


def test_both_walk_engines_publish_the_same(
    spark: SparkSession, done: tuple[Workspace, Recorder], tmp_path: Path
) -> None:
    workspace = publish_random_shop(tmp_path)
    run(workspace, "walks.engine=partitioned")
    assert json.loads((workspace.root / pretrain.REPORT).read_text())["walk_engine"] == "partitioned"
    tables = [walk_matrix(one.read_arrow("walks")).tobytes() for one in (workspace, done[0])]
    assert tables[0] == tables[1]
    with pytest.raises(UsageError, match=r"walks.return_p=4 and walks.inout_q=1 need the whole graph.*engine=auto"):
        run(publish_random_shop(tmp_path / "another"), "walks.engine=partitioned", "walks.return_p=4")


def test_the_graph_is_mapped_where_it_fits_in_a_worker(tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path)
    context = Context(load(overrides=SETTINGS), workspace, Tracker(), KEY)
    arrays = open_arrays(workspace.folder("arrays"))
    size = graph_bytes(len(arrays.slots), arrays.n_items, arrays.n_rows)
    of_items = graph_bytes(0, arrays.n_items, 0)

    def engine(worker_bytes: int, task_bytes: int = 2 * of_items + 2) -> str:
        return walk.plan(context, arrays, Machine(2, 2, size, task_bytes, worker_bytes))[0]

    assert engine(size) == "broadcast"  # though no task may take that much
    assert engine(size - 1) == "partitioned"
    with pytest.raises(CapacityError, match=rf"holds {of_items:,} bytes for the 31 items.*pyspark.memory"):
        engine(size - 1, task_bytes=2 * of_items)


def test_plan_says_what_would_run(spark: SparkSession, tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path)
    text = pretrain.plan(Context(load(overrides=SETTINGS), workspace, Tracker(), KEY))
    assert "EASE: 31 items in 3 markets" in text
    assert text.count("<- chosen") == 1
    assert "walks 0.00 GB" in text
    assert workspace.manifest("gram") is None


def test_similarity_is_eq_7(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    weights = by_hand(workspace)
    kept = np.where(weights >= 0.05, weights, 0)
    sums = kept.sum(axis=1, keepdims=True)
    expected = np.divide(kept, sums, out=np.zeros_like(kept), where=sums > 0)
    found = similarity_matrix(workspace.read_arrow("similarity"), len(weights)).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (sums == 0).any()  # the item that was never sold


def test_walks_step_on_edges(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    X = train_matrix(workspace)
    A = X.T @ X - np.diag(X.sum(axis=0))
    walks = walk_matrix(workspace.read_arrow("walks"))
    assert walks.shape == (4 * (A.sum(axis=1) > 0).sum(), 6)
    assert (A[walks[:, :-1], walks[:, 1:]] > 0).all()


def test_vectors_of_walked_items_only(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    X = train_matrix(workspace)
    neighbours = (X.T @ X).sum(axis=1) - X.sum(axis=0)
    table = workspace.read_arrow("item_vectors")
    assert table["item"].to_pylist() == np.flatnonzero(neighbours).tolist()
    vectors = np.array(table["vector"].to_pylist())
    assert vectors.shape == (len(table), 8)
    assert np.isfinite(vectors).all()


def test_report_and_metrics(done: tuple[Workspace, Recorder]) -> None:
    workspace, tracker = done
    report = json.loads((workspace.root / pretrain.REPORT).read_text())
    assert report["items_without_neighbour"] == report["items"] - report["item_vectors"] == 1
    assert report["gram_cells"] == len(workspace.read_arrow("gram"))
    assert report["similarity_entries"] == len(workspace.read_arrow("similarity"))
    assert report["similarity_empty_rows"] >= 1
    assert report["walks"] == 4 * report["item_vectors"]
    assert report["skipgram_losses"] == tracker.logged["skipgram/loss"]
    assert len(report["skipgram_losses"]) == 2
    assert report["skipgram_auc"] == tracker.logged["skipgram/auc"]
    assert all(0 < auc < 1 for auc in report["skipgram_auc"])
    assert set(report["seconds"]) == {*report["bytes"], *report["task_bytes"]}
    assert set(report["bytes"]) == {"gram", "ease", "walks", "skipgram"}
    assert set(report["task_bytes"]) == {"linear"}
    assert tracker.logged["pretrain/ease_seconds"] == [report["seconds"]["ease"]]
    assert not list((workspace.root / "_scratch").iterdir())


def test_skip_gram_is_given_the_degrees_over_all_markets(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item's row sum of A off the diagonal; with self-loops, the diagonal too."""
    seen: list[np.ndarray] = []

    def dies(_: Any, __: Any, degrees: np.ndarray, **___: Any) -> None:
        seen.append(degrees)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain.skipgram, "fit_item_vectors", dies)
    for loops in ("false", "true"):
        workspace = publish_random_shop(tmp_path / loops)
        with pytest.raises(KeyboardInterrupt):
            run(workspace, f"walks.self_loops={loops}")
    arrays = open_arrays(workspace.folder("arrays"))
    X = np.zeros((arrays.n_rows, arrays.n_items), np.int64)
    X[np.repeat(np.arange(arrays.n_rows), np.diff(arrays.indptr)), arrays.items] = 1
    A = X.T @ X
    assert seen[0].tolist() == (A.sum(axis=1) - A.diagonal()).tolist()
    assert seen[1].tolist() == A.sum(axis=1).tolist()


def test_same_again(spark: SparkSession, done: tuple[Workspace, Recorder], tmp_path: Path) -> None:
    """Another workspace, other tasks: the same content."""
    workspace, other = done[0], publish_random_shop(tmp_path)
    run(other, "gram.pairs_per_task=1000000")
    for name in ("similarity", "item_vectors"):
        assert other.read_arrow(name).equals(workspace.read_arrow(name))
    assert walk_matrix(other.read_arrow("walks")).tobytes() == walk_matrix(workspace.read_arrow("walks")).tobytes()


def test_too_large_a_catalogue_is_refused_before_anything_runs(spark: SparkSession, tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path)
    with pytest.raises(CapacityError, match=r"no exact solver.*driver: needs [\d,]+ bytes.*take 1,000.*min_item_users"):
        run(workspace, "ease.memory_gb=0.000001")
    assert workspace.manifest("gram") is None


def test_a_transpose_that_does_not_fit_is_refused(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = publish_random_shop(tmp_path)
    pairs = len(open_arrays(workspace.folder("arrays")).slots)
    monkeypatch.setattr(capacity, "free_bytes", lambda *_: 8 * pairs)
    with pytest.raises(CapacityError, match=rf"the Gram's transpose of {pairs} pairs needs"):
        run(workspace, "ease.memory_gb=2")
    assert workspace.manifest("gram") is None


def test_skip_gram_is_planned_anew_with_the_entries_of_b_glob(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[int] = []
    monkeypatch.setattr(pretrain.skipgram, "plan", lambda *given: entries.append(given[-1]) or 0)
    for smooth in ("true", "false"):
        workspace = publish_random_shop(tmp_path / smooth)
        run(workspace, f"skipgram.smooth={smooth}")
    assert entries == [0, len(workspace.read_arrow("similarity")), 0, 0]


def test_linear_models_that_do_not_fit_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    """The walks before the first step; the models once the Gram is counted, and how to make them smaller is told."""
    workspace = publish_random_shop(tmp_path)
    arrays = open_arrays(workspace.folder("arrays"))
    context = Context(load(overrides=SETTINGS), workspace, Tracker(), KEY)
    walks = task_bytes(arrays, 50)
    with pytest.raises(CapacityError, match=rf"two steps need {walks:,} bytes.*take {walks - 1:,}.*walk_neighbours=0"):
        linear.plan(context, arrays, Machine(2, 2, 10**9, walks - 1))
    assert linear.plan(context, arrays, Machine(2, 2, 10**9, walks)) >= walks  # not counted yet: nothing refused
    run(workspace)
    assert linear.plan(context, arrays, Machine(2, 2, 10**9, 1)) >= walks  # the table is there: nothing is refused
    (workspace.root / "linear" / "manifest.json").unlink()
    cells = cells_by_market(workspace.folder("gram"), arrays.n_markets)
    assert cells.tolist() == np.bincount(workspace.read_arrow("gram")["market"].to_numpy()).tolist()
    alone = 96 * cells.max()
    context = Context(load(overrides=[*SETTINGS, "linear.walk_neighbours=0"]), workspace, Tracker(), KEY)
    with pytest.raises(CapacityError, match=rf"linear models need up to [\d,]+ bytes.*others=\[0.0\].*\({alone:,} by"):
        linear.plan(context, arrays, Machine(2, 2, 10**9, int(alone)))
    context = Context(
        load(overrides=[*SETTINGS, "linear.walk_neighbours=0", "linear.others=[0.0]"]), workspace, Tracker(), KEY
    )
    assert linear.plan(context, arrays, Machine(2, 2, 10**9, int(alone))) == alone


def test_no_two_items_of_a_user(tmp_path: Path) -> None:
    workspace = publish_shop(tmp_path, [("M1", "x", "a"), ("M1", "y", "b"), ("M2", "x", "a")])
    with pytest.raises(DataError, match="no user has two items"):
        run(workspace)
    assert workspace.manifest("gram") is None
