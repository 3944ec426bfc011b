from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.sql import SparkSession
from small_workspace import publish_served

from m3rec_spark.config import load
from m3rec_spark.errors import DataError, UsageError
from m3rec_spark.stages import explain, pipeline, recommend
from m3rec_spark.stages.context import Context
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.runs import Tracker


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return publish_served(tmp_path / "w")


def run(workspace: Workspace, users: str | None = None, *overrides: str) -> dict[str, Any]:
    return recommend.run(Context(load(None, overrides), workspace, Tracker(), "k"), users)


def test_the_table_is_published_by_market(spark: SparkSession, workspace: Workspace) -> None:
    facts = run(workspace, None, "recommend.k=3")
    frame = workspace.read(spark, "recommendations").toPandas()
    assert facts["markets"]["ü"] == {"users": 2, "rows": 6, "short": 0}
    assert len(frame) == 55 * 3
    assert sorted(frame["market"].unique()) == ["a", "b", "ü"]
    assert (frame.groupby(["market", "user_id"])["rank"].max() == 3).all()
    assert frame["reasons"].isna().all()
    assert workspace.manifest("recommendations").extra == facts  # type: ignore[union-attr]
    assert workspace.manifest("recommendations").rows == 165  # type: ignore[union-attr]
    assert not list((workspace.root / "_scratch").glob("*"))


def test_lists_that_are_short_are_told(
    spark: SparkSession, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run(workspace, None, "recommend.k=9")
    assert "market ü: 2 of 2 users get fewer than 9 items" in caplog.text


def test_a_list_of_users(spark: SparkSession, workspace: Workspace, tmp_path: Path, caplog: Any) -> None:
    """Doubles count once, text ids stay text, strangers are counted and told."""
    wanted = [("b", "u1"), ("b", "u1"), ("a", "u0"), ("a", "u39"), ("zz", "u0"), ("ü", "u1")]
    pd.DataFrame(wanted, columns=["market", "user_id"]).to_csv(tmp_path / "users.csv", index=False)
    pd.DataFrame(wanted, columns=["market", "user_id"]).to_parquet(tmp_path / "users.parquet")
    frames = []
    for name in ("users.csv", "users.parquet"):
        caplog.clear()
        facts = run(workspace, str(tmp_path / name), "recommend.k=2")
        assert facts["unknown_users"] == 2
        assert "2 of 5 users of" in caplog.text
        table = workspace.read(spark, "recommendations_of_list")
        frame = table.toPandas().sort_values(["market", "user_id", "rank"])
        frames.append(frame.reset_index(drop=True))
    assert set(zip(frames[0]["market"], frames[0]["user_id"], strict=True)) == {("b", "u1"), ("a", "u0"), ("ü", "u1")}
    assert len(frames[0]) == 6
    pd.testing.assert_frame_equal(*frames)
    assert workspace.manifest("recommendations") is None  # that of all users is another table


def test_a_list_that_cannot_be_used_is_refused_and_the_table_stays(
    spark: SparkSession, workspace: Workspace, tmp_path: Path
) -> None:
    run(workspace, None, "recommend.k=2")
    before = workspace.manifest("recommendations")
    with pytest.raises(UsageError, match="there is no such file"):
        run(workspace, str(tmp_path / "absent.csv"))
    (tmp_path / "columns.csv").write_text("market,user\nb,u1\n")
    with pytest.raises(UsageError, match=r"no column user_id \(it has market, user\)"):
        run(workspace, str(tmp_path / "columns.csv"))
    (tmp_path / "strangers.csv").write_text("market,user_id\nb,who\n")
    with pytest.raises(DataError, match="none of the 1 users"):
        run(workspace, str(tmp_path / "strangers.csv"))
    assert workspace.manifest("recommendations") == before
    assert workspace.read(spark, "recommendations").count() == 110


def test_explain_is_a_table_that_adds_up(workspace: Workspace) -> None:
    context = Context(load(), workspace, Tracker(), "k")
    text = explain.explain(context, "b", "u3", "i 7")
    title, _, head, *lines = text.splitlines()
    assert head.split() == ["share", "because", "of", "bought", "both"]
    score = float(title.split("score ")[1])
    assert sum(float(line.split()[0]) for line in lines) == pytest.approx(score, abs=1e-4 * len(lines))
    assert lines[-1].endswith("the user's own part (U-Loca)")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("B", "u3", "i 7"), r"market 'B' is unknown. Did you mean 'b'"),
        (("b", "u99", "i 7"), "user 'u99' is unknown in market b, which has 40 users"),
        (("b", "u3", "i 29"), "item 'i 29' is not sold in market b"),
        (("b", "u3", "nothing"), "item 'nothing' is not sold"),
    ],
)
def test_explain_says_what_is_unknown(workspace: Workspace, asked: tuple[str, str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        explain.explain(Context(load(), workspace, Tracker(), "k"), *asked)


def test_what_another_command_works_on_is_left_alone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shop owner's question must not take the folders of the night's job away."""
    monkeypatch.setattr(pipeline, "require_fresh", lambda *_: None)
    monkeypatch.setattr(pipeline, "_source_digest", lambda *_, **__: "digest")
    busy = workspace.root / "_scratch" / "recommend-of-another"
    busy.mkdir(parents=True)
    wanted = ("b", "u3", "i 7")
    config = load(None, ["tracking.enabled=false"])
    text = pipeline.after("train", "explain", config, workspace, lambda context: explain.explain(context, *wanted))
    assert "bought both" in text
    assert busy.is_dir()
