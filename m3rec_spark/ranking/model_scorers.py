"""Scorers of the torch models of Table 2: from vectors, or by running the module in the worker.

A module is asked for one user at a time, so that his scores do not depend on who else is in the block: every call has
the same shapes. That is no slower, as a user meets thousands of items at once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.models.catalogue import Recommender, build
from m3rec_spark.ranking.scorers import Scores, mapped
from m3rec_spark.similarity.dense import inner_products

_WEIGHTS, _SYSTEM = "weights.safetensors", "system.json"
_ITEMS = 4096  # at once: bounds the hidden layers, which for larger catalogues fall out of the caches


@dataclass(frozen=True)
class DotScorer:
    """u'v from a folder of user_vectors (R, d) by row and item_vectors (S, d) by slot. In float64, as CosineScorer."""

    folder: str
    name: str

    def score(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> Scores:
        """See Scorer."""
        rows, slots = arrays.user_offsets[market] + users, arrays.market_slots(market)
        user = mapped(self.folder, "user_vectors", (arrays.n_rows, None))[rows].astype(np.float64)
        item = mapped(self.folder, "item_vectors", (len(arrays.slot_items), None))[slots].astype(np.float64)
        return inner_products(user, item).astype(np.float32)


@dataclass(frozen=True)
class ModuleScorer:
    """A module of models.catalogue, saved by `save_module`."""

    folder: str
    arrays_folder: str
    name: str

    def score(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> Scores:
        """See Scorer."""
        score, slots = _module(self.folder, self.arrays_folder).scorer(), arrays.market_slots(market)
        parts = torch.split(torch.arange(slots.start, slots.stop), _ITEMS)
        rows = torch.from_numpy(arrays.user_offsets[market] + users)[:, None]
        found = np.empty((len(users), slots.stop - slots.start), np.float32)
        with torch.no_grad():
            for scores, row in zip(found, rows, strict=True):
                scores[:] = np.concatenate([score(market, row, part)[0].numpy() for part in parts])
        return found


def save_module(module: nn.Module, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Weights and what rebuilds the module, for ModuleScorer."""
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
    save_file(weights, folder / _WEIGHTS)
    (folder / _SYSTEM).write_text(json.dumps({"name": name, "settings": dict(settings)}), encoding="utf-8")


@functools.lru_cache(maxsize=4)
def _module(folder: str, arrays_folder: str) -> Recommender:
    """Built once per process."""
    try:
        described = json.loads((Path(folder) / _SYSTEM).read_text(encoding="utf-8"))
        module = build(described["name"], open_arrays(Path(arrays_folder)), described["settings"], seed=0)
        module.load_state_dict(load_file(Path(folder) / _WEIGHTS))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CorruptTableError(
            f"the model in {folder} cannot be read ({error}): remove that folder and run `m3rec compare` again"
        ) from None
    return cast(Recommender, module.eval())
