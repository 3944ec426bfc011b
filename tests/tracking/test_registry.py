from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
from saved_model import saved

from m3rec_spark.errors import DataError, UsageError
from m3rec_spark.ranking.recommender import Recommender
from m3rec_spark.stages.register import smoke
from m3rec_spark.tracking.registry import CHALLENGER, CHAMPION, Registry, fetched, read_json, smoke_test


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recommender]:
    return saved(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open("m3rec", f"sqlite:///{tmp_path / 'mlflow.db'}", None)


@pytest.fixture
def run_id(registry: Registry, tmp_path: Path) -> str:
    experiment = registry.client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    return str(registry.client.create_run(experiment).info.run_id)


def add(registry: Registry, run_id: str, model: Path, key: str) -> Any:
    return registry.add(run_id, model, key, {"note": key})


def test_a_version_is_added_found_and_loaded(
    registry: Registry, run_id: str, model: tuple[Path, Recommender], tmp_path: Path
) -> None:
    uri = mlflow.get_tracking_uri()
    assert registry.holder(CHAMPION) is None
    assert registry.find_content("k1") is None
    version = add(registry, run_id, model[0], "k1")
    assert version.version in ("1", 1)
    assert registry.holder(CHALLENGER).version == version.version  # type: ignore[union-attr]
    assert registry.find_content("k1").version == version.version  # type: ignore[union-attr]
    assert registry.find_content("k2") is None
    with fetched(registry, version) as folder:
        expected = smoke(model[1])[1]
        smoke_test(folder, expected)
        with pytest.raises(DataError, match="other lists"):
            smoke_test(folder, {**expected, "items": [["x"], *expected["items"][1:]]})
        with pytest.raises(DataError, match=r"no evaluate\.json"):
            read_json(folder, "evaluate.json")
        with pytest.raises(DataError, match="other lists"):
            smoke_test(folder, {**expected, "scores": [[0.5], *expected["scores"][1:]]})
        code = next(folder.rglob("code/m3rec_spark/ranking/recommender.py"))
        whole = code.read_text()
        code.write_text("raise SystemError('of the artifact')")  # its own code runs, not the package of this process
        with pytest.raises(DataError, match=r"does not load or answer .*of the artifact"):
            smoke_test(folder, expected)
        code.write_text(whole)
        for file in folder.rglob("item_vectors.npy"):
            file.unlink()
        with pytest.raises(DataError, match="does not load or answer"):
            smoke_test(folder, expected)
    assert mlflow.get_tracking_uri() == uri  # nothing global was changed


def test_promotion_is_remembered_and_taken_back(
    registry: Registry, run_id: str, model: tuple[Path, Recommender]
) -> None:
    with pytest.raises(UsageError, match="nothing to roll back"):
        registry.rollback()
    first, second = (add(registry, run_id, model[0], key) for key in ("k1", "k2"))
    registry.promote(first)
    with pytest.raises(UsageError, match="replaced none"):
        registry.rollback()
    registry.promote(second)
    registry.promote(second)  # again: it does not replace itself
    assert registry.holder(CHAMPION).version == second.version  # type: ignore[union-attr]
    assert registry.rollback() == (str(second.version), str(first.version))
    assert registry.holder(CHAMPION).version == first.version  # type: ignore[union-attr]
