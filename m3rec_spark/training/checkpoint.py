"""Checkpoints: one folder per finished epoch, whole or absent; safetensors and JSON, never pickle.

`<folder>/epoch-0007/` holds `tensors.safetensors` (model, optimisers, best model) and `state.json` (the rest, the key
of the run, the digest of the tensors). It is written beside, synced to disk and renamed, so that a power cut leaves
the epoch before. Nothing else is needed to go on: every random draw is keyed by (seed, epoch, batch).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m3rec_spark.errors import CheckpointError
from m3rec_spark.training.loop import TrainState

log = logging.getLogger(__name__)

KEEP = 2
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_CHUNK = 1 << 24


def save(
    folder: Path, key: str, model: nn.Module, steppers: Sequence[torch.optim.Optimizer], state: TrainState
) -> Path:
    """Writes the checkpoint of the epoch just finished; keeps the last KEEP.

    Args:
        folder: of the run's checkpoints; made if absent.
        key: digest of all that the weights follow from (config and data).
        model: as it stands.
        steppers: its optimisers.
        state: with the best weights.

    Returns:
        The checkpoint's folder.
    """
    target = folder / f"epoch-{state.epoch:04d}"
    part = folder / f".{target.name}-{uuid.uuid4().hex[:8]}"
    part.mkdir(parents=True)
    try:
        save_file(_tensors(model, steppers, state), part / _TENSORS)
        record = {
            "key": key,
            "sha256": _sha256(part / _TENSORS),
            "epoch": state.epoch,
            "best_epoch": state.best_epoch,
            "best_score": state.best_score,
            "history": state.history,
        }
        (part / _STATE).write_text(json.dumps(record, indent=1), encoding="utf-8")
        for path in (part / _TENSORS, part / _STATE, part):
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one that the run fell back from
        part.rename(target)
        _sync(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in [*_newest_first(folder)[KEEP:], *folder.glob(".epoch-*")]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def restore(folder: Path, key: str, model: nn.Module, steppers: Sequence[torch.optim.Optimizer]) -> TrainState | None:
    """Puts the newest whole checkpoint into model and optimisers.

    Returns:
        Its state; None where there is no checkpoint at all.

    Raises:
        CheckpointError: it belongs to a run with another key, or none is whole.
    """
    damaged: list[str] = []
    for checkpoint in _newest_first(folder):
        try:
            return _load(checkpoint, key, model, steppers)
        except _DamagedError as error:
            log.warning("checkpoint %s is damaged (%s): falling back to the one before", checkpoint, error)
            damaged.append(checkpoint.name)
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole (damaged: {', '.join(damaged)}): train without --resume"
        )
    return None


class _DamagedError(Exception):
    """A checkpoint's files are not what was written."""


def _load(checkpoint: Path, key: str, model: nn.Module, steppers: Sequence[torch.optim.Optimizer]) -> TrainState:
    try:
        record = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        if record["key"] != key:
            raise CheckpointError(
                f"checkpoint {checkpoint} belongs to a run with other settings or data (key {record['key'][:12]}, "
                f"this one {key[:12]}): go back to its config, or train without --resume"
            )
        if _sha256(checkpoint / _TENSORS) != record["sha256"]:
            raise _DamagedError(f"{_TENSORS} is cut short or altered")
        tensors = load_file(checkpoint / _TENSORS)
        state = TrainState(record["epoch"], record["best_epoch"], record["best_score"], record["history"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _DamagedError(str(error) or type(error).__name__) from None
    state.best = _under("best/", tensors)
    model.load_state_dict(_under("model/", tensors))
    for number, stepper in enumerate(steppers):
        _load_stepper(stepper, _under(f"stepper{number}/", tensors))
    return state


def _tensors(model: nn.Module, steppers: Sequence[torch.optim.Optimizer], state: TrainState) -> dict[str, Tensor]:
    named: dict[str, Any] = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    named |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    for number, stepper in enumerate(steppers):
        for parameter, values in stepper.state_dict()["state"].items():
            named |= {f"stepper{number}/{parameter}/{name}": value for name, value in values.items()}
    return {name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in named.items()}


def _load_stepper(stepper: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The moments and step counts; learning rates and the like are the config's."""
    state: dict[int, dict[str, Any]] = {}
    for path, tensor in tensors.items():
        parameter, name = path.split("/")
        count = tensor.ndim == 0 and not tensor.is_floating_point()  # SparseAdam counts steps in a Python int
        state.setdefault(int(parameter), {})[name] = tensor.item() if count else tensor
    stepper.load_state_dict({"state": state, "param_groups": stepper.state_dict()["param_groups"]})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*"), reverse=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
