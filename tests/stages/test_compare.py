"""The comparison on a small generated shop, by the real stages."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from scipy import sparse
from sklearn.linear_model import ElasticNet

from m3rec_spark.cli import main
from m3rec_spark.config import Config, load
from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.errors import CapacityError, DataError, UsageError
from m3rec_spark.evaluation.metrics import metrics_by_market
from m3rec_spark.evaluation.ranks import rank_users
from m3rec_spark.evaluation.validation import mean_ndcg
from m3rec_spark.models.catalogue import GRAPH_MODELS, PAIR_MODELS
from m3rec_spark.ranking.scorers import EaseScorer, PopularityScorer
from m3rec_spark.schema import CANDIDATES
from m3rec_spark.similarity.market_linear import others_folder
from m3rec_spark.stages import compare, compare_runs
from m3rec_spark.stages.compare_runs import Run, bench_of, select_by_market, train_run
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.pipeline import after, run_stages
from m3rec_spark.stages.systems import SYSTEMS
from m3rec_spark.tables import Workspace

MODELS = ["popularity", "lightgcn", "neumf", "slim", "ease", "ease_per_market", "m3rec", "m3rec_without_both"]
SETTINGS = [
    "source.format=demo", "demo.scale=0.03", "demo.groups=4", "candidates.negatives=40", "tracking.enabled=false",
    "walks.per_item=2", "walks.length=8", "skipgram.dimension=8", "skipgram.epochs=1", "skipgram.batch_walks=64",
    "skipgram.shared=32", "train.epochs=2", "train.batch_size=256", "train.shared_negatives=32", "train.device=cpu",
    f"compare.models={MODELS}", "compare.seeds=2", "compare.trials=2", "compare.trial_seconds=60",
    "compare.run_seconds=60", "compare.epochs=2",
]  # fmt: skip


def configured(*more: str) -> Config:
    return load(None, [*SETTINGS, *more])


@pytest.fixture(scope="module")
def compared(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("compare"))
    run_stages(("prepare", "pretrain"), configured(), workspace)
    after("pretrain", "compare", configured(), workspace, compare.run)
    return workspace


def report_of(workspace: Workspace) -> dict:
    return json.loads((workspace.root / compare.REPORT).read_text(encoding="utf-8"))


def test_the_report_has_all_systems_and_both_contracts(compared: Workspace) -> None:
    report = report_of(compared)
    assert [one["name"] for one in report["contracts"]] == ["standard", "paper-like"]
    assert report["contracts"][0]["sha256"] != report["contracts"][1]["sha256"]
    seeds = {(row["model"], row["contract"]): row["seeds"] for row in report["means"]}
    assert {model for model, _ in seeds} == set(MODELS)
    assert {model for model, contract in seeds if seeds[model, contract] == 1} == {
        "popularity", "slim", "ease", "ease_per_market",
    }  # fmt: skip
    assert {row["split"] for row in report["means"]} == {"test"}  # nothing else is ranked
    assert all(0 <= row["value"] <= 1 for row in report["means"])
    assert {test["other"] for test in report["tests"]} == set(MODELS) - {"m3rec"}
    assert {row["kind"] for row in report["groups"]} == {"item", "popularity", "history"}


def test_every_contract_has_its_own_lists_and_ranks(compared: Workspace, spark: SparkSession) -> None:
    """Against the ranks of a system under one contract at a time."""
    (other,) = compared.root.glob("compare/candidates-included-*")
    given = {
        "standard": (compared.read(spark, "candidates"), "excluded"),
        "paper-like": (spark.read.schema(CANDIDATES).parquet(str(other)), "included"),
    }
    names = dict(enumerate(compared.read_arrow("markets")["market_id"].to_pylist()))
    rows = [row for row in report_of(compared)["rows"] if row["model"] == "popularity"]
    for contract, (lists, seen) in given.items():
        test = lists.filter("half = 'test'")
        ranks = rank_users(test, [PopularityScorer()], compared.folder("arrays"), 64, seen)
        for wanted in metrics_by_market(ranks, names):
            same = {"market": wanted["market"], "metric": wanted["metric"], "split": "test", "contract": contract}
            if wanted["split"] == "test":
                (found,) = (row for row in rows if same.items() <= row.items())
                assert (found["value"], found["n"]) == (pytest.approx(wanted["value"]), wanted["n"])


def test_means_are_those_of_the_seeds(compared: Workspace) -> None:
    report = report_of(compared)
    key = {"model": "neumf", "market": "M1", "split": "test", "metric": "ndcg_10", "contract": "standard"}
    seeds = [row["value"] for row in report["rows"] if key.items() <= row.items()]
    (mean,) = (row for row in report["means"] if key.items() <= row.items())
    assert len(seeds) == 2
    assert mean["value"] == pytest.approx(np.mean(seeds))
    assert mean["spread"] == pytest.approx(np.std(seeds, ddof=1))


def test_settings_are_chosen_by_validation(compared: Workspace) -> None:
    report = report_of(compared)
    for model in ("lightgcn", "neumf", "slim"):
        trials = [trial for trial in report["trials"] if trial["model"] == model]
        assert len(trials) == 2
        best = max(trials, key=lambda trial: trial["valid_ndcg_10"])
        assert all(run["settings"] == best["settings"] for run in report["runs"] if run["model"] == model)


def test_a_cut_comparison_trains_only_what_is_missing(compared: Workspace) -> None:
    folder = compared.root / "compare"
    results = {place: place.stat().st_mtime_ns for place in sorted(folder.glob("*/result.json"))}
    lost = next(place for place in results if place.parent.name.startswith("slim"))
    before = report_of(compared)["means"]
    lost.unlink()
    after("pretrain", "compare", configured(), compared, compare.run)
    assert [place for place, time in results.items() if place.stat().st_mtime_ns != time] == [lost]
    assert report_of(compared)["means"] == before


def test_a_run_is_named_by_what_ends_it_and_by_nothing_else(compared: Workspace, tmp_path: Path) -> None:
    """More seconds train a network again, and no closed form; M3Rec has the epochs of train.*."""
    found: dict[str, set[str]] = {name: set() for name in ("slim", "random_walk", "m3rec", "neumf")}
    of_networks = ("compare.epochs=7", "compare.run_seconds=61", "compare.patience=6", "train.feed=arrow")
    for more in ("", *of_networks, "compare.seed=43"):

        def names(context: Context) -> None:
            bench = bench_of(context)
            bench = dataclasses.replace(bench, seconds=bench.config.compare.run_seconds)
            for name, places in found.items():
                places.add(train_run(bench, tmp_path, name, SYSTEMS[name].grid[0], 1).folder.name)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(compare_runs, "_train", lambda *run: _nothing_trained(run[-1]))
            after("pretrain", "compare", configured(*filter(None, [more])), compared, names)
    assert {name: len(places) for name, places in found.items()} == {  # the seed is that of who judges
        "slim": 2, "random_walk": 2, "m3rec": 4, "neumf": 6,
    }  # fmt: skip


def _nothing_trained(place: Path) -> None:
    place.mkdir()
    (place / "result.json").write_text('{"seed": 1}')


def test_every_market_takes_its_own_settings(compared: Workspace) -> None:
    """Of EASE per market: the trial that is best there, its files and its figure."""
    report = report_of(compared)
    trials = [trial for trial in report["trials"] if trial["model"] == "ease_per_market"]
    (run,) = (run for run in report["runs"] if run["model"] == "ease_per_market")
    best = {}
    for market in range(5):
        tried = [trial["by_market"][str(market)] for trial in trials]
        best[f"M{market + 1}"] = max(tried)
        assert run["settings"][f"M{market + 1}"] == trials[tried.index(max(tried))]["settings"]
    assert run["valid_ndcg_10"] == pytest.approx(np.mean(list(best.values())))
    assert len({one["lambda_f"] for one in run["settings"].values()}) == 2  # else this shows nothing


def test_settings_by_market_by_hand(compared: Workspace, tmp_path: Path) -> None:
    """Markets 0 and 1 are best served by another run each; the others have no figure, and take the run best of all."""
    runs = []
    for name, by_market, mean in (("a", {"0": 0.3, "1": 0.1}, 0.2), ("b", {"0": 0.2, "1": 0.4}, 0.3)):
        folder = tmp_path / name
        folder.mkdir()
        for market in range(5):
            (folder / f"market-{market:05d}.npz").write_text(f"{name} {market}")
        runs.append(Run("slim", {"of": name}, 1, folder, {"valid_ndcg_10": mean, "by_market": by_market, "seconds": 2}))
    for again in range(2):
        choice = lambda context: select_by_market(bench_of(context), tmp_path, runs)  # noqa: E731
        found = after("pretrain", "compare", configured(), compared, choice)
        kept = [(found.folder / f"market-{market:05d}.npz").read_text() for market in range(5)]
        assert kept == ["a 0", "b 1", "b 2", "b 3", "b 4"]
        assert found.settings == {f"M{market + 1}": {"of": "b" if market else "a"} for market in range(5)}
        assert (found.result["valid_ndcg_10"], found.result["seconds"]) == (pytest.approx(0.35), 4)
        (found.folder / "result.json").write_text("{half" if not again else "")  # damaged: laid together again


def test_what_was_lost_of_a_comparison_is_made_again(compared: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    """A part of the ranks, one of the candidates, half of a result: Spark and JSON alone would not all have seen it."""
    before, folder = report_of(compared)["means"], compared.root / "compare"
    for pattern in ("neumf-*/ranks/*/part-*.parquet", "candidates-included-*/part-*.parquet"):
        max(folder.glob(pattern), key=lambda part: part.stat().st_size).unlink()
    (damaged,) = list(folder.glob("popularity-*/result.json"))[:1]
    damaged.write_text('{"seed"')
    (audit,) = folder.glob("transfer-*.json")
    audit.write_text("[{")
    with caplog.at_level(logging.WARNING):
        after("pretrain", "compare", configured(), compared, compare.run)
    assert report_of(compared)["means"] == before
    assert len(report_of(compared)["transfer"]) == 25
    assert "are not those that were frozen there: made again" in caplog.text
    assert "result.json is damaged" in caplog.text
    assert f"{audit} is damaged" in caplog.text


def test_a_market_may_not_be_called_as_the_audit_calls_all_others(compared: Workspace) -> None:
    def renamed(context: Context) -> None:
        bench = dataclasses.replace(bench_of(context), market_ids={0: "others"})
        with pytest.raises(DataError, match="market id 'others' is a word of the report"):
            compare._compare(context, bench, compared.root / "compare")

    after("pretrain", "compare", configured(), compared, renamed)


def test_the_page_is_one_file(compared: Workspace) -> None:
    page = (compared.root / compare.PAGE).read_text(encoding="utf-8")
    assert "LightGCN" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_transfer_is_between_all_markets(compared: Workspace) -> None:
    rows = report_of(compared)["transfer"]
    markets = {"M1", "M2", "M3", "M4", "M5"}
    assert {(row["helper"], row["market"]) for row in rows} == {
        (helper, market) for helper in markets | {"others"} for market in markets if helper != market
    }


def test_scores_of_another_system_are_a_row(compared: Workspace, tmp_path: Path) -> None:
    """EASE's own scores, given as a table: the row is EASE's, among the candidates and among all items."""
    arrays = open_arrays(compared.folder("arrays"))
    scorer = EaseScorer(str(compared.folder("ease")))
    names = {name: compared.read_arrow(name).to_pandas() for name in ("markets", "users", "items")}
    markets, items = names["markets"].set_index("market")["market_id"], names["items"].set_index("item")["item_id"]
    users = names["users"].set_index(["market", "user"])["user_id"]
    small = ("compare.models=[ease, m3rec]", "compare.trials=1", "compare.seeds=1")
    test = compared.read_arrow("candidates").to_pandas().query("half == 'test'")
    parts = []
    for market, judged in test.groupby("market")["user"]:
        scores = scorer.score(arrays, market, judged.to_numpy())
        own = items.loc[arrays.slot_items[arrays.market_slots(market)]].to_numpy()
        ids = users.loc[[(market, user) for user in judged]].to_numpy()
        columns = {"market": np.full(scores.size, markets[market]), "user_id": np.repeat(ids, len(own))}
        columns |= {"item_id": np.tile(own, len(ids)), "score": scores.ravel().astype(float)}
        parts.append(pa.table(columns))
    theirs = pa.concat_tables(parts)
    pq.write_table(theirs, tmp_path / "theirs.parquet")
    config = configured(*small, f"compare.scores={{theirs: {tmp_path}/theirs.parquet}}")
    after("pretrain", "compare", config, compared, compare.run)
    report = report_of(compared)
    rows = {(r["model"], r["contract"], r["market"], r["metric"]): r["value"] for r in report["means"]}
    for (model, *key), value in rows.items():
        if model == "theirs":
            assert value == pytest.approx(rows[("ease", *key)], abs=1e-12), key
    assert report["unscored"] == {"standard/theirs": 0, "paper-like/theirs": 0}

    absent = users[test["market"].iloc[0], test["user"].iloc[0]]
    pq.write_table(theirs.filter(pc.field("user_id") != absent), tmp_path / "fewer.parquet")
    config = configured(*small, f"compare.scores={{fewer: {tmp_path}/fewer.parquet}}")
    with pytest.raises(DataError, match=f"1 of .* have none, as user {absent}"):
        after("pretrain", "compare", config, compared, compare.run)


def test_an_unknown_system_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--models", "ease,svdpp"]) == 2
    assert "svdpp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [("{ease: a.csv}", "'ease' is a system of ours"), ("{'a#1': a.csv}", "the name 'a#1' may have letters")],
)
def test_names_of_rows_that_cannot_be(given: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        configured(f"compare.scores={given}")


def test_what_is_wrong_is_told_before_anything_is_trained(compared: Workspace, tmp_path: Path) -> None:
    runs = sorted((compared.root / "compare").iterdir())
    for wrong, told in (
        ("compare.settings={neumf: [{dimensions: 8}]}", "no setting 'dimensions'"),
        (f"compare.scores={{x: {tmp_path}/nowhere.csv}}", "no file or folder"),
    ):
        with pytest.raises((DataError, UsageError), match=told):
            after("pretrain", "compare", configured("compare.seed=99", wrong), compared, compare.run)
    assert [one for one in sorted((compared.root / "compare").iterdir()) if "candidates" not in one.name] == [
        one for one in runs if "candidates" not in one.name
    ]


def test_a_run_that_diverges_is_left_out_and_told(compared: Workspace) -> None:
    """A learning rate that ends in infinity; the other settings are chosen, and the failures are in the report."""
    few = "dimension: 4, widths: [4]"
    wild = f"{few}, learning_rate: 1.0e+38"
    once = f"{wild}, batch_size: 1000000"  # one step an epoch: its loss is that of the start
    config = configured(
        "compare.models=[neumf]", "compare.seeds=1", "compare.trials=3",
        f"compare.settings={{neumf: [{{{wild}}}, {{{once}}}, {{{few}}}]}}",
    )  # fmt: skip
    after("pretrain", "compare", config, compared, compare.run)
    report = report_of(compared)
    (bad, late, good) = report["trials"]
    assert bad["failed"].startswith("the loss became")
    assert late["failed"].startswith("scores became NaN in market")
    assert "valid_ndcg_10" not in bad | late
    assert good["stopped_by"] == "epochs"
    assert [run["settings"] for run in report["runs"]] == [good["settings"]]
    assert bad["failed"] in (compared.root / compare.PAGE).read_text(encoding="utf-8")


def test_the_audit_alone_may_need_too_much(compared: Workspace) -> None:
    """EASE of 300 items and more does not fit into 0.1 MB: popularity is compared all the same."""
    for kept in (compared.root / "compare").glob("transfer-*.json"):
        kept.unlink()
    few = ("compare.models=[popularity]", "ease.memory_gb=0.0001")
    with pytest.raises(CapacityError):
        after("pretrain", "compare", configured("compare.models=[popularity, ease]", few[1]), compared, compare.run)
    after("pretrain", "compare", configured(*few), compared, compare.run)
    report = report_of(compared)
    assert report["transfer"] == []
    assert "GB" in report["transfer_skipped"]


@pytest.mark.parametrize("name", sorted(set(SYSTEMS) - set(MODELS) | {"neumf", "lightgcn"}))
def test_every_system_is_trained_and_scores(compared: Workspace, tmp_path: Path, name: str) -> None:
    """The scorer of a network's folder finds what the training validated, bar the sum of another order."""

    def trained(context: Context) -> tuple[Run, float]:
        bench = bench_of(context)
        run = train_run(bench, tmp_path, name, SYSTEMS[name].grid[0], 1)
        return run, mean_ndcg(SYSTEMS[name].scorer(bench, run.folder, run.name), bench.arrays, bench.sample)

    run, found = after("pretrain", "compare", configured("compare.epochs=1"), compared, trained)
    assert not run.failed
    assert 0 < run.result["valid_ndcg_10"] < 1
    assert run.result["valid_ndcg_10"] == pytest.approx(found, abs=0.02)
    if name in {*PAIR_MODELS, *GRAPH_MODELS}:  # the others' figure is that of the scorer itself
        assert run.result["valid_ndcg_10"] == max(run.result["curve"])


