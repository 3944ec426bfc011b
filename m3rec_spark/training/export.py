"""The files that serve a trained model; docs/data_model.md, folder `model`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from m3rec_spark.models.m3rec import M3Rec


def export_model(model: M3Rec, folder: Path, settings: Mapping[str, Any], best_epoch: int) -> None:
    """Writes item, history and user vectors (.npy), the module's weights (safetensors) and model.json into a folder."""
    arrays = model.export_arrays()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    n_slots, dimension = arrays["item_vectors"].shape
    described = {
        "dimension": dimension,
        "n_slots": n_slots,
        "n_rows": len(arrays["user_vectors"]),
        "best_epoch": best_epoch,
        "settings": dict(settings),
    }
    (folder / "model.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
