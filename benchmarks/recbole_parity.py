"""Our LightGCN and NeuMF against RecBole's on the same split: NDCG@10 on the test half's frozen candidates.

python -m venv build/recbole && build/recbole/bin/pip install -r benchmarks/requirements-recbole.txt
python benchmarks/recbole_parity.py build/xmarket [--seconds 600]     after `m3rec compare` in that workspace

RecBole's trainer sees the same pairs, its epoch is chosen on the validation half's lists, and it ranks the same ones.
It has the settings that our comparison chose, and other learning rates beside theirs (its own default, or --rates): the
best one on the validation half counts. --negatives 1: its own default; four repeat every pair four times there, so that
an epoch has four times the steps of ours.
Prints one row a model and implementation, and ours / RecBole's. Memory: the lists, 12 bytes a candidate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.evaluation.metrics import ndcg
from m3rec_spark.evaluation.ranks import expected_ranks
from m3rec_spark.evaluation.validation import validation_sample
from m3rec_spark.tables import Workspace

PYTHON = Path(__file__).parent.parent / "build" / "recbole" / "bin" / "python"
SCRIPT = Path(__file__).parent / "peers" / "recbole_model.py"
MODELS = {"lightgcn": "LightGCN", "neumf": "NeuMF"}
LEARNING_RATE = 0.001  # RecBole's default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0, help="training time of a RecBole run")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--python", type=Path, default=PYTHON, help="of RecBole's environment")
    parser.add_argument("--rates", help=f"learning rates, separated by commas; else the chosen one and {LEARNING_RATE}")
    parser.add_argument("--negatives", type=int, help="of a pair; else the chosen number")
    chosen = parser.parse_args()
    workspace = Workspace(chosen.workspace)
    report = json.loads((chosen.workspace / "reports" / "compare.json").read_text())
    markets = workspace.read_arrow("markets").to_pydict()["market_id"]
    print(f"| model | implementation | {' | '.join(markets)} | mean |")
    print(f"|---|---|{'---|' * (len(markets) + 1)}")
    for ours in chosen.models.split(","):
        settings = next(run["settings"] for run in report["runs"] if run["model"] == ours)
        own = [our_figure(report, ours, market) for market in markets]
        settings |= {"negatives": chosen.negatives or settings["negatives"]}
        rates = chosen.rates or f"{settings['learning_rate']},{LEARNING_RATE}"
        tried = [run_recbole(chosen, workspace, ours, settings | {"learning_rate": float(rate)})
                 for rate in dict.fromkeys(rates.split(","))]  # fmt: skip
        peer = max(tried, key=lambda found: found["valid"])["test"]
        print(row(ours, "ours", own))
        print(row(ours, "RecBole", peer))
        print(f"| {ours} | ours / RecBole | {' | '.join(f'{a / b:.3f}' for a, b in zip(own, peer, strict=True))} | "
              f"{np.mean(own) / np.mean(peer):.3f} |", flush=True)  # fmt: skip


def our_figure(report: dict, model: str, market: str) -> float:
    """NDCG@10, mean over seeds, contract standard."""
    wanted = {"model": model, "market": market, "metric": "ndcg_10", "split": "test", "contract": "standard"}
    (found,) = (line for line in report["means"] if wanted.items() <= line.items())
    return found["value"]


def run_recbole(chosen: argparse.Namespace, workspace: Workspace, model: str, settings: dict) -> dict:
    """NDCG@10 of a RecBole model by market on the test half, and its mean on the validation half."""
    arrays = open_arrays(workspace.folder("arrays"))
    halves = {half: validation_sample(workspace.folder("candidates"), 10**9, 0, half) for half in ("valid", "test")}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        export(folder, arrays, halves, settings)
        program = [chosen.python.absolute(), SCRIPT, folder, MODELS[model], str(chosen.epochs), str(chosen.seconds)]
        log = chosen.workspace / f"recbole-{model}-{settings['learning_rate']}.log"
        subprocess.run(program, check=True, cwd=folder, stdout=log.open("w"))
        scores = np.load(folder / "scores.npy")
    found, first = {}, 0
    for half, sample in halves.items():
        part = scores[first : first + sample.num_rows]
        first += sample.num_rows
        rivals = np.ones(part.shape, np.bool_)
        rivals[:, 0] = False
        ranks = expected_ranks(part, np.zeros(len(part), np.intp), rivals)
        of = sample["market"].to_numpy()
        found[half] = [ndcg(ranks[of == market]) for market in range(arrays.n_markets)]
    return {"valid": float(np.mean(found["valid"])), "test": found["test"]}


def export(folder: Path, arrays: MarketArrays, halves: dict, settings: dict) -> None:
    """The split as RecBole reads it, the pairs to be scored, and the settings under RecBole's names."""
    (folder / "shop").mkdir()
    rows = np.repeat(np.arange(arrays.n_rows), np.diff(arrays.indptr))
    np.savetxt(folder / "shop" / "shop.train.inter", np.stack([rows, arrays.items], axis=1), fmt="%d", delimiter="\t",
               header="user_id:token\titem_id:token", comments="")  # fmt: skip
    users = np.concatenate([flat_users(arrays, sample) for sample in halves.values()])
    lists = np.concatenate([listed(sample) for sample in halves.values()])
    np.savez(folder / "lists.npz", user=users[:, None], item=lists, valid=halves["valid"].num_rows)
    names = {"dimension": ("embedding_size", "mf_embedding_size", "mlp_embedding_size"), "layers": ("n_layers",),
             "l2": ("reg_weight",), "widths": ("mlp_hidden_size",), "dropout": ("dropout_prob",),
             "learning_rate": ("learning_rate",), "batch_size": ("train_batch_size",)}  # fmt: skip
    theirs = {name: settings[key] for key, many in names.items() for name in many if key in settings}
    drawn = {"distribution": "uniform", "sample_num": settings["negatives"]}
    (folder / "settings.json").write_text(json.dumps(theirs | {"train_neg_sample_args": drawn}))


def flat_users(arrays: MarketArrays, sample: object) -> np.ndarray:
    """Users of all markets in one numbering."""
    return arrays.user_offsets[sample["market"].to_numpy()] + sample["user"].to_numpy()


def listed(sample: object) -> np.ndarray:
    """(users, 1 + negatives) the positive first; every list of the contract is of one length here."""
    negatives = sample["negatives"].combine_chunks()
    return np.column_stack([sample["positive"].to_numpy(), negatives.flatten().to_numpy().reshape(len(negatives), -1)])


def row(model: str, who: str, values: list[float]) -> str:
    """A line of the table, x 100."""
    return f"| {model} | {who} | {' | '.join(f'{100 * v:.2f}' for v in values)} | {100 * np.mean(values):.2f} |"


if __name__ == "__main__":
    main()
