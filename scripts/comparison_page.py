"""The report of `m3rec compare` as a page of the documentation.

python scripts/comparison_page.py WORKSPACE THE COMMAND THAT MADE IT ... > docs/comparison.md
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from m3rec_spark.evaluation.report import COMPARED
from m3rec_spark.evaluation.tables import (
    VARIANTS,
    Report,
    Table,
    group_table,
    names_of,
    remarks,
    runner_up_table,
    system_table,
    transfer_table,
    trial_table,
    unscored_table,
)

HEAD = """# The systems compared

The paper's Tables 2, 3 and 4, as `python scripts/comparison_page.py` reads them from the report of

```
{command}
```

on {cores} cores: {hours:.1f} hours of training, {runs} runs; ranking comes on top. Settings, {trials} at most a system,
were chosen on {users:,} users of the validation half at most. {budget}, and an epoch
that had begun was finished; closed forms and Random Walk end by themselves. M3Rec's one setting was searched beforehand
([experiments](experiments.md)); what `pretrain` made for it is not in its seconds. The test half only judges. Seeds
{seeds}, the first ones of these where a row has fewer.
± is the standard deviation over seeds; \\* \\*\\* \\*\\*\\*: M3Rec is better, p < 0.05, 0.01, 0.001 (paired t-test on
the users' gains, Holm over the markets); +: it is worse. What is measured: [the evaluation contract](evaluation.md).
"""


def main() -> None:
    if len(sys.argv) < 3 or not (found := Path(sys.argv[1]) / "reports" / "compare.json").is_file():
        sys.exit(
            "usage: python scripts/comparison_page.py WORKSPACE COMMAND ...\n"
            "WORKSPACE: one that `m3rec compare` has reported in; COMMAND: as it was called, for the page's head"
        )
    print(page(json.loads(found.read_text(encoding="utf-8")), " ".join(sys.argv[2:])), end="")


def page(report: Report, command: str) -> str:
    """Markdown."""
    settings = report["settings"]
    both = report["trials"] + report["runs"]  # a chosen trial that needed no more time is in both
    runs = {(run["model"], json.dumps(run["settings"]), run["seed"], run["seconds"]): run for run in both}
    parts = [
        HEAD.format(
            command=command,
            cores=os.cpu_count(),
            hours=sum(run["seconds"] for run in runs.values()) / 3600,
            runs=len(runs),
            trials=settings["trials"],
            budget=budget(settings["trial_seconds"], settings["run_seconds"]),
            users=settings["validation_users"],
            seeds=f"{settings['seed']} to {max(run['seed'] for run in runs.values())}",
        ),
        *(f"{sentence}\n" for sentence in remarks(report)),
    ]
    for contract in report["contracts"]:
        name = contract["name"]
        variants = [one for one in VARIANTS if one in {row["model"] for row in report["means"]}]
        parts += [
            f"## Contract {name}\n\nSHA-256 `{contract['sha256']}`: {contract['counts']['test']:,} test users, up to "
            f"{contract['negatives']} negatives of the market, seen items {contract['seen']}.\n",
            *(
                section(f"{title} x 100", system_table(report, name, metric, names_of(report, name)))
                for metric, title in COMPARED.items()
            ),
            section("M3Rec less the runner-up, NDCG@10", runner_up_table(report, name, "ndcg_10")),
            section("Table 3, NDCG@10 x 100", system_table(report, name, "ndcg_10", variants)),
            section("Table 3, MRR@10 x 100", system_table(report, name, "mrr", variants)),
            section(
                "Table 4, MRR@10 x 100 (users)",
                group_table(report, name, "item", ["m3rec", "m3rec_without_both", "ease"]),
            ),
        ]
    if len(blank := unscored_table(report)) > 1:
        parts.append(section("Scores left out", blank, "##"))
    skipped = [["left out"], [report["transfer_skipped"]]]
    audited = skipped if report["transfer_skipped"] else transfer_table(report)
    parts += [
        section("Who helps whom: EASE^R, NDCG@10 x 100", audited, "##"),
        section("Settings tried", trial_table(report), "##"),
    ]
    return "\n".join(parts)


def budget(trial: float, run: float) -> str:
    """Seconds of training, as the page's head has them."""
    if trial == run:
        return f"Every run of a network, a trial too, had {run:.0f} s of training"
    return (
        f"A trial of a network had {trial:.0f} s of training, the chosen settings (or the only ones) {run:.0f} s a seed"
    )


def section(head: str, table: Table, level: str = "###") -> str:
    """A heading and a table of pipes; asterisks and bars of the cells as they are."""
    lines = ["| " + " | ".join(cell.replace("*", "\\*").replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join([f"{level} {head}\n", lines[0], "|---" * len(table[0]) + "|", *lines[1:], ""])


if __name__ == "__main__":
    main()
