"""The evaluation contract: what was held out, drawn and counted, with a SHA-256 over all of it.

Two results may be compared only if their contracts have the same SHA-256. The digest of a table is the same under any
partitioning and costs one pass: every row is hashed, the hashes are sorted within at most 4,096 buckets, and the driver
hashes the buckets in order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from m3rec_spark.errors import DataError

CONTRACT_VERSION = 1
_BUCKET_DIGITS = 3  # hex: 4,096 buckets


def make_contract(
    candidates: DataFrame,
    *,
    markets: DataFrame,
    users: DataFrame,
    items: DataFrame,
    negatives: int,
    seen: str,
    seed: int,
) -> dict[str, Any]:
    """The contract of frozen CANDIDATES under the ids of MARKETS, USERS and ITEMS, as plain JSON values."""
    contract: dict[str, Any] = {
        "version": CONTRACT_VERSION,
        "name": "standard" if seen == "excluded" else "paper-like",
        "split": "leave one out",
        "halves": "users, by a stable hash: valid, test",
        "pool": "market",
        "negatives": negatives,
        "seen": seen,
        "ties": "expected rank",
        "metrics": ["mrr", "ndcg_10", "hr_10"],
        "cutoff": 10,
        "seed": seed,
        "markets_sha256": table_digest(markets.select("market", "market_id")),
        "items_sha256": table_digest(items.select("item", "item_id")),
        "candidates_sha256": table_digest(_identified(candidates, markets, users)),
        "counts": _counts(candidates),
    }
    return {**contract, "sha256": hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()}


def require_same_contract(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuses to compare results that were measured differently.

    Raises:
        DataError: the SHA-256 differ; names the fields that do.
    """
    if one["sha256"] != other["sha256"]:
        differ = [k for k in sorted({*one, *other}) if k != "sha256" and one.get(k) != other.get(k)]
        details = "; ".join(f"{k}: {one.get(k)!r} and {other.get(k)!r}" for k in differ)
        raise DataError(
            f"results under different evaluation contracts cannot be compared ({details}): "
            "evaluate both models on the same prepared workspace"
        )


def table_digest(rows: DataFrame) -> str:
    """SHA-256 (hex) of the multiset of rows, columns in the order given."""
    hashed = rows.select(F.sha2(F.to_json(F.struct(*rows.columns)), 256).alias("row"))
    buckets = hashed.groupBy(F.substring("row", 1, _BUCKET_DIGITS).alias("bucket")).agg(
        F.sha2(F.array_join(F.sort_array(F.collect_list("row")), ""), 256).alias("digest")
    )
    total = hashlib.sha256()
    for _, digest in sorted(map(tuple, buckets.collect())):
        total.update(digest.encode())
    return total.hexdigest()


def _identified(candidates: DataFrame, markets: DataFrame, users: DataFrame) -> DataFrame:
    """(market_id, user_id, hash of the lists): the lists are hashed first, so that the join moves no list."""
    content = F.sha2(F.to_json(F.struct("half", "positive", "cold", "negatives")), 256)
    return (
        candidates.select("market", "user", content.alias("content"))
        .join(users, on=["market", "user"], how="inner")
        .join(F.broadcast(markets.select("market", "market_id")), on="market", how="inner")
        .select("market_id", "user_id", "content")
    )


def _counts(candidates: DataFrame) -> dict[str, int]:
    row = candidates.agg(
        F.count("*").alias("positives"),
        F.count_if(F.col("half") == "valid").alias("valid"),
        F.count_if(F.col("half") == "test").alias("test"),
        F.count_if("cold").alias("cold"),
    ).collect()[0]
    return {name: int(value) for name, value in row.asDict().items()}