def test_slim_of_a_market_alone_is_the_model_that_heeds_no_other(compared: Workspace, tmp_path: Path) -> None:
    """As pretrain publishes it."""
    linear = configured().linear
    settings = {"l1": linear.l1, "l2": linear.l2}
    trained = lambda context: train_run(bench_of(context), tmp_path, "slim_per_market", settings, 1)  # noqa: E731
    run = after("pretrain", "compare", configured(), compared, trained)
    published = others_folder(compared.folder("linear"), linear.others.index(0.0))
    for market in range(5):
        one, other = (sparse.load_npz(place / f"market-{market:05d}.npz") for place in (run.folder, published))
        assert one.nnz > 0
        assert (one != other).nnz == 0


def test_slim_is_that_of_the_merged_histories(compared: Workspace, tmp_path: Path) -> None:
    """Solved by scikit-learn's coordinate descent, column by column, between items bought together."""
    settings = {"l1": 0.3, "l2": 2.0}
    trained = lambda context: train_run(bench_of(context), tmp_path, "slim", settings, 1)  # noqa: E731
    run = after("pretrain", "compare", configured(), compared, trained)
    arrays = open_arrays(compared.folder("arrays"))
    X = sparse.csr_matrix((np.ones(len(arrays.items)), arrays.items, arrays.indptr), (arrays.n_rows, arrays.n_items))
    items = arrays.slot_items[arrays.market_slots(2)]
    found = sparse.load_npz(run.folder / "market-00002.npz").toarray()
    for column, item in list(enumerate(items))[::7]:
        near = np.flatnonzero((X.T @ X[:, item]).toarray().ravel() * (np.arange(arrays.n_items) != item))
        weights = np.zeros(arrays.n_items)
        if len(near):
            both, n = settings["l1"] / 2 + settings["l2"], arrays.n_rows
            solver = ElasticNet(
                alpha=both / n, l1_ratio=settings["l1"] / 2 / both, fit_intercept=False, positive=True, tol=1e-10,
                max_iter=100_000,
            )  # fmt: skip
            weights[near] = solver.fit(X[:, near].toarray(), X[:, item].toarray().ravel()).coef_
        np.testing.assert_allclose(found[:, column], weights[items], atol=1e-3)


