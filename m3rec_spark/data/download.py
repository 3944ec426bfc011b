"""The public XMarket files (WSDM Cup 2022, electronics, five anonymised markets), checked against pinned digests."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.request import urlopen

from m3rec_spark.errors import DataError, UsageError

log = logging.getLogger(__name__)

XMARKET_URL = "https://raw.githubusercontent.com/hamedrab/wsdm22_cup_xmrec/main/DATA"
_CHUNK = 1 << 16


class PublicFile(NamedTuple):
    """A file as published: its size, and the SHA-256 (hex) of its bytes."""

    size: int
    sha256: str


XMARKET_FILES = {
    "s1/train_5core.tsv": PublicFile(1852173, "20e099564c6760299fb4266823f1e78d15a31c3bcf34e59000d5e1b2a5847400"),
    "s1/valid_qrel.tsv": PublicFile(142273, "c8e59e0f24e5dff4a4e3d0775bc9beead9af891ff42312cd0094d2c7e88f6e68"),
    "s2/train_5core.tsv": PublicFile(1159269, "ca80ec9723d0cb2864f0c7ce104ef78a722ea441dda48042bd792e997f9b3e37"),
    "s2/valid_qrel.tsv": PublicFile(156419, "998fabebfc1bef764de80377a493b3829007693c00b946aa4b0c05b8eed7f567"),
    "s3/train_5core.tsv": PublicFile(560829, "844b4a0c00baed1738da0b7760e272ac05dbb46c7eefb661b2cb8a08175e9ba7"),
    "s3/valid_qrel.tsv": PublicFile(73237, "fc035e19278139ebba2185b4b17b37738870857d3fe8494251997c37053d4e69"),
    "t1/train_5core.tsv": PublicFile(470781, "3937826a1d22b8d1866bdd3cb7b686a9ef9bf837cdb7acf469c7d42e6d363802"),
    "t1/valid_qrel.tsv": PublicFile(59355, "9338c6ee00539b81950a6d866ef6ab0546eb93184ef6734aa26243a53bc37e91"),
    "t2/train_5core.tsv": PublicFile(989445, "9e1ab3683ee8cae2bb0a950b438891e6b21c34ba4780b6f61f38e40bd5908730"),
    "t2/valid_qrel.tsv": PublicFile(120625, "56fc20ae4384dc00c86dedf72ad91493c255731b88020964c744a3d9afbf10b1"),
}


def download_xmarket(
    to: Path,
    base_url: str = XMARKET_URL,
    files: dict[str, PublicFile] = XMARKET_FILES,
    timeout: float = 30.0,
) -> None:
    """Fetches the files into `to`, in the layout that source.format xmarket reads; keeps those that are right already.

    Args:
        to: folder to fill; made if absent.
        base_url: a mirror of the DATA folder.
        files: path below `to` and `base_url` -> what it must be.
        timeout: seconds without a byte until the server counts as gone.

    Raises:
        DataError: the server cannot be reached, or a file is not the pinned one. A wrong file is never put in place.
        UsageError: `to` cannot be made.
    """
    for number, (name, pinned) in enumerate(files.items(), start=1):
        place = to / name
        if _is_right(place, pinned):
            log.info("%d/%d %s: there already, digest right", number, len(files), name)
            continue
        _fetch(f"{base_url.rstrip('/')}/{name}", place, pinned, timeout)
        log.info("%d/%d %s: %s bytes, digest right", number, len(files), name, f"{pinned.size:,}")
    log.info("all %d files are in %s: m3rec run --config conf/xmarket.yaml source.path=%s", len(files), to, to)


def _is_right(place: Path, pinned: PublicFile) -> bool:
    if not place.is_file() or place.stat().st_size != pinned.size:
        return False
    return hashlib.sha256(place.read_bytes()).hexdigest() == pinned.sha256


def _fetch(url: str, place: Path, pinned: PublicFile, timeout: float) -> None:
    """Streams to a file beside `place`, and moves it there once size and digest are right."""
    beside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {place.parent}: {error}; choose another folder") from None
    try:
        with open(beside, "wb") as file:
            size, sha256 = _stream(url, file, pinned.size, timeout)
        if (size, sha256) != pinned:
            raise DataError(
                f"{url} is not the published file: expected {pinned.size} bytes with SHA-256 {pinned.sha256}, got "
                f"{f'more than {pinned.size}' if size > pinned.size else size} bytes with {sha256}; nothing was "
                "changed. Try again later, or get the files from another place you trust"
            )
        os.replace(beside, place)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: what urllib says of a malformed address
        raise DataError(
            f"cannot get {url} to {place}: {error}. Behind a proxy set HTTPS_PROXY; or fetch the DATA folder in a "
            "browser, and point source.path at it"
        ) from None
    finally:
        beside.unlink(missing_ok=True)


def _stream(url: str, file: BinaryIO, most: int, timeout: float) -> tuple[int, str]:
    """(bytes, SHA-256) written; stops after `most` bytes are passed: a wrong server must not fill the disk."""
    digest, size = hashlib.sha256(), 0
    with urlopen(url, timeout=timeout) as answer:
        while size <= most and (chunk := answer.read(_CHUNK)):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
