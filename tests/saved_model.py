"""A model saved as `m3rec register` saves it, from the small random shop."""

from __future__ import annotations

from pathlib import Path

from small_workspace import publish_served

from m3rec_spark.ranking.bundle import open_bundle
from m3rec_spark.ranking.pack import pack
from m3rec_spark.ranking.recommender import Recommender
from m3rec_spark.stages.register import smoke
from m3rec_spark.tracking.registry import save_model


def saved(root: Path) -> tuple[Path, Recommender]:
    """The folder of the saved model, and the model itself."""
    (root / "bundle").mkdir(parents=True)
    pack(publish_served(root / "w"), root / "bundle", {"key": "k"})
    recommender = open_bundle(root / "bundle")
    save_model(root / "bundle", root / "model", smoke(recommender)[0])
    return root / "model", recommender
