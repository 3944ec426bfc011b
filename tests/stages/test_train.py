"""The train stage on a small hand-made workspace: what it publishes, resume, determinism, its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file
from scipy.sparse import load_npz
from small_workspace import publish_ease, publish_linear

from m3rec_spark.config import load
from m3rec_spark.data.arrays import MarketArrays, open_arrays, save_arrays
from m3rec_spark.errors import CheckpointError, MissingTableError, UsageError
from m3rec_spark.models.m3rec import M3Rec
from m3rec_spark.models.pairs import Pairs
from m3rec_spark.ranking.scorers import EaseScorer, published_scorer
from m3rec_spark.similarity.similarity_table import item_vectors
from m3rec_spark.stages import train
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.market_model import batch_loss
from m3rec_spark.tables import Workspace, arrow_schema
from m3rec_spark.tracking.runs import Tracker
from m3rec_spark.training import loop

GROUPS, SIZE, D = 4, 6, 8
ITEMS = GROUPS * SIZE  # item i belongs to group i % GROUPS
KEY = "f" * 64
SETTINGS = [
    "train.epochs=3", "train.batch_size=64", "train.learning_rate=0.02", "train.device=cpu",
    "train.shared_negatives=16", f"skipgram.dimension={D}",
]  # fmt: skip


class Recorder(Tracker):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[int, dict[str, float]] = {}
        self.figures: list[str] = []

    def metrics(self, values: Any, step: int | None = None) -> None:
        self.logged.setdefault(step or 0, {}).update(values)

    def figure(self, figure: Any, name: str) -> None:
        self.figures.append(name)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Markets A (40 users, all items) and B (25 users, the first 20 items); a user buys 4 of the 6 items of a group.

    The held-out item is a fifth of the same group, so that there is something to learn; the negatives are all others.
    """
    workspace = Workspace(tmp_path_factory.mktemp("template"))
    generator = np.random.default_rng(5)
    rows, held = [], []
    for market, (users, items) in enumerate([(40, ITEMS), (25, 20)]):
        for user in range(users):
            group = np.arange(user % GROUPS, items, GROUPS)
            bought = generator.permutation(group)[:5]
            rows += [(market, user, item) for item in sorted(bought[:4])]
            held.append((market, user, bought[4], ["valid", "test"][user % 2], sorted(set(range(items)) - set(bought))))
    _publish_tables(workspace, np.array(rows), held)
    return workspace.root


def _publish_tables(workspace: Workspace, rows: np.ndarray, held: list[tuple]) -> None:
    offsets, slot_offsets = np.array([0, 40, 65]), np.array([0, ITEMS, ITEMS + 20])
    slots = (slot_offsets[rows[:, 0]] + rows[:, 2]).astype(np.int32)
    flat = offsets[rows[:, 0]] + rows[:, 1]
    arrays = MarketArrays(
        np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=65))]),
        slots,
        offsets,
        np.concatenate([np.arange(ITEMS), np.arange(20)]).astype(np.int32),
        slot_offsets,
        np.bincount(slots, minlength=ITEMS + 20).astype(np.int32),
        ITEMS,
    )
    with workspace.publishing("arrays", KEY) as folder:
        save_arrays(arrays, folder)
    order = np.random.default_rng(0).permutation(len(rows))
    columns = [pa.array(column.astype(np.int32)) for column in rows[order].T]
    workspace.write_arrow(pa.Table.from_arrays(columns, schema=arrow_schema("feed")), "feed", KEY)
    near = [(a, b, 1 / (SIZE - 1)) for a in range(ITEMS) for b in range(a % GROUPS, ITEMS, GROUPS) if a != b]
    _write(workspace, "similarity", [dict(zip(("item_a", "item_b", "weight"), row, strict=True)) for row in near])
    vectors = np.random.default_rng(1).normal(size=(ITEMS, D), scale=0.2)
    vectors[np.arange(ITEMS), np.arange(ITEMS) % GROUPS] += 0.3
    _write(workspace, "item_vectors", [{"item": i, "vector": vectors[i].tolist()} for i in reversed(range(ITEMS))])
    b = np.zeros((ITEMS, ITEMS), np.float32)
    b[tuple(np.array([row[:2] for row in near]).T)] = 0.2
    publish_ease(workspace, b)
    publish_linear(workspace, {0.0: b, 0.5: np.zeros_like(b)})
    names = ("market", "user", "positive", "half", "negatives")
    _write(workspace, "candidates", [{**dict(zip(names, row, strict=True)), "cold": False} for row in held])
    counts = dict.fromkeys(("users", "items", "train_rows", "train", "valid", "test", "shared_items"), 1)
    _write(workspace, "markets", [{"market": m, "market_id": name, **counts} for m, name in enumerate("AB")])


