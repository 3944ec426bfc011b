"""Why this item for this user: m3rec explain. Reads the published tables; starts no Spark."""

from __future__ import annotations

import numpy as np

from m3rec_spark.errors import UsageError, did_you_mean
from m3rec_spark.ranking.bundle import open_places
from m3rec_spark.ranking.explain import shares
from m3rec_spark.ranking.pack import lay_out
from m3rec_spark.ranking.recommender import Reason, Recommender
from m3rec_spark.stages.context import Context

_MOST = 10  # history items shown


def explain(context: Context, market: str, user: str, item: str) -> str:
    """A table: what each item of the history adds to the score, and who bought both.

    Raises:
        UsageError: market, user or item is unknown.
    """
    with context.workspace.scratch("explain") as folder:
        return _table(open_places(lay_out(context.workspace, folder)), market, user, item)


def _table(served: Recommender, market: str, user: str, item: str) -> str:
    arrays = served.arrays
    where = served.markets.find(market)
    if where is None:
        raise UsageError(f"market '{market}' is unknown.{did_you_mean(market, served.markets)}")
    first, last = (int(end) for end in arrays.user_offsets[where : where + 2])
    who = served.users.part(first, last).find(user)
    if who is None:
        raise UsageError(f"user '{user}' is unknown in market {market}, which has {last - first:,} users")
    own = arrays.slot_items[arrays.market_slots(where)]
    which = served.items.find(item)
    place = int(np.searchsorted(own, which)) if which is not None else len(own)
    if place == len(own) or own[place] != which:
        raise UsageError(f"item '{item}' is not sold in market {market}")
    users = np.array([who], np.int32)
    history = arrays.history(where, users).indices.astype(np.intp)
    parts = shares(
        served.scorer, arrays, where, history, served.scorer.cosine.local(arrays, where, users)[0], np.array([place])
    )
    reasons = next(served.told(parts, own[history], np.array([which]), len(history)))
    return _text(f"{item} for {user} in {market}", reasons, float(parts.history.sum() + parts.local.sum()))


def _text(title: str, reasons: list[Reason], score: float) -> str:
    lines = [f"{title}: score {score:.4f}", "", f"{'share':>8}  {'because of':<24}  bought both"]
    shown, rest = reasons[:-1][:_MOST], reasons[:-1][_MOST:]
    for reason in shown:
        shoppers = ", ".join(f"{count} in {market}" for market, count in (reason.shoppers or {}).items()) or "nobody"
        lines.append(f"{reason.share:>8.4f}  {reason.item or '':<24}  {shoppers}")
    if rest:
        lines.append(f"{sum(reason.share for reason in rest):>8.4f}  {len(rest)} more items of the history")
    lines.append(f"{reasons[-1].share:>8.4f}  the user's own part (U-Loca)")
    return "\n".join(lines)
