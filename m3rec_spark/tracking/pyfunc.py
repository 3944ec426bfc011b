"""The served model as MLflow's pyfunc: a thin coat over `ranking.recommender`. No Spark, no torch, no pickle.

A row of the input is a request; ids are text, whatever JSON made of them. What a caller can get wrong is answered with
status 400 and words; a market or a user that nobody knows is no error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.schema import Array, ColSpec, DataType, Schema

from m3rec_spark.errors import UsageError
from m3rec_spark.ranking.bundle import open_bundle
from m3rec_spark.ranking.recommender import Answer, Recommender, Request, reasons_as_json

ARTIFACT = "bundle"
DEFAULT_K = 10
_TEXTS = Array(DataType.string)
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec("string", "market"),
            ColSpec("string", "user_id", required=False),
            ColSpec(_TEXTS, "history", required=False),
            ColSpec("long", "k", required=False),
            ColSpec(_TEXTS, "exclude", required=False),
            ColSpec(_TEXTS, "only", required=False),
            ColSpec("boolean", "explain", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec("string", "market"),
            ColSpec("string", "user_id", required=False),
            ColSpec("string", "status"),
            ColSpec(_TEXTS, "items"),
            ColSpec(Array(DataType.double), "scores"),
            ColSpec(Array(_TEXTS), "reasons"),
        ]
    ),
)
SPARK_RESULT = (
    "struct<market:string,user_id:string,status:string,items:array<string>,scores:array<double>,"
    "reasons:array<array<string>>>"
)
"""For mlflow.pyfunc.spark_udf(..., result_type=SPARK_RESULT)."""


class MarketsModel(PythonModel):
    """Lists for users of all markets. Input and output: SIGNATURE."""

    def __init__(self) -> None:
        self.recommender: Recommender | None = None

    def load_context(self, context: PythonModelContext) -> None:
        """Maps the arrays."""
        self.recommender = open_bundle(Path(context.artifacts[ARTIFACT]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for every row of the input, in its order."""
        assert self.recommender is not None  # load_context ran
        try:
            requests = [_request(row) for row in model_input.to_dict("records")]
            answers = self.recommender.recommend(requests)
        except UsageError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        return as_frame(requests, answers)


def as_frame(requests: Iterable[Request], answers: Iterable[Answer]) -> pd.DataFrame:
    """The output of SIGNATURE."""
    rows = [
        (request.market, request.user_id, answer.status, answer.items, answer.scores, reasons_as_json(answer))
        for request, answer in zip(requests, answers, strict=True)
    ]
    return pd.DataFrame(rows, columns=[column.name for column in SIGNATURE.outputs.inputs])


def _request(row: dict[Any, Any]) -> Request:
    only, market = row.get("only"), _text(row.get("market"), "market")
    if market is None:
        raise UsageError("market is missing: every request names one")
    return Request(
        market=market,
        user_id=_text(row.get("user_id"), "user_id"),
        history=_texts(row.get("history"), "history"),
        k=_whole(row.get("k")),
        exclude=_texts(row.get("exclude"), "exclude"),
        only=None if _absent(only) else _texts(only, "only"),
        explain=_truth(row.get("explain")),
    )


def _absent(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _text(value: Any, name: str) -> str | None:
    if _absent(value):
        return None
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    if hasattr(value, "item"):  # a number of numpy
        return _text(value.item(), name)
    raise UsageError(f"{name}={value!r} must be text")


def _texts(value: Any, name: str) -> list[str]:
    if _absent(value):
        return []
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        raise UsageError(f"{name}={value!r} must be a list of item ids")
    found = [_text(one, name) for one in value]
    return [one for one in found if one is not None]


def _whole(value: Any) -> int:
    if _absent(value):
        return DEFAULT_K
    if isinstance(value, bool) or (not isinstance(value, (int, float)) and not hasattr(value, "item")):
        raise UsageError(f"k={value!r} must be a whole number")
    number = value.item() if hasattr(value, "item") else value
    if not math.isfinite(number) or int(number) != number:
        raise UsageError(f"k={value!r} must be a whole number")
    return int(number)


def _truth(value: Any) -> bool:
    if _absent(value):
        return False
    if not isinstance(value, (bool,)) and not hasattr(value, "item"):
        raise UsageError(f"explain={value!r} must be true or false")
    return bool(value)
