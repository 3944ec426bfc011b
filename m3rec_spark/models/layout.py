"""Which market a user belongs to, and which item a slot holds, as tensors that move with a module.

Words (docs/data_model.md): a row is a user of any market, a slot an item in a market. `Mix` models (paper, Sec. 4.1.2)
know an item by its global number, so that its slots in all markets share what is learned; `Multi` models have a part
for each market.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from m3rec_spark.data.arrays import MarketArrays


class Layout(nn.Module):
    """Notation: R rows, S slots, M markets, n items."""

    row_market: Tensor
    slot_item: Tensor

    def __init__(self, arrays: MarketArrays) -> None:
        super().__init__()
        self.n_rows, self.n_slots = arrays.n_rows, len(arrays.slot_items)
        self.n_items, self.n_markets = arrays.n_items, arrays.n_markets
        by_name = {
            "row_market": np.repeat(np.arange(arrays.n_markets), np.diff(arrays.user_offsets)),
            "slot_item": arrays.slot_items.astype(np.int64),
        }
        for name, array in by_name.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)


class Factors(nn.Module):
    """A vector for every user and for every item, the item's the same in all markets."""

    def __init__(self, layout: Layout, dimension: int) -> None:
        super().__init__()
        self.layout = layout
        self.user = nn.Embedding(layout.n_rows, dimension, sparse=True)  # sparse: a step costs the batch's rows only
        self.item = nn.Embedding(layout.n_items, dimension, sparse=True)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.01)

    def forward(self, rows: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B,) and slots (B or 1, K) -> user vectors (B, 1, d), item vectors (B or 1, K, d)."""
        return self.user(rows)[:, None], self.item(self.layout.slot_item[slots])
