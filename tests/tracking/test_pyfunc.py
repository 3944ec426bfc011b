from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from saved_model import saved

from m3rec_spark.ranking.recommender import MAX_K, Recommender, Request, reasons_as_json
from m3rec_spark.tracking.pyfunc import SPARK_RESULT

ABSENT = ("pyspark", "torch", "petastorm", "numba", "safetensors", "joblib", "threadpoolctl", "psutil", "tqdm")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recommender]:
    return saved(tmp_path_factory.mktemp("pyfunc"))


@pytest.fixture(scope="module")
def loaded(model: tuple[Path, Recommender]) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        return mlflow.pyfunc.load_model(str(model[0]))


def test_answers_are_those_of_the_recommender(loaded: Any, model: tuple[Path, Recommender]) -> None:
    rows = [
        {"market": "b", "user_id": "u1", "k": 4, "explain": True},
        {"market": "a", "user_id": "new", "history": ["i 15", "i 20"], "exclude": ["i 16"], "k": 10},
        {"market": "zz", "history": ["i 3"], "only": ["i 5", "i 6"], "k": 10**12},
        {"market": "ü", "user_id": None, "k": 2},
    ]
    lists = {"history": None, "exclude": None, "only": None, "explain": False}  # MLflow: in every row, or in none
    found = loaded.predict(pd.DataFrame([lists | row for row in rows]))
    requests = [
        Request("b", "u1", k=4, explain=True), Request("a", "new", ["i 15", "i 20"], exclude=["i 16"]),
        Request("zz", history=["i 3"], only=["i 5", "i 6"], k=10**12), Request("ü", k=2),
    ]  # fmt: skip
    wanted = model[1].recommend(requests)
    assert found["status"].tolist() == ["known", "from_history", "unknown_market", "popular"]
    assert found["items"].tolist() == [answer.items for answer in wanted]
    assert found["scores"].tolist() == [answer.scores for answer in wanted]
    assert found["reasons"].tolist() == [reasons_as_json(answer) for answer in wanted]
    assert json.loads(found["reasons"][0][0][0]).keys() == {"item", "share", "shoppers"}
    assert found["market"].tolist() == ["b", "a", "zz", "ü"]
    assert len(found["items"][3]) == 2


def test_only_the_market_is_needed(loaded: Any) -> None:
    assert loaded.predict(pd.DataFrame({"market": ["b"]}))["status"].tolist() == ["popular"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"user_id": "u1"}, "market"),
        ({"market": "b", "k": 0}, "k=0: a list has 1 item at least"),
        ({"market": "b", "history": "i 3"}, "history"),
        ({"market": "b", "k": "many"}, "k"),
    ],
)
def test_what_is_wrong_is_said(loaded: Any, row: dict[str, Any], words: str) -> None:
    with pytest.raises(MlflowException, match=words):
        loaded.predict(pd.DataFrame([row]))


def test_what_json_makes_of_ids_and_numbers_is_understood(loaded: Any) -> None:
    """The scoring server passes values through as JSON had them; the model sees to it itself."""
    inner = loaded.unwrap_python_model()
    frame = pd.DataFrame({"market": ["b"], "user_id": [np.int64(7)], "k": [3.0], "history": [np.array(["i 3", 4])]})
    found = inner.predict(None, frame)
    assert found["user_id"].tolist() == ["7"]
    assert len(found["items"][0]) == 3
    for row in ({"k": 2.5}, {"k": True}, {"k": float("inf")}, {"user_id": 1.5}, {"only": "abc"}, {"explain": "yes"}):
        with pytest.raises(MlflowException):
            inner.predict(None, pd.DataFrame([{"market": "b", **row}]))


def test_the_artifact_holds_no_pickle_and_asks_for_little(model: tuple[Path, Recommender]) -> None:
    folder = model[0]
    flavors = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    assert flavors["loader_module"] == "mlflow.pyfunc.loaders.code_model"
    assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pickle", ".bin", ".pt")]
    wanted = (folder / "requirements.txt").read_text().split()
    assert sorted(line.split("==")[0] for line in wanted) == ["mlflow", "numpy", "pandas", "pyarrow", "scipy"]
    assert all("==" in line for line in wanted)
    assert "tests" not in {part for file in folder.rglob("*") for part in file.relative_to(folder).parts}


def test_it_needs_what_it_asks_for_and_no_more(model: tuple[Path, Recommender]) -> None:
    """In a process without the other dependencies of the package, with the package from the artifact alone."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {ABSENT}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import mlflow, pandas as pd\n"
        f"model = mlflow.pyfunc.load_model({str(model[0])!r})\n"
        "answer = model.predict(pd.DataFrame({'market': ['b'], 'user_id': ['u1'], 'explain': [True]}))\n"
        "assert len(answer['items'][0]) == 10, answer\n"
        "import m3rec_spark; print(m3rec_spark.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=model[0].parent,
        env={"PATH": "/usr/bin:/bin", "HOME": str(model[0].parent), "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith(str(model[0] / "code"))


def test_as_a_spark_udf(spark: SparkSession, model: tuple[Path, Recommender]) -> None:
    udf = mlflow.pyfunc.spark_udf(spark, str(model[0]), result_type=SPARK_RESULT, env_manager="local")
    frame = spark.createDataFrame([("b", "u1", 3), ("a", "u2", 2)], "market string, user_id string, k long")
    rows = frame.select("market", udf(F.struct("market", "user_id", "k")).alias("answer")).collect()
    wanted = model[1].recommend([Request("b", "u1", k=3), Request("a", "u2", k=2)])
    assert [row["answer"]["items"] for row in rows] == [answer.items for answer in wanted]
    assert rows[0]["answer"]["scores"] == pytest.approx(wanted[0].scores)
    assert MAX_K == 1000
