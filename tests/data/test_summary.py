from __future__ import annotations

import pyarrow as pa

from m3rec_spark.data import summary
from m3rec_spark.tables import arrow_schema


def test_table_1_cuts_rates_as_the_paper_does() -> None:
    rows = [(0, "de", 3328, 1245, 23_367, 23_236, 1639, 1689, 1111), (1, "fr", 1, 0, 1, 1, 0, 0, 0)]
    columns = dict(zip(arrow_schema("markets").names, zip(*rows, strict=True), strict=True))
    found = summary.table_1(pa.table(columns).cast(arrow_schema("markets")))
    assert [row["rate"] for row in found] == [89.23, 0.0]  # 1111 / 1245 = 0.892369
    assert summary.table_1_text(found).splitlines() == [
        "market  users  items  #Train  #Valid  #Test  #Rate %",
        "de      3,328  1,245  23,367   1,639  1,689    89.23",
        "fr          1      0       1       0      0     0.00",
    ]


def test_counts_leave_out_what_is_zero_everywhere() -> None:
    text = summary.counts_text(
        {"de": {"rows_in": 1200, "no_user": 0, "bad_rating": 0}, "fr": {"rows_in": 3, "bad_rating": 2}}
    )
    assert text.splitlines() == [
        "market  rows_in  bad_rating",
        "de        1,200           0",
        "fr            3           2",
        "all       1,203           2",
    ]


def test_warnings() -> None:
    row = {"market_id": "de", "users": 1, "items": 1, "valid": 0, "test": 0}
    counts = {"valid": 0, "test": 2, "padded": 3}
    found = summary.warnings(
        {
            "table_1": [row, row | {"market_id": "fr", "users": 2, "items": 2, "test": 1}],
            "cleaning": {"de": counts, "(none)": counts},
            "splits": {"de": counts, "at": counts},
            "user_ids_in_several_markets": 1234,
        }
    )
    starts = [
        "market de has one user only",
        "market de has one item only",
        "market de has no held-out pair",
        "market (none) is left out",
        "market at is left out",
        "no user falls into the valid half",
        "6 rows have ids with white space around them",
        "1,234 user ids occur in several markets",
    ]
    assert [line[: len(start)] for line, start in zip(found, starts, strict=True)] == starts
