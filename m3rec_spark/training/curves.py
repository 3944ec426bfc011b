"""The loss curve of a training as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure


def loss_curve(history: Sequence[dict[str, float]], score: str, best_epoch: int) -> Figure:
    """Loss and validation score by epoch, the best epoch marked. Needs no display.

    Args:
        history: the figures of each epoch, as in TrainState.
        score: name of the figure that chose the best epoch.
        best_epoch: 1-based.
    """
    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    lines = left.plot(epochs, [row["train/loss"] for row in history], color="tab:blue", label="train loss")
    lines += right.plot(epochs, [row[score] for row in history], color="tab:orange", label=score)
    lines.append(left.axvline(best_epoch, color="grey", linestyle=":", label=f"best epoch {best_epoch}"))
    left.set_xlabel("epoch")
    left.set_ylabel("train loss")
    right.set_ylabel(score)
    left.legend(handles=lines)
    return figure
