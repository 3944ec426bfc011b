"""Outside ids and indices, both ways, from files that are mapped rather than read.

The ids of a list stand in ascending order of their UTF-8 bytes, as `data.indexing` numbers them: an index is found by
bisection, O(log n) places of the file, and nothing is loaded or hashed when a process starts.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from m3rec_spark.errors import CorruptTableError


class Ids(Sequence[str]):
    """Ids in ascending order, a slice of a mapped string column."""

    def __init__(self, column: pa.StringArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return str(self.column[index].as_py())

    def __iter__(self) -> Iterator[str]:
        return iter(self.column.to_pylist())

    def part(self, first: int, last: int) -> Ids:
        """The ids from `first` to before `last`; numbered from 0."""
        return Ids(self.column[first:last])

    def find(self, wanted: str) -> int | None:
        """The index of an id; None where it is unknown."""
        try:
            at = bisect.bisect_left(self, wanted.encode(), key=str.encode)
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
            return None
        return at if at < len(self) and self[at] == wanted else None


def save_ids(path: Path, ids: pa.StringArray) -> None:
    """Writes ids, in their order, to an Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("id", pa.large_string())])) as writer:
        writer.write(pa.record_batch([ids.cast(pa.large_string())], names=["id"]))


def open_ids(path: Path) -> Ids:
    """The ids of a file, mapped.

    Raises:
        CorruptTableError: it is absent or damaged.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return Ids(table["id"].chunk(0) if table["id"].num_chunks else pa.array([], pa.large_string()))
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise CorruptTableError(f"{path} cannot be read ({error}): make it again") from None
