"""Local paths, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from m3rec_spark.errors import UsageError

log = logging.getLogger(__name__)


def local_path(path: str | Path) -> Path:
    """An absolute local path of `path`, `file:/path`, `dbfs:/path` or `/Volumes/...`.

    Raises:
        UsageError: for any other scheme; such a store has to be mounted.
    """
    text = str(path)
    parsed = urlparse(text)
    if parsed.scheme in ("", "file"):
        text = unquote(parsed.path) if parsed.scheme == "file" else text
    elif parsed.scheme == "dbfs":
        text = "/dbfs" + parsed.path
    else:
        raise UsageError(
            f"'{path}': scheme '{parsed.scheme}:' is not a local path; mount it, or use file:, dbfs: or /Volumes"
        )
    return Path(os.path.realpath(os.path.expanduser(text)))


def refuse_overlap(output: str | Path, source: str | Path) -> None:
    """Raises UsageError if one of the two paths (links resolved) is, or lies inside, the other."""
    out, src = local_path(output), local_path(source)
    if out == src or out in src.parents or src in out.parents:
        raise UsageError(f"the workspace {out} and the source {src} overlap: choose a workspace outside the source")


@contextlib.contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the lock goes with the process, however that ends.

    Raises:
        UsageError: another process holds it.
    """
    with open(folder / ".lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process works in {folder}: wait for it, or take another workspace") from None
        except OSError:  # a mounted store without locks
            log.debug("%s cannot be locked", folder)
        yield


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes that name when the block ends well.

    So a task that is killed, run again, or run twice at once leaves one whole file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Removes what killed writers left of `replacing` under a folder."""
    for left in folder.rglob(".*." + "[0-9a-f]" * 8):
        left.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """A new folder; UsageError where it cannot be made."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot write to the workspace: {error}. Choose another --workspace") from None
