"""The workspace: one folder that holds every table of a run.

A table is `<name>/manifest.json` + `<name>/<version>/...`. A new version is written beside the old one; its manifest is
then put in place by one atomic rename, and only then does the old version go. A reader sees the old table or the new
one, never half of one, and a writer that dies leaves the old one whole.

Each manifest carries a key: the digest of everything its content follows from (config sections, source, keys of its
inputs). Same key, same content: that is what makes a stage fresh, stale or missing.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from m3rec_spark.errors import CorruptTableError, MissingTableError, UsageError
from m3rec_spark.paths import local_path, make_folder, remove_temporaries, write_atomically
from m3rec_spark.schema import SCHEMA_VERSION, TABLES

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What is published of a table. files: path under the version folder -> bytes."""

    table: str
    version: str
    key: str
    rows: int
    files: dict[str, int]
    schema_version: int = SCHEMA_VERSION
    extra: dict[str, Any] = field(default_factory=dict)


class Workspace:
    """Reads and publishes the tables under `root` (made on first write)."""

    def __init__(self, root: str | Path) -> None:
        self.root = local_path(root)

    def require_writable(self) -> None:
        """Raises UsageError unless the root can be made and written."""
        probe = self.root / f".probe-{uuid.uuid4().hex[:8]}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(f"cannot write to the workspace: {error}. Choose another --workspace") from None

    def manifest(self, name: str) -> Manifest | None:
        """The published manifest of a table; None where nothing readable is published."""
        try:
            tree = json.loads((self.root / name / MANIFEST).read_text(encoding="utf-8"))
            if isinstance(tree, dict) and tree.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
                return None  # of another release of the library: it has to be made anew
            return Manifest(**tree)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as error:
            raise CorruptTableError(
                f"{self.root / name / MANIFEST} is damaged ({error}): {_rerun(name, force=True)}"
            ) from None

    def state(self, name: str, key: str) -> Literal["fresh", "stale", "missing", "corrupt"]:
        """How the published table stands to the key that its content should have."""
        try:
            manifest = self.manifest(name)
        except CorruptTableError:
            return "corrupt"
        if manifest is None:
            return "missing"
        if manifest.key != key:
            return "stale"
        return "corrupt" if self._damage(manifest) else "fresh"

    def folder(self, name: str) -> Path:
        """The published version's folder, its files checked against the manifest.

        Raises:
            MissingTableError: nothing is published; names the stage to run.
            CorruptTableError: files are missing or have another size.
        """
        manifest = self.manifest(name)
        if manifest is None:
            raise MissingTableError(f"table '{name}' is missing in {self.root}: {_rerun(name)}")
        damage = self._damage(manifest)
        if damage:
            raise CorruptTableError(f"table '{name}' in {self.root} is damaged ({damage}): {_rerun(name, force=True)}")
        return self.root / name / manifest.version

    def key(self, name: str) -> str:
        """The provenance key of a published table."""
        return self._published(name).key

    def facts(self, name: str) -> dict[str, Any]:
        """What the stage said of a published table's content, for its report."""
        return self._published(name).extra

    def read(self, spark: SparkSession, name: str) -> DataFrame:
        """A published table as a DataFrame with exactly the columns of its schema."""
        schema = _schema(name)
        return spark.read.schema(schema).parquet(str(self.folder(name))).select(*schema.fieldNames())

    def read_arrow(self, name: str, columns: list[str] | None = None, filter: ds.Expression | None = None) -> pa.Table:
        """A published table, read without a JVM. For tables that do not grow with users, or a bounded part of one."""
        source = ds.dataset(self.folder(name), schema=arrow_schema(name), format="parquet")
        try:
            return source.to_table(columns=columns, filter=filter)
        except (pa.ArrowException, OSError) as error:
            told = str(error).splitlines()[0]
            raise CorruptTableError(
                f"table '{name}' in {self.root} is damaged ({told}): {_rerun(name, force=True)}"
            ) from None

    @contextlib.contextmanager
    def publishing(self, name: str, key: str, rows: int = 0, extra: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Gives a new folder to fill; publishes it when the block ends well, removes it when it does not.

        extra: what the manifest says of the content; it may be filled until the block ends.
        """
        if name not in TABLES:
            raise ValueError(f"'{name}' is not a table of schema.TABLES")
        version = f"v-{uuid.uuid4().hex[:12]}"
        folder = self.root / name / version
        make_folder(folder)
        try:
            yield folder
            remove_temporaries(folder)  # of tasks that were killed
            if TABLES[name].schema is not None:
                rows = _parquet_rows(folder)
            files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if _is_data(f)}
            manifest = Manifest(name, version, key, rows, files, extra=dict(extra or {}))  # as it is by now
            write_atomically(self.root / name / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
        except BaseException:
            current = self.root / name / MANIFEST
            if not current.is_file() or version not in current.read_text():  # an interrupt may come after the rename
                shutil.rmtree(folder, ignore_errors=True)
            raise
        for old in (self.root / name).iterdir():  # also what an earlier writer left when it was killed
            if old.is_dir() and old.name != version:
                shutil.rmtree(old, ignore_errors=True)

    def write(
        self, frame: DataFrame, name: str, key: str, extra: Mapping[str, Any] | None = None, rows_per_file: int = 0
    ) -> Manifest:
        """Publishes a DataFrame as a table. rows_per_file: 0 for no limit."""
        _schema(name)  # refused before a folder is made
        with self.publishing(name, key, extra=extra) as folder:
            fill(folder, frame, name, rows_per_file)
        return self._published(name)

    def write_arrow(
        self, batches: pa.Table | Iterator[pa.RecordBatch], name: str, key: str, extra: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Publishes Arrow data made on the driver (batches of the table's `arrow_schema`)."""
        _schema(name)
        with self.publishing(name, key, extra=extra) as folder:
            fill_arrow(folder, batches, name)
        return self._published(name)

    @contextlib.contextmanager
    def scratch(self, purpose: str) -> Iterator[Path]:
        """A folder that Spark workers can read while the block runs; removed after it."""
        folder = self.root / "_scratch" / f"{purpose}-{uuid.uuid4().hex[:12]}"
        make_folder(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def resumable(self, purpose: str, key: str) -> Iterator[Path]:
        """A folder for work that a later run goes on with: kept when the block fails or the process dies.

        Removed when the block ends well; what runs under other keys left is removed at once.
        """
        place = self.root / "_resumable" / purpose
        folder = place / key[:16]
        for old in place.glob("*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        if not folder.is_dir():
            make_folder(folder)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    def resumable_bytes(self, purpose: str, key: str) -> int:
        """Bytes of what `resumable` keeps under a key."""
        folder = self.root / "_resumable" / purpose / key[:16]
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def clear_resumable(self, purpose: str) -> None:
        """Removes work that no run will go on with."""
        shutil.rmtree(self.root / "_resumable" / purpose, ignore_errors=True)

    def clear_scratch(self) -> None:
        """Removes what a killed run left in `_scratch`; for the start of a run, as one at a time writes."""
        shutil.rmtree(self.root / "_scratch", ignore_errors=True)

    def _published(self, name: str) -> Manifest:
        manifest = self.manifest(name)
        assert manifest is not None  # it was published just now, or found fresh
        return manifest

    def _damage(self, manifest: Manifest) -> str:
        folder = self.root / manifest.table / manifest.version
        for file, size in manifest.files.items():
            path = folder / file
            if not path.is_file():
                return f"{file} is missing"
            if path.stat().st_size != size:
                return f"{file} has {path.stat().st_size} bytes, not {size}"
        return ""


def fill(folder: Path, frame: DataFrame, name: str, rows_per_file: int = 0) -> None:
    """Writes a DataFrame into a folder of `publishing`, with the columns of the table."""
    writer = frame.select(*(frame[c.name].cast(c.dataType) for c in _schema(name))).write.mode("append")
    writer.option("maxRecordsPerFile", rows_per_file).parquet(str(folder))


def fill_arrow(folder: Path, batches: pa.Table | Iterator[pa.RecordBatch], name: str) -> None:
    """Writes Arrow data into a folder of `publishing`."""
    schema = arrow_schema(name)
    stream = batches.cast(schema).to_batches() if isinstance(batches, pa.Table) else batches
    with pq.ParquetWriter(folder / "part-0.parquet", schema) as writer:
        for batch in stream:
            writer.write_batch(batch)


def arrow_schema(name: str) -> pa.Schema:
    """The Arrow schema of a table."""
    return to_arrow_schema(_schema(name))


def _schema(name: str) -> T.StructType:
    schema = TABLES[name].schema
    if schema is None:
        raise ValueError(f"'{name}' is a folder of files: use folder() and publishing()")
    return schema


def _parquet_rows(folder: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in folder.rglob("*.parquet"))


def _is_data(file: Path) -> bool:
    """Spark's own leftovers (.crc, _SUCCESS) are not part of a table."""
    return file.is_file() and not file.name.startswith((".", "_"))


def _rerun(name: str, force: bool = False) -> str:
    stage, flag = TABLES[name].stage, " --force" if force else ""
    return f"run `m3rec {stage}{flag}` (or jobs/{stage}.py{flag}) on this workspace"
