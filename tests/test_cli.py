"""The command line: exit codes, messages, overrides. What needs Spark is in stages/test_pipeline.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from m3rec_spark.cli import main
from m3rec_spark.config import Config, load

ROOT = Path(__file__).parents[1]


def test_print_config_is_the_resolved_config_as_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--print-config", "train.epochs=3", "source.markets={de: a b.csv}"]) == 0
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(capsys.readouterr().out)
    config = load(resolved)
    assert config.train.epochs == 3
    assert config.source.markets == {"de": "a b.csv"}
    assert config.ease == Config().ease


def test_quick_is_one_seed_and_one_setting_with_any_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["compare", "--quick", "--print-config", "--config", str(ROOT / "conf" / "xmarket.yaml")]
    assert main([*given, "source.path=x"]) == 0
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(capsys.readouterr().out)
    settings = load(resolved).compare
    assert settings.models == ("ease", "random_walk", "lightgcn", "neumf", "m3rec")
    assert {settings.seeds_of.get(name, settings.seeds) for name in settings.models} == {settings.trials} == {1}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "train.epoch=3"], "train.epoch: unknown key. Did you mean 'epochs'?"),
        (["train", "ease.lambda_f=0"], "ease.lambda_f: Input should be greater than 0, got 0"),
        (["train", "--configs", "x"], "Did you mean '--config'?"),
        (["train", "epochs"], "'epochs' is no option and no section.key=value"),
        (["train", "--config", "nowhere.yaml"], "cannot read config nowhere.yaml"),
        (["train", "--workspace", "s3://bucket/ws"], "'s3:' is not a local path"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert "Traceback" not in captured.err


def test_a_stage_without_its_input_names_the_stage_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--workspace", str(tmp_path / "ws"), "tracking.enabled=false"]) == 2
    assert "run `m3rec prepare` first" in capsys.readouterr().err


def test_a_workspace_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert main(["prepare", "--workspace", str(blocked / "ws")]) == 2
    captured = capsys.readouterr()
    assert "cannot write to the workspace" in captured.err
    assert "Traceback" not in captured.err
    assert blocked.read_text() == "in the way"


@pytest.mark.parametrize(("workspace", "source"), [(".", "orders.csv"), ("sub/ws", "."), ("orders.csv", "orders.csv")])
def test_a_workspace_over_its_source_is_refused_before_anything_is_written(
    workspace: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orders.csv").write_text("market,user_id,item_id\nde,u,i\n")
    assert main(["run", "--workspace", workspace, "source.format=csv", f"source.path={source}"]) == 2
    assert "overlap" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["orders.csv"]


@pytest.mark.parametrize("job", [file.stem for file in sorted((ROOT / "jobs").glob("*.py"))])
def test_a_job_is_its_verb(job: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "jobs" / f"{job}.py", "--print-config", "train.epochs=3"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert "epochs: 3" in run.stdout


def test_an_unexpected_failure_exits_1_and_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from m3rec_spark.stages import pipeline

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Job aborted\n\tat org.apache.spark.Thing\nZeroDivisionError: division by zero\n\tat more")

    monkeypatch.setattr(pipeline, "run_stages", broken)
    assert main(["prepare", "--workspace", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "unexpected RuntimeError: ZeroDivisionError: division by zero" in error  # the worker's words, not the JVM's
    assert "RuntimeError: Job aborted" in (tmp_path / "reports" / "last_error.txt").read_text()


def test_plan_needs_a_prepared_workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--plan", "--workspace", str(tmp_path / "ws")]) == 2
    assert "run `m3rec prepare` first" in capsys.readouterr().err
    assert main(["train", "--plan", "--workspace", str(tmp_path / "ws")]) == 2
    assert "'--plan' is no option" in capsys.readouterr().err
