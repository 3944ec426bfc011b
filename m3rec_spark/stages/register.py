"""Packs the trained model into one artifact for all markets and registers it: m3rec register, m3rec promote."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from m3rec_spark import __version__
from m3rec_spark.errors import DataError, MissingTableError, UsageError
from m3rec_spark.evaluation.gate import Verdict, verdicts
from m3rec_spark.paths import write_atomically
from m3rec_spark.ranking.bundle import open_bundle
from m3rec_spark.ranking.pack import pack
from m3rec_spark.ranking.recommender import Recommender, Request
from m3rec_spark.stages import evaluate
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.model_card import model_card
from m3rec_spark.tracking.registry import CHAMPION, Registry, fetched, read_json, save_model, smoke_test

log = logging.getLogger(__name__)

MODEL = "m3rec"  # of the reports
SMOKE, EVALUATION, CARD = "smoke.json", "evaluate.json", "model_card.md"
_SMOKE_USERS = 2  # of each market


def register(context: Context, registry: Registry) -> Any:
    """Packs, saves and registers the published model; the version gets the alias `challenger`.

    A model that is registered already, with the same content and figures, is not registered again.

    Raises:
        MissingTableError: it was not evaluated.
        UsageError: there is no MLflow run to register it with.
    """
    report, run_id = _report(context), context.tracker.run_id
    if run_id is None:
        raise UsageError("MLflow cannot be reached, and a model is registered with its run: see the warning above")
    content = _content(context, report)
    known = registry.find_content(content)
    if known is not None:
        log.info("register: version %s of '%s' is this very model", known.version, registry.name)
        registry.challenge(known)
        return known
    with tempfile.TemporaryDirectory(dir=_scratch(context), prefix="register-") as place:
        bundle, model = Path(place) / "bundle", Path(place) / "model"
        bundle.mkdir()
        facts = {"key": context.key, "contract": report["sha256"], "version": __version__}
        pack(context.workspace, bundle, facts)
        requests, expected = smoke(open_bundle(bundle))
        save_model(bundle, model, requests)
        extra = model / "m3rec"
        extra.mkdir()
        write_atomically(extra / EVALUATION, json.dumps(report).encode())
        write_atomically(extra / SMOKE, json.dumps(expected).encode())
        card = model_card(context.config, report, facts)
        write_atomically(extra / CARD, card.encode())
        write_atomically(context.workspace.root / "reports" / CARD, card.encode())
        version = registry.add(run_id, model, content, {"m3rec.contract": report["sha256"]})
    log.info("registered version %s of '%s', alias challenger", version.version, registry.name)
    return version


def promote(context: Context, registry: Registry, dry_run: bool) -> tuple[bool, list[Verdict]]:
    """Lets the model of this workspace serve, if it holds against the one that serves; the alias goes last.

    Returns:
        Whether it serves now (or would, in a dry run), and the comparisons; none for the first champion.

    Raises:
        DataError: the two were evaluated under different contracts, or the registered artifact does not answer.
    """
    settings, version = context.config.registry, register(context, registry)
    champion, compared = registry.holder(CHAMPION), list[Verdict]()
    with fetched(registry, version) as folder:
        if champion is not None and champion.version != version.version:
            with fetched(registry, champion) as serving:
                compared = verdicts(
                    read_json(folder, EVALUATION), read_json(serving, EVALUATION), MODEL,
                    settings.max_drop, settings.min_gain,
                )  # fmt: skip
        passed = all(verdict.passed for verdict in compared)
        if passed:
            smoke_test(folder, read_json(folder, SMOKE))
    if passed and not dry_run:
        registry.promote(version)
    return passed, compared


def smoke(recommender: Recommender) -> tuple[list[Request], dict[str, Any]]:
    """Requests of known users and of a history in every market, and what the packed model answers."""
    arrays, requests = recommender.arrays, list[Request]()
    for market in range(arrays.n_markets):
        first, last = (int(end) for end in arrays.user_offsets[market : market + 2])
        for row in np.linspace(first, last - 1, min(_SMOKE_USERS, last - first)).astype(int):
            requests.append(Request(recommender.markets[market], recommender.users[int(row)]))
        bought = arrays.items[arrays.indptr[first] : arrays.indptr[first + 1]]
        history = [recommender.items[int(item)] for item in bought]
        requests.append(Request(recommender.markets[market], history=history))
    answers = recommender.recommend(requests)
    rows = [{"market": r.market, "user_id": r.user_id, "history": list(r.history)} for r in requests]
    lists = {"items": [answer.items for answer in answers], "scores": [answer.scores for answer in answers]}
    return requests, {"requests": rows, **lists}


def _content(context: Context, report: dict[str, Any]) -> str:
    """SHA-256 of what a version is: the tables' key, the model's files, its figures, and the release of the library."""
    digest = hashlib.sha256(json.dumps([__version__, context.key, report], sort_keys=True).encode())
    for file in sorted(context.workspace.folder("model").glob("*.npy")):
        digest.update(file.name.encode())
        with open(file, "rb") as opened:
            while piece := opened.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()


def _report(context: Context) -> dict[str, Any]:
    path = context.workspace.root / evaluate.REPORT
    report = evaluate.read_report(context.workspace, context.key)
    if report is None:
        raise MissingTableError(f"{path} is missing, damaged or of another model: run `m3rec evaluate` first")
    if not any(row["model"] == MODEL for row in report["rows"]):
        raise DataError(f"the model '{MODEL}' was not evaluated: add it to evaluate.models and run `m3rec evaluate`")
    return report


def _scratch(context: Context) -> Path:
    folder = context.workspace.root / "_scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
