"""The model registry: one registered model for all markets, with the aliases `challenger` and `champion`.

Everything goes through `MlflowClient` with its own addresses, so no global MLflow state is changed. The alias is set
last: whatever fails before leaves the serving model as it was.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

import m3rec_spark
from m3rec_spark.errors import DataError, UsageError
from m3rec_spark.ranking.recommender import Request
from m3rec_spark.tracking.pyfunc import ARTIFACT, SIGNATURE

log = logging.getLogger(__name__)

CHALLENGER, CHAMPION = "challenger", "champion"
MODEL_FOLDER = "recommender"  # of the run's artifacts
_CONTENT, _REPLACED = "m3rec.content", "m3rec.replaced"
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # of a name, and of an alias
_SERVING = ("mlflow", "numpy", "scipy", "pandas", "pyarrow")  # all that a served model imports


@dataclass(frozen=True)
class Registry:
    """A store, and the name of the registered model in it."""

    client: mlflow.MlflowClient
    name: str

    @classmethod
    def open(cls, name: str, tracking: str, registry: str | None) -> Registry:
        """The registry at an address; None: that of the tracking store."""
        return cls(mlflow.MlflowClient(tracking, registry or tracking), name)

    def holder(self, alias: str) -> Any | None:
        """The version that has an alias; None where nobody has it."""
        try:
            return self.client.get_model_version_by_alias(self.name, alias)
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            return None

    def find_content(self, content: str) -> Any | None:
        """The latest version with this content."""
        versions = self.client.search_model_versions(f"name = '{self.name}'")
        mine = [version for version in versions if version.tags.get(_CONTENT) == content]
        return max(mine, key=lambda version: int(version.version), default=None)

    def add(self, run_id: str, model: Path, content: str, tags: Mapping[str, str]) -> Any:
        """Logs a saved model to a run and makes it a version; the alias `challenger` points at it."""
        with _quiet():
            self.client.log_artifacts(run_id, str(model), MODEL_FOLDER)
        with contextlib.suppress(MlflowException):  # it is there already
            self.client.create_registered_model(self.name, description="m3rec_spark: one model for all markets")
        source = f"{self.client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"
        version = self.client.create_model_version(self.name, source, run_id, tags={**tags, _CONTENT: content})
        self.challenge(version)
        return version

    def challenge(self, version: Any) -> None:
        """Points the alias `challenger` at a version."""
        self.client.set_registered_model_alias(self.name, CHALLENGER, version.version)

    def fetch(self, version: Any, folder: Path) -> Path:
        """The files of a version, in a folder."""
        address = self.client.get_model_version_download_uri(self.name, version.version)
        with _quiet():
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(folder)))

    def promote(self, version: Any) -> None:
        """Makes a version the champion; what it replaces is remembered."""
        before = self.holder(CHAMPION)
        if before is not None and before.version != version.version:
            self.client.set_model_version_tag(self.name, version.version, _REPLACED, before.version)
        self.client.set_model_version_tag(self.name, version.version, "validation_status", "passed")
        self.client.set_registered_model_alias(self.name, CHAMPION, version.version)

    def rollback(self) -> tuple[str, str]:
        """Gives the alias back to the version that the champion replaced: (from, to).

        Raises:
            UsageError: there is no champion, or it replaced none.
        """
        champion = self.holder(CHAMPION)
        if champion is None:
            raise UsageError(f"'{self.name}' has no version with the alias {CHAMPION}: nothing to roll back")
        before = champion.tags.get(_REPLACED)
        if before is None:
            raise UsageError(f"version {champion.version} of '{self.name}' replaced none: nothing to roll back to")
        self.client.set_registered_model_alias(self.name, CHAMPION, before)
        return str(champion.version), str(before)


def save_model(bundle: Path, target: Path, example: Sequence[Request]) -> None:
    """The artifact as MLflow saves a pyfunc: models from code, the package beside it, explicit requirements."""
    import mlflow.pyfunc

    package = Path(m3rec_spark.__file__).parent
    with _quiet():
        mlflow.pyfunc.save_model(
            path=str(target),
            python_model=str(Path(__file__).parent / "served_model.py"),
            artifacts={ARTIFACT: str(bundle)},
            code_paths=[str(package)],
            pip_requirements=requirements(),
            signature=SIGNATURE,
            input_example=input_example(example),
        )


def requirements() -> list[str]:
    """What a served model needs, at the versions that run here."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in _SERVING]


def input_example(requests: Sequence[Request]) -> pd.DataFrame:
    """Requests as rows of SIGNATURE; columns that no request uses are left out."""
    rows = [
        {"market": one.market, "user_id": one.user_id, "history": list(one.history), "k": one.k} for one in requests
    ]
    return pd.DataFrame(rows)


def smoke_test(model: Path, expected: Mapping[str, Any]) -> None:
    """Loads a fetched model, with the code that it carries, and compares its answers with those when it was packed.

    In a process of its own: this one has the package imported already.

    Args:
        model: folder of `Registry.fetch`.
        expected: {"requests": rows of the input, "items": list of each, "scores": of these}.

    Raises:
        DataError: it does not load, or answers something else.
    """
    hidden = {"PYTHONPATH", "PYTHONSTARTUP"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", _ASK, str(model)],
        input=json.dumps(expected["requests"]),
        capture_output=True,
        text=True,
        cwd=model,
        env=environment | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise DataError(f"the registered model does not load or answer ({told})")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if answer != [expected["items"], expected["scores"]]:
        raise DataError("the registered model answers other lists than the model that was packed: register it again")


_ASK = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mlflow, pandas
answer = mlflow.pyfunc.load_model(sys.argv[1]).predict(pandas.DataFrame(json.load(sys.stdin)))
print(json.dumps([[list(value) for value in answer[name]] for name in ("items", "scores")]))
"""


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a fetched model.

    Raises:
        DataError: it is not there: the version is not of m3rec_spark.
    """
    files = sorted(folder.rglob(name))
    if not files:
        raise DataError(f"the registered model has no {name}: it was not made by `m3rec register`")
    return dict(json.loads(files[0].read_text(encoding="utf-8")))


@contextlib.contextmanager
def fetched(registry: Registry, version: Any) -> Iterator[Path]:
    """The files of a version, as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="m3rec-") as folder:
        yield registry.fetch(version, Path(folder))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's progress bars and its hint at type hints (the signature is given).

    Nor does it ask the package index about the requirements, which takes minutes where there is no internet.
    """
    wished = {"MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    unset = [name for name in wished if name not in os.environ]
    os.environ.update({name: wished[name] for name in unset})
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method", category=UserWarning)
            yield
    finally:
        for name in unset:
            os.environ.pop(name, None)
