"""A batch of training, the same for every model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

PairScores = Callable[[int, Tensor, Tensor], Tensor]  # (market, rows (B,), slots (I,) or (B, I)) -> (B, I)


@dataclass(frozen=True)
class Pairs:
    """A batch of train pairs, ordered by market.

    Attributes:
        rows: (P,) flat user of each pair.
        positives: (P,) slot of each pair.
        bag_slots: (T,) slots of the users' histories, one after the other.
        bag_starts: (P,) where the history of each pair begins in bag_slots.
        sizes: how many pairs each market of the batch has, in order.
        negatives: for each of these markets the slots of its negatives: (K,) shared by its pairs, or (pairs, K).
    """

    rows: Tensor
    positives: Tensor
    bag_slots: Tensor
    bag_starts: Tensor
    sizes: list[int]
    negatives: tuple[Tensor, ...]

    def to(self, device: torch.device) -> Pairs:
        """The same batch on a device."""
        return replace(
            self,
            rows=self.rows.to(device),
            positives=self.positives.to(device),
            bag_slots=self.bag_slots.to(device),
            bag_starts=self.bag_starts.to(device),
            negatives=tuple(slots.to(device) for slots in self.negatives),
        )
