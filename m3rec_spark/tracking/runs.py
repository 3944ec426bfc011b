"""MLflow runs: one for the pipeline, a child for each stage. Logs from the driver only, and never fails a stage.

Runs are addressed by id through `MlflowClient`, so no global MLflow state is left behind: a run that the caller has
active becomes the parent and stays active. When the server cannot be reached, the first failure is a warning, the rest
is skipped; every figure is in `reports/` as well.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m3rec_spark import __version__

log = logging.getLogger(__name__)

_PARAMETER_LENGTH = 6000  # MLflow cuts longer values
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_\-. /]")
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}  # not minutes, when it is down


class Tracker:
    """Logs to one run. Every method is safe to call when tracking is off or the server is gone."""

    def __init__(self, client: Any = None, run_id: str | None = None, experiment_id: str | None = None) -> None:
        self._client = client
        self.run_id = run_id
        self._experiment_id = experiment_id

    @property
    def active(self) -> bool:
        """Whether what is logged arrives somewhere."""
        return self._client is not None

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters of the run (each once in its life)."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:_PARAMETER_LENGTH]) for key, value in values.items()]
        for start in range(0, len(entries), 100):  # MLflow's limit of a batch
            self._do("log_batch", params=entries[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Metrics at a step; a value that is not finite is left out with a warning.

        Names like `M1/ndcg_10`; what MLflow does not take in a name becomes `_`.
        """
        from mlflow.entities import Metric

        now, entries = int(time.time() * 1000), []
        for key, value in values.items():
            if math.isfinite(value):
                entries.append(Metric(_NOT_IN_NAMES.sub("_", key), float(value), now, step or 0))
            else:
                log.warning("metric %s is %s: not logged", key, value)
        for start in range(0, len(entries), 1000):
            self._do("log_batch", metrics=entries[start : start + 1000])

    def figure(self, figure: Any, name: str) -> None:
        """A matplotlib figure as an artifact."""
        self._do("log_figure", figure, name)

    def json(self, value: Any, name: str) -> None:
        """A JSON-able value as an artifact."""
        self._do("log_dict", value, name)

    def text(self, value: str, name: str) -> None:
        """A text as an artifact, as a page."""
        self._do("log_text", value, name)

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the run."""
        for key, value in values.items():
            self._do("set_tag", key, value)

    def dataset(self, name: str, digest: str, rows: int) -> None:
        """A data set by its content digest."""
        from mlflow.entities import Dataset, DatasetInput

        data = Dataset(
            name=name, digest=digest[:36], source_type="m3rec_spark", source=name, profile=f'{{"rows": {rows}}}'
        )
        self._do("log_inputs", datasets=[DatasetInput(dataset=data, tags=[])])

    @contextlib.contextmanager
    def child(self, name: str) -> Iterator[Tracker]:
        """A run below this one for the time of the block; FAILED if the block raises."""
        with _run(self._client, self._experiment_id, name, self.run_id) as tracker:
            yield tracker

    def _do(self, method: str, *arguments: Any, **named: Any) -> None:
        if self._client is None:
            return
        try:
            getattr(self._client, method)(self.run_id, *arguments, **named)
        except Exception as error:  # any: tracking must never cost the user a training
            log.warning("MLflow failed (%s: %s); this run goes on untracked", type(error).__name__, _first_line(error))
            self._client = None


@contextlib.contextmanager
def pipeline_run(uri: str | None, experiment: str, name: str, workspace: Path) -> Iterator[Tracker]:
    """The run of a pipeline: the caller's active run if there is one, else a new run.

    Args:
        uri: tracking URI; None for the one the caller or MLFLOW_TRACKING_URI set, else SQLite in the workspace.
        experiment: made if it does not exist.
        name: of the run.
        workspace: where the default store goes.
    """
    import mlflow

    active = mlflow.active_run()
    if active is not None:
        yield Tracker(mlflow.MlflowClient(), active.info.run_id, active.info.experiment_id)
        return
    with _impatient():
        client, experiment_id = _connect(uri, experiment, workspace)
        with _run(client, experiment_id, name, None) as tracker:
            tracker.tags(_origin())
            yield tracker


def tracking_uri(uri: str | None, workspace: Path) -> str:
    """The store that `pipeline_run` logs to."""
    import mlflow

    if uri is not None:
        return uri
    chosen = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    if chosen or "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return str(mlflow.get_tracking_uri())
    return f"sqlite:///{workspace / 'mlflow.db'}"


def _connect(uri: str | None, experiment: str, workspace: Path) -> tuple[Any, str | None]:
    import mlflow

    where = tracking_uri(uri, workspace)
    for chatty in ("alembic", "mlflow.store.db.utils"):  # a page of migrations on the first use of a new store
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        client = mlflow.MlflowClient(where)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return client, found.experiment_id
        artifacts = (workspace / "mlartifacts").as_uri() if where.startswith("sqlite:") else None
        return client, client.create_experiment(experiment, artifact_location=artifacts)
    except Exception as error:  # any: see the module's promise
        log.warning("MLflow at %s cannot be used (%s); going on untracked", where, _first_line(error))
        return None, None


@contextlib.contextmanager
def _run(client: Any, experiment_id: str | None, name: str, parent: str | None) -> Iterator[Tracker]:
    tracker = Tracker()
    if client is not None:
        tags = {"mlflow.runName": name} | ({"mlflow.parentRunId": parent} if parent else {})
        try:
            run = client.create_run(experiment_id, run_name=name, tags=tags)
            tracker = Tracker(client, run.info.run_id, experiment_id)
        except Exception as error:  # any: see the module's promise
            log.warning("MLflow cannot start run %s (%s); going on untracked", name, _first_line(error))
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker._do("set_terminated", status)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    unset: list[str] = [key for key in _PATIENCE if key not in os.environ]
    os.environ.update({key: _PATIENCE[key] for key in unset})
    try:
        yield
    finally:
        for key in unset:
            os.environ.pop(key, None)


def _origin() -> dict[str, str]:
    tags = {"m3rec_spark.version": __version__}
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # an installed wheel has no repository: no tag
        tags["mlflow.source.git.commit"] = subprocess.run(
            git, capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    return tags


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
