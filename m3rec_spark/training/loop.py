"""The one training loop, and the record of all that it needs to go on."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from m3rec_spark.errors import DivergedError
from m3rec_spark.models.pairs import Pairs

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Where a training stands; with the model and the optimisers it is all that a resumed run needs.

    Attributes:
        epoch: epochs finished.
        best_epoch: the one with the best validation score (1-based; 0: none yet).
        best_score: that score.
        history: the figures of each finished epoch.
        best: the model's state after the best epoch, on the host.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of training, validation apart."""
        return sum(row["train/seconds"] for row in self.history)

    def stopped_by(self, epochs: int, patience: int, seconds: float = math.inf) -> str | None:
        """The limit that is reached: patience, when none of so many last epochs was better than the best; or none."""
        reached = {
            "epochs": self.epoch >= epochs,
            "patience": self.epoch - self.best_epoch >= patience,
            "seconds": self.seconds >= seconds,
        }
        return next((limit for limit, is_reached in reached.items() if is_reached), None)


def optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Adam for what every step touches (V-Loca), lazy Adam for tables of which it touches the batch's rows (U-Loca)."""
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse and m.weight.requires_grad]
    names = set(map(id, tables))
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in names]
    steppers: list[torch.optim.Optimizer] = []
    if dense:
        steppers.append(torch.optim.Adam(dense, lr=learning_rate, fused=True))
    if tables:
        steppers.append(torch.optim.SparseAdam(tables, lr=learning_rate))
    return steppers


def fit(
    model: nn.Module,
    steppers: Sequence[torch.optim.Optimizer],
    state: TrainState,
    *,
    batches: Callable[[int], Iterable[Pairs]],
    loss: Callable[[Pairs], Tensor],
    validate: Callable[[], dict[str, float]],
    score: str,
    epochs: int,
    patience: int,
    on_epoch_end: Callable[[TrainState], None],
    seconds: float = math.inf,
) -> None:
    """Trains until `epochs` are done or `patience` epochs brought nothing; the model ends at its best epoch.

    Args:
        model: trained in place.
        steppers: its optimisers.
        state: updated in place; that of a checkpoint to go on from there.
        batches: epoch (from 0) -> its batches; the same epoch must give the same batches.
        loss: of a batch, mean over its pairs.
        validate: figures of the model as it stands.
        score: the figure of `validate` that decides; higher is better.
        epochs: at most.
        patience: epochs without a better score before it stops.
        on_epoch_end: logs and checkpoints; called when the state of the epoch is complete.
        seconds: of training, validation apart: the epoch that reaches them ends with the batch at hand.

    Raises:
        DivergedError: the loss is NaN or infinite; and what `validate` raises.
    """
    while state.stopped_by(epochs, patience, seconds) is None:
        begin = time.perf_counter()
        end = begin + seconds - state.seconds
        figures = {"train/loss": _epoch(model, steppers, batches(state.epoch), loss, state.epoch, end)}
        figures["train/seconds"] = time.perf_counter() - begin
        model.eval()
        with torch.no_grad():
            figures |= validate()
        state.epoch += 1
        state.history.append({**figures, "valid/seconds": time.perf_counter() - begin - figures["train/seconds"]})
        if figures[score] > state.best_score:
            state.best_epoch, state.best_score = state.epoch, figures[score]
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        on_epoch_end(state)
    if state.best:
        model.load_state_dict(state.best)


def _epoch(
    model: nn.Module,
    steppers: Sequence[torch.optim.Optimizer],
    batches: Iterable[Pairs],
    loss: Callable[[Pairs], Tensor],
    epoch: int,
    end: float,
) -> float:
    """One pass, or as much of it as begins before `end` on the clock; the mean loss per pair."""
    model.train()
    total, pairs = 0.0, 0
    shown = tqdm(batches, desc=f"epoch {epoch + 1}", unit="batch", leave=False, disable=not sys.stderr.isatty())
    for number, batch in enumerate(shown):
        value = loss(batch)
        for stepper in steppers:
            stepper.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        for stepper in steppers:
            stepper.step()
        figure = value.item()
        if not math.isfinite(figure):
            raise DivergedError(
                f"the loss became {figure} in epoch {epoch + 1}, batch {number + 1}: lower train.learning_rate "
                "(or raise train.temperature); checkpoints of earlier epochs are whole"
            )
        total, pairs = total + figure * len(batch.rows), pairs + len(batch.rows)
        if time.perf_counter() >= end:
            break
    return total / max(pairs, 1)