def _write(workspace: Workspace, name: str, rows: list[dict[str, Any]]) -> None:
    workspace.write_arrow(pa.Table.from_pylist(rows, schema=arrow_schema(name)), name, KEY)


@pytest.fixture
def workspace(template: Path, tmp_path: Path) -> Workspace:
    """Links to the template's tables: a stage that wrote into one of them would show in the next test."""
    for table in template.iterdir():
        (tmp_path / table.name).symlink_to(table)
    return Workspace(tmp_path)


def run(workspace: Workspace, *overrides: str, key: str = KEY, resume: bool = False) -> Recorder:
    tracker = Recorder()
    train.run(Context(load(None, [*SETTINGS, *overrides]), workspace, tracker, key, resume))
    return tracker


def published(workspace: Workspace) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in workspace.folder("model").iterdir() if file.is_file()}


def test_the_model_folder_serves_the_users_of_the_paper(workspace: Workspace) -> None:
    run(workspace)
    folder, arrays = workspace.folder("model"), open_arrays(workspace.folder("arrays"))
    described = json.loads((folder / "model.json").read_text())
    assert (described["dimension"], described["n_slots"], described["n_rows"]) == (D, ITEMS + 20, 65)
    assert described["settings"]["loss"] == "softmax"
    item, history, weights, user = (
        np.load(folder / f"{name}.npy")
        for name in ("item_vectors", "history_vectors", "history_weights", "user_vectors")
    )
    assert item.shape == history.shape == (ITEMS + 20, D)
    assert user.shape == (65, D)
    assert {array.dtype for array in (item, history, weights, user)} == {np.dtype(np.float32)}
    block = np.zeros((20, 20))  # B_m of market B: tailored to its 20 items and normalised again
    for a in range(20):
        others = [b for b in range(a % GROUPS, 20, GROUPS) if b != a]
        block[a, others] = 1 / len(others)
    np.testing.assert_allclose(history[ITEMS:], block @ item[ITEMS:], rtol=1e-5, atol=1e-6)
    assert (weights == 1).all()
    loca = load_file(folder / "weights.safetensors")["v_loca"]
    prior = item_vectors(workspace.read_arrow("item_vectors"), ITEMS)[arrays.slot_items]
    np.testing.assert_allclose(item, prior + loca, rtol=1e-6)
    assert np.abs(loca).max() > 0.01


def test_it_learns_and_reports(workspace: Workspace) -> None:
    tracker = run(workspace, "train.epochs=8", "train.patience=8")
    report = json.loads((workspace.root / train.REPORT).read_text())
    assert [row["train/loss"] for row in report["epochs"]] == [tracker.logged[e]["train/loss"] for e in range(1, 9)]
    assert report["epochs"][-1]["train/loss"] < report["epochs"][0]["train/loss"]
    scores = [row["valid/ndcg_10"] for row in report["epochs"]]
    assert report["best_score"] == max(scores) == scores[report["best_epoch"] - 1]
    assert report["best_score"] > 0.8  # by chance: about 0.25
    first = tracker.logged[1]
    assert first["valid/ndcg_10"] == pytest.approx((first["A/valid_ndcg_10"] + first["B/valid_ndcg_10"]) / 2)
    assert tracker.figures == ["loss.png"]


@pytest.mark.parametrize("reader", ["petastorm", "arrow"])
def test_same_seed_same_bytes_another_seed_others(workspace: Workspace, reader: str) -> None:
    run(workspace, f"train.feed={reader}")
    first = published(workspace)
    run(workspace, f"train.feed={reader}")
    assert published(workspace) == first
    run(workspace, f"train.feed={reader}", "train.seed=43")
    assert published(workspace)["weights.safetensors"] != first["weights.safetensors"]


def test_resume_equals_an_uninterrupted_run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run(workspace, "train.epochs=4")
    whole = published(workspace)
    _interrupt_in_epoch(3, monkeypatch, workspace)
    assert published(workspace) == whole  # the failed run left the old model in place
    tracker = run(workspace, "train.epochs=4", resume=True)
    assert published(workspace) == whole
    assert sorted(step for step in tracker.logged if step) == [1, 2, 3, 4]  # the resumed run's curve is whole


