"""The training feed: one epoch of (market, user, item) pairs as shuffled batches. The only door to petastorm.

Two readers give the same rows: `petastorm`, and `arrow` for runtimes where petastorm cannot be installed. Every epoch
is a fresh pass: row groups in an order drawn from (seed, epoch), rows mixed in a buffer, batches of one size cut from
it. The rows that came are counted against the Parquet footers: some petastorm versions end an epoch early, silently.

Memory: BUFFER_ROWS + one row group + one batch, 24 bytes a row.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from m3rec_spark.errors import CorruptTableError, DataError, UsageError

COLUMNS = ["market", "user", "item"]
BUFFER_ROWS = 1 << 20
Chunks = Iterator[NDArray[np.int64]]  # (rows, 3) in the order of COLUMNS, a row group each


class Batch(NamedTuple):
    """(P,) pairs, int64."""

    market: NDArray[np.int64]
    user: NDArray[np.int64]
    item: NDArray[np.int64]


def batches(
    folder: Path, batch_size: int, seed: int, epoch: int, reader: Literal["petastorm", "arrow"] = "petastorm"
) -> Iterator[Batch]:
    """One epoch: every row of the folder's Parquet files once, in batches of batch_size (the last may be smaller).

    The same (folder, batch_size, seed, epoch, reader) gives the same batches; another epoch another order.

    Raises:
        UsageError: petastorm is not installed, or cannot read this path.
        DataError: no rows, or not the integer columns of FEED.
        CorruptTableError: a file cannot be read, or fewer or more rows came than the footers say.
    """
    expected = footer_rows(folder)
    if not expected:
        raise DataError(f"the feed {folder} holds no train pairs: look at the counts of prepare")
    generator = np.random.default_rng([seed, epoch])
    read: Callable[[Path, np.random.Generator], Chunks] = {"petastorm": _petastorm, "arrow": _arrow}[reader]
    rows = 0
    for chunk in _rebatch(_readable(read(folder, generator), folder), batch_size, generator):
        rows += len(chunk)
        yield Batch(*np.ascontiguousarray(chunk.T))
    if rows != expected:
        raise CorruptTableError(
            f"reader '{reader}' gave {rows:,} of the {expected:,} rows of {folder} in epoch {epoch + 1}: "
            "an epoch must be whole; set train.feed=arrow, or check the petastorm version (m3rec doctor)"
        )


def footer_rows(folder: Path) -> int:
    """Rows of the folder by its Parquet footers.

    Raises:
        CorruptTableError: a footer cannot be read.
    """
    with _damage_named(folder):
        return sum(pq.read_metadata(file).num_rows for file in _files(folder))


def _rebatch(chunks: Chunks, batch_size: int, generator: np.random.Generator) -> Chunks:
    """Batches of one size out of chunks of any, their rows mixed over at least BUFFER_ROWS at a time."""
    waiting: list[NDArray[np.int64]] = []
    rows = 0
    for chunk in chunks:
        waiting.append(chunk)
        rows += len(chunk)
        if rows >= BUFFER_ROWS + batch_size:
            mixed = generator.permutation(np.concatenate(waiting))
            whole = rows - rows % batch_size
            yield from np.split(mixed[:whole], whole // batch_size)
            waiting, rows = [mixed[whole:]], rows - whole
    if rows:
        mixed = generator.permutation(np.concatenate(waiting))
        yield from np.split(mixed, range(batch_size, rows, batch_size))


def _arrow(folder: Path, generator: np.random.Generator) -> Chunks:
    groups = [(file, group) for file in _files(folder) for group in range(pq.read_metadata(file).num_row_groups)]
    for index in generator.permutation(len(groups)):
        file, group = groups[index]
        with pq.ParquetFile(file) as parquet:
            table = parquet.read_row_group(group, columns=COLUMNS)
        yield _rows({name: table[name].to_numpy() for name in table.column_names}, folder)


def _petastorm(folder: Path, generator: np.random.Generator) -> Chunks:
    _refuse_for_petastorm(folder)
    with _future_warnings_silenced():
        try:
            from petastorm import make_batch_reader
        except ImportError as error:
            raise UsageError(
                f"petastorm cannot be imported ({error}): set train.feed=arrow, or pip install 'm3rec-spark[petastorm]'"
            ) from None
        reader = make_batch_reader(
            f"file://{folder.resolve()}",
            schema_fields=[f"^{name}$" for name in COLUMNS],
            reader_pool_type="dummy",  # a thread pool would give another order in each run
            shuffle_row_groups=True,
            shuffle_rows=True,
            seed=int(
                generator.integers(1, 2**31)
            ),  # 0 would mean no seed; one per epoch, as an epoch is a fresh reader
            num_epochs=1,
        )
    with reader:
        groups = iter(reader)
        while True:
            with _future_warnings_silenced():  # only while petastorm runs: filters are global to the process
                group = next(groups, None)
            if group is None:
                return
            yield _rows(group._asdict(), folder)


def _rows(columns: dict[str, Any], folder: Path) -> NDArray[np.int64]:
    if set(columns) != set(COLUMNS) or any(columns[name].dtype.kind != "i" for name in COLUMNS):
        found = ", ".join(f"{name} {column.dtype}" for name, column in columns.items())
        raise DataError(f"the feed {folder} must hold the integer columns {', '.join(COLUMNS)}, found: {found}")
    rows: NDArray[np.int64] = np.stack([columns[name] for name in COLUMNS], axis=1, dtype=np.int64)
    return rows


def _refuse_for_petastorm(folder: Path) -> None:
    path = str(folder.resolve())
    if "#" in path or "?" in path:
        raise UsageError(
            f"petastorm takes '{path}' for a URL, which ends at '#' or '?': choose another --workspace, or set "
            "train.feed=arrow"
        )
    for name in ("_common_metadata", "_metadata"):
        if next(folder.rglob(name), None):
            raise DataError(
                f"the feed {folder} holds a file {name}, which petastorm would unpickle: a feed written by prepare "
                "has none; remove it or run `m3rec prepare --force`"
            )


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.parquet") if not file.name.startswith(("_", ".")))


def _readable(chunks: Chunks, folder: Path) -> Chunks:
    """The chunks, with a reader's failure told in the library's words."""
    while True:
        with _damage_named(folder):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


@contextlib.contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise CorruptTableError(f"the feed {folder} cannot be read ({error}): run `m3rec prepare --force`") from None


@contextlib.contextmanager
def _future_warnings_silenced() -> Iterator[None]:
    """Petastorm 0.12 calls pyarrow's legacy Parquet API, which says so several times a row group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"petastorm\.|pyarrow\.")
        yield
