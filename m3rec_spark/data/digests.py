"""The digest of a source's content: the same for the same rows, whatever their order or the names of the files."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from m3rec_spark.data.sources import Origin, Part, is_local, read_part, readable
from m3rec_spark.paths import local_path, refuse_overlap

_WHOLE = 1 << 30  # bytes of a file that are hashed; a larger one goes by size and time of change


def digest_origin(source: Origin, spark: Callable[[], SparkSession]) -> str:
    """SHA-256 (hex) over all parts, each with its market and role.

    Local files go by their bytes. Tables and remote files go by number of rows and sum of row hashes, for which
    `spark` is called; so does a path that is not here, and its absence is told by Spark.

    Raises:
        DataError: a part is missing or unreadable.
    """
    parts = [("train", part) for part in source.train] + [("holdout", part) for part in source.holdout]
    found = [[role, part.market, _digest_part(source, part, spark)] for role, part in parts]
    return hashlib.sha256(json.dumps([source.format, found]).encode()).hexdigest()


def refuse_workspace_in(source: Origin, workspace: Path) -> None:
    """Raises UsageError if the workspace and a local part of the source overlap."""
    for part in (*source.train, *source.holdout):
        if is_local(source, part):
            for file in [part.path, *glob.glob(str(local_path(part.path)))]:
                refuse_overlap(workspace, file)


def _digest_part(source: Origin, part: Part, spark: Callable[[], SparkSession]) -> str:
    files = _local_files(part.path) if is_local(source, part) else []
    if files:
        return hashlib.sha256("".join(sorted(map(_digest_file, files))).encode()).hexdigest()
    with readable(part.path):
        return _digest_rows(read_part(spark(), source, part))


def _local_files(path: str) -> list[Path]:
    """The data files of a file, folder or glob; as in Spark, names with . or _ in front are none."""
    local = local_path(path)
    roots = [local] if local.exists() else [Path(match) for match in glob.glob(str(local))]
    return [file for root in roots for file in _data_files(root)]


def _data_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return [
        file
        for file in root.rglob("*")
        if file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(root).parts)
    ]


def _digest_file(file: Path) -> str:
    found = file.stat()
    if found.st_size > _WHOLE:
        return f"{found.st_size}-{found.st_mtime_ns}"
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_rows(frame: DataFrame) -> str:
    row_hash = F.xxhash64(*frame.columns).cast("decimal(38,0)")  # the sum of longs would overflow
    (found,) = frame.agg(F.count("*").alias("rows"), F.sum(row_hash).alias("hashes")).collect()
    return f"{found['rows']}-{found['hashes']}"