def _interrupt_in_epoch(epoch: int, monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> None:
    one_pass = loop._epoch

    def interrupted(*arguments: Any) -> float:
        if arguments[4] == epoch - 1:
            raise KeyboardInterrupt
        return one_pass(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(workspace, "train.epochs=4")


def test_resume_with_other_settings_is_refused(workspace: Workspace) -> None:
    run(workspace)
    with pytest.raises(CheckpointError, match=r"only of others \(keys ffffffffffff\)"):
        run(workspace, key="e" * 64, resume=True)


def test_resume_without_checkpoints_starts_at_the_beginning(workspace: Workspace) -> None:
    assert 1 in run(workspace, resume=True).logged


def test_a_run_without_resume_sets_the_old_checkpoints_aside(workspace: Workspace) -> None:
    run(workspace, "train.epochs=3")
    run(workspace, "train.epochs=1")
    folder = workspace.root / "checkpoints" / KEY[:12]
    assert [p.name for p in folder.iterdir()] == ["epoch-0001"]
    assert sorted(p.name for p in folder.with_suffix(".before").iterdir()) == ["epoch-0002", "epoch-0003"]


@pytest.mark.parametrize("loss", ["softmax", "margin"])
def test_the_loss_of_a_step_has_the_penalty_of_eq_13(loss: str) -> None:
    model = M3Rec(2, 3, 2, prior=None, seed=1)
    pair = torch.tensor([0])
    pairs = Pairs(pair, pair, pair, pair, [1], (torch.tensor([1, 2]) if loss == "softmax" else torch.tensor([[1, 2]]),))
    without, settings = (load(None, [f"train.loss={loss}", f"train.lambda_loca={x}"]).train for x in (0, 3))
    difference = batch_loss(settings, model, pairs) - batch_loss(without, model, pairs)
    assert difference.item() == pytest.approx(3 * model.v_loca.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("switch", ["train.intra=false", "train.inter=false", "train.loss=margin"])
def test_variants_train(workspace: Workspace, switch: str) -> None:
    run(workspace)
    complete = published(workspace)
    run(workspace, switch, "train.negatives=5")
    assert published(workspace)["item_vectors.npy"] != complete["item_vectors.npy"]
    if switch == "train.intra=false":
        assert published(workspace)["history_vectors.npy"] == published(workspace)["item_vectors.npy"]


def test_no_such_device(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"train\.device=auto"):
        run(workspace, "train.device=cuda")


def test_a_missing_table_names_the_stage(workspace: Workspace) -> None:
    (workspace.root / "item_vectors").unlink()
    with pytest.raises(MissingTableError, match="m3rec pretrain"):
        run(workspace)


def test_the_linear_part_goes_with_the_model(workspace: Workspace) -> None:
    """The first of the two linear models is the better one, as the other says nothing."""
    run(workspace, "train.epochs=1", "train.ease_weights=[40.0]")
    model = workspace.folder("model")
    assert np.load(model / "ease_weights.npy").tolist() == [40.0] * 2
    report = json.loads((workspace.root / "reports/train.json").read_text())
    assert (report["ease_weights"], report["linear_others"]) == ([40.0, 40.0], [0.0, 0.0])
    for name in ("market-00000.npz", "market-00001.npz"):
        assert (model / "linear" / name).read_bytes() == (workspace.folder("linear") / "others-00" / name).read_bytes()
    scorer = published_scorer(str(model), str(workspace.folder("ease")))
    assert scorer.ease == EaseScorer(str(model / "linear"))


def test_without_the_inter_market_side_no_other_shopper_counts(workspace: Workspace) -> None:
    """The model that listens to the other markets ranks better here, and is not taken."""
    same = np.equal.outer(np.arange(ITEMS) % GROUPS, np.arange(ITEMS) % GROUPS) * (1.0 - np.eye(ITEMS))
    (workspace.root / "linear").unlink()  # the template's
    publish_linear(workspace, {0.3: same, 0.0: 1.0 - same})
    for changes, taken in (([], 0.3), (["train.inter=false"], 0.0)):
        run(workspace, "train.epochs=1", "train.ease_weights=[40.0]", *changes)
        report = json.loads((workspace.root / "reports/train.json").read_text())
        assert report["linear_others"] == [taken] * 2


def test_the_walks_go_into_the_served_matrix(workspace: Workspace) -> None:
    """w B + t P over w; without the intra-market side P, whose share is t; without the inter-market side B."""
    arrays = open_arrays(workspace.folder("arrays"))
    names = [f"market-{market:05d}.npz" for market in range(arrays.n_markets)]
    model = lambda name: load_npz(workspace.folder("model") / "linear" / name).toarray()  # noqa: E731
    given = ["train.epochs=1", "train.ease_weights=[40.0]", "train.walk_weights=[10.0]"]
    rng = np.random.default_rng(0)
    B, P = (rng.random((ITEMS, ITEMS)) * (rng.random((ITEMS, ITEMS)) < 0.4) for _ in range(2))
    (workspace.root / "linear").unlink()  # the template's
    publish_linear(workspace, {0.0: B}, P)
    local = [np.ix_(items, items) for items in (arrays.slot_items[arrays.market_slots(m)] for m in range(2))]
    cases: list[tuple[list[str], float, Any, list[list[float]]]] = [
        ([], 40.0, B + P / 4, [[40.0] * 2, [10.0] * 2, [0.0] * 2]),
        (["train.intra=false"], 10.0, P, [[], [10.0] * 2, []]),
        (["train.inter=false"], 40.0, B, [[40.0] * 2, [], [0.0] * 2]),
        (["train.ease_weights=[0.0]"], 10.0, P, [[0.0] * 2, [10.0] * 2, [0.0] * 2]),
    ]
    for changes, share, wanted, told in cases:
        run(workspace, *given, *changes)
        assert np.load(workspace.folder("model") / "ease_weights.npy").tolist() == [share] * 2
        for name, place in zip(names, local, strict=True):
            np.testing.assert_allclose(model(name), wanted[place], rtol=1e-5)
        report = json.loads((workspace.root / "reports/train.json").read_text())
        assert [report[key] for key in ("ease_weights", "walk_weights", "linear_others")] == told
    run(workspace, *given, "train.ease_weights=[0.0]", "train.walk_weights=[0.0]")
    assert not list((workspace.folder("model") / "linear").iterdir())
    publish_linear(workspace, {}, P)  # no model of the markets' own: a share of `ease`, and nothing to fold walks into
    run(workspace, *given)
    assert not (workspace.folder("model") / "linear").exists()
    assert np.load(workspace.folder("model") / "ease_weights.npy").tolist() == [40.0] * 2
    for nothing in (["train.ease_weights=[]"], ["train.intra=false", "train.inter=false"]):
        run(workspace, *given, *nothing)
        assert not (workspace.folder("model") / "ease_weights.npy").exists()


def test_walks_get_the_share_that_validation_wants(workspace: Workspace) -> None:
    """Where B knows nothing, walks that know the groups are wanted, and those that mislead are not."""
    same = np.equal.outer(np.arange(ITEMS) % GROUPS, np.arange(ITEMS) % GROUPS) * (1.0 - np.eye(ITEMS))
    (workspace.root / "linear").unlink()  # the template's
    for P, wanted in ((same, True), (1.0 - same, False)):
        publish_linear(workspace, {0.0: np.zeros_like(P)}, P)
        run(workspace, "train.epochs=1", "train.learning_rate=1e-9", "train.walk_weights=[0.0,50.0]")
        report = json.loads((workspace.root / "reports/train.json").read_text())
        assert (report["walk_weights"][0] > 0) == wanted
    publish_linear(workspace, {0.0: same}, same)  # B has said it all
    run(workspace, "train.epochs=1", "train.ease_weights=[50.0]", "train.walk_weights=[0.0,50.0]")
    assert json.loads((workspace.root / "reports/train.json").read_text())["walk_weights"] == [0.0, 0.0]


def test_the_share_of_ease_goes_with_the_model(workspace: Workspace) -> None:
    run(workspace, "train.epochs=1", "train.linear=ease", "train.ease_weights=[0.4]")
    assert np.load(workspace.folder("model") / "ease_weights.npy").tolist() == [np.float32(0.4)] * 2
    assert json.loads((workspace.root / "reports/train.json").read_text())["ease_weights"] == [0.4, 0.4]
    scorer = published_scorer(str(workspace.folder("model")), str(workspace.folder("ease")))
    assert scorer.ease == EaseScorer(str(workspace.folder("ease")))
    for without in ("train.ease_weights=[]", "train.intra=false"):
        run(workspace, "train.epochs=1", without)
        assert not (workspace.folder("model") / "ease_weights.npy").exists()
