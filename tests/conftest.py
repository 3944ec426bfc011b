"""One small SparkSession for the whole run; tests that do not ask for it start no JVM."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no test talks to the outside
os.environ.setdefault("PYARROW_IGNORE_TIMEZONE", "1")
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # workers: else the first python3 of PATH


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for the session is a Spark test: nobody has to remember the marker."""
    for item in items:
        if {"spark", "cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.spark)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[2]")  # 2, so that partition bugs can show
        .appName("m3rec_spark tests")
        .config("spark.sql.shuffle.partitions", "2")  # the default of 200 makes tiny tests slow
        .config("spark.driver.memory", "1g")
        .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1")  # many short jobs: a third less JVM time
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def cluster() -> Iterator:
    """Executors to be killed."""
    from faults import Cluster

    found = Cluster()
    yield found
    found.close()


@pytest.fixture(scope="session")
def xmarket() -> Path:
    """The five real markets; the folder is not part of the project."""
    folder = Path(os.environ.get("M3REC_XMARKET", Path(__file__).parents[2] / "shared" / "data" / "xmarket"))
    if not (folder / "s1" / "train_5core.tsv").is_file():
        pytest.skip("the XMarket files are absent: set M3REC_XMARKET to their folder (m3rec data xmarket --to DIR)")
    return folder