def test_random_walk_scores_by_the_mean_of_the_history(
    compared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Item2vec with given vectors: cos(mean of the unit vectors of the history, item), by a loop."""
    arrays = open_arrays(compared.folder("arrays"))
    vectors = np.random.default_rng(4).normal(size=(arrays.n_items, 8)).astype(np.float32)
    given = {}

    def fitted(walks: np.ndarray, smooth: object, degrees: np.ndarray, **options: object) -> np.ndarray:
        given.update(options, walks=len(walks), smooth=smooth)
        return vectors.copy()

    monkeypatch.setattr("m3rec_spark.stages.recipes.fit_item_vectors", fitted)

    def scored(context: Context) -> np.ndarray:
        bench = bench_of(context)
        run = train_run(bench, tmp_path, "random_walk", {"window": 3, "epochs": 2}, 5)
        return SYSTEMS["random_walk"].scorer(bench, run.folder, "x").score(arrays, 1, np.array([0, 4], np.int32))

    found = after("pretrain", "compare", configured(), compared, scored)
    assert (given["window"], given["epochs"], given["seed"], given["smooth"]) == (3, 2, 5, None)
    assert given["walks"] == compared.manifest("walks").rows
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    items = arrays.slot_items[arrays.market_slots(1)]
    for row, user in zip(found, (0, 4), strict=True):
        place = arrays.user_offsets[1] + user
        mean = np.mean([unit[item] for item in arrays.items[arrays.indptr[place] : arrays.indptr[place + 1]]], axis=0)
        bought = arrays.slot_counts[arrays.market_slots(1)] > 0
        np.testing.assert_allclose(row[bought], (unit[items] @ mean / np.linalg.norm(mean))[bought], atol=1e-5)


def test_a_chosen_setting_that_the_clock_cut_gets_the_time_of_a_run(compared: Workspace) -> None:
    """A trial of a hundredth of a second is one batch; the run has its two epochs. FOREC's clock is of both phases."""
    small = "[{dimension: 4, widths: [4]}, {dimension: 5, widths: [4]}]"
    config = configured(
        "compare.models=[neumf, forec]", "compare.seeds=1", f"compare.settings={{neumf: {small}, forec: {small}}}",
        "compare.trial_seconds=0.01",
    )  # fmt: skip
    after("pretrain", "compare", config, compared, compare.run)
    report = report_of(compared)
    ended = {kind: [(one["stopped_by"], one["epochs"]) for one in report[kind]] for kind in ("trials", "runs")}
    assert ended["trials"][:2] == [("seconds", 1)] * 2
    assert ended["trials"][2:] == [("seconds", 1)] * 2
    assert ended["runs"] == [("epochs", 2), ("epochs", 2)]


def test_a_system_with_one_setting_needs_no_trial(compared: Workspace) -> None:
    """It has the time of a run at once, and is not trained twice."""
    config = configured(
        "compare.models=[neumf]", "compare.seeds=1", "compare.settings={neumf: [{dimension: 6, widths: [4]}]}",
        "compare.trial_seconds=0.01",
    )  # fmt: skip
    after("pretrain", "compare", config, compared, compare.run)
    report = report_of(compared)
    assert report["trials"] == report["runs"]
    assert [(run["stopped_by"], run["epochs"]) for run in report["runs"]] == [("epochs", 2)]


def test_an_item_is_overlapped_if_another_market_knows_it(spark: SparkSession) -> None:
    """(markets with train pairs of it, train pairs in this one): cold here and known in one other is overlapped."""
    cases = [(1, 3, "market-specific"), (2, 3, "overlapped"), (1, 0, "overlapped"), (0, 0, "market-specific")]
    frame = spark.createDataFrame(cases, "markets int, train_count int, expected string")
    found = frame.select(compare.item_group(F.col("markets"), F.col("train_count")), "expected").collect()
    assert all(group == expected for group, expected in found)
    assert len(found) == 4
