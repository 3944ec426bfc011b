"""One folder that serves all markets: arrays (.npy), ids (.arrow) and bundle.json; no pickle, no table, no Spark.

    arrays/ shoppers/     train histories by user (what was seen) and by item (who bought it)
    model/ ease/ world/   item, history and user vectors; B of the markets that have a share of it; V-Glob and B-Glob
    ids/                  markets, users and items, in the order of their indices

Everything is mapped, so that the processes of a server share one copy, and a start reads next to nothing.
Size: 4 d (2 S + R + n) bytes of vectors, 16 bytes a train pair, 8 a cell of B-Glob, 4 I^2 for each market with EASE.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.ranking.explain import open_shoppers
from m3rec_spark.ranking.ids import open_ids
from m3rec_spark.ranking.recommender import Global, Recommender
from m3rec_spark.ranking.scorers import published_scorer

FORMAT = 1
HEADER = "bundle.json"


def seal_bundle(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes bundle.json, with the size of every file, when all else is there."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    header = {"format": FORMAT, "facts": dict(facts), "files": files}
    (folder / HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")


def read_header(folder: Path) -> dict[str, Any]:
    """bundle.json, its files checked.

    Raises:
        CorruptTableError: it is absent, of another format, or a file is missing or has another size.
    """
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        if header["format"] != FORMAT:
            raise ValueError(f"it has format {header['format']}, this release reads {FORMAT}")
        for file, size in header["files"].items():
            if (found := (folder / file).stat().st_size) != size:
                raise ValueError(f"{file} has {found} bytes, not {size}")
        return dict(header)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptTableError(f"the model in {folder} cannot be read ({error}): register it again") from None


@dataclass(frozen=True)
class Places:
    """Where the parts are; paths only, which pickle into a Spark task. A workspace holds some of them as its tables."""

    arrays: str
    shoppers: str
    model: str
    ease: str
    world: str
    ids: str

    @classmethod
    def under(cls, folder: Path) -> Places:
        """Those of a bundle."""
        return cls(*(str(folder / field.name) for field in fields(cls)))


def open_bundle(folder: Path) -> Recommender:
    """The model in a folder.

    Raises:
        CorruptTableError: see `read_header`.
    """
    read_header(folder)
    return open_places(Places.under(folder))


def open_places(places: Places) -> Recommender:
    """The model whose parts lie in these places.

    Raises:
        CorruptTableError: a part is absent or damaged.
    """
    arrays, world = open_arrays(Path(places.arrays)), Path(places.world)
    try:
        vectors = np.load(world / "item_vectors.npy", mmap_mode="r")
        parts = tuple(np.load(world / f"{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr"))
        similarity = sp.csr_matrix(parts, shape=(arrays.n_items, arrays.n_items), copy=False)
    except (OSError, ValueError) as error:
        raise CorruptTableError(f"V-Glob and B-Glob in {world} cannot be read ({error}): make them again") from None
    ids = (open_ids(Path(places.ids) / f"{name}.arrow") for name in ("markets", "users", "items"))
    return Recommender(
        arrays,
        published_scorer(places.model, places.ease),
        Global(vectors, similarity),
        open_shoppers(Path(places.shoppers)),
        *ids,
    )
