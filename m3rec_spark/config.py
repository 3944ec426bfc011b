"""The configuration: frozen sections, unknown keys refused. Only jobs, stages and the CLI read it.

conf/base.yaml shows every key with its default and meaning; a test holds the two together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)

from m3rec_spark.errors import UsageError, did_you_mean

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Columns(Section):
    """Names of the source's columns. `market`, `rating` and `timestamp` may be absent from the source: null."""

    market: str | None = "market"
    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = None
    timestamp: str | None = None


class Source(Section):
    """Where the interactions come from."""

    format: Literal["demo", "xmarket", "csv", "tsv", "parquet", "table"] = "demo"
    path: str | None = None
    """File, folder or (format table) table name; with format xmarket the folder that holds s1 .. t2."""
    markets: dict[str, str] = {}
    """One source per market instead of one with a market column: market id -> path or table."""
    holdout: str | None = None
    """A table of the same columns with the given held-out pairs (split.method given)."""
    holdouts: dict[str, str] = {}
    """The same, one per market."""
    columns: Columns = Columns()


class Demo(Section):
    """The generated shop: five markets in the proportions of the paper's Table 1."""

    scale: Annotated[float, Field(gt=0.0, le=10.0)] = 0.15
    """Users and items as a share of the paper's Table 1."""
    groups: PositiveInt = 24
    """Planted groups of items that are bought together."""
    seed: NonNegativeInt = 7


class Clean(Section):
    """What is kept of the source; every row left out is counted and reported."""

    bad_rows: Literal["drop", "error"] = "drop"
    """A row with a null or blank id, or a rating that is NaN, infinite, negative or no number."""
    min_rating: float | None = None
    """Keep only pairs rated at least this (needs columns.rating)."""
    min_user_items: NonNegativeInt = 0
    """k-core: items that a user must have in his market; repeated with min_item_users until stable."""
    min_item_users: NonNegativeInt = 0
    """k-core: users that an item must have over all markets."""


class Split(Section):
    """Which pair of a user is held out."""

    method: Literal["given", "last", "random"] = "random"
    seed: NonNegativeInt = 42
    """Of the random hold-out and of the halving of users into validation and test."""


class Candidates(Section):
    """The frozen candidate lists: with them goes the evaluation contract."""

    negatives: PositiveInt = 999
    """Per user; all items of the market's pool where it has fewer."""
    seen: Literal["excluded", "included"] = "excluded"
    """excluded: the standard contract; included: paper-like (the user's own items may be negatives)."""
    seed: NonNegativeInt = 42


class Gram(Section):
    """X'X, one per market."""

    pairs_per_task: PositiveInt = 20_000_000
    """Items are packed into tasks of about this many item pairs (half the sum of squared history lengths)."""
    weights: dict[str, PositiveFloat] = {}
    """Weight of a market's Gram in the sum, w_m: market id -> weight; 1 for those not listed."""
    max_history: Annotated[int, Field(ge=2)] | None = None
    """An approximation: users with more items count with a sample of this many, by the seed. null: exact."""
    seed: NonNegativeInt = 42
    """Of that sample."""


class Ease(Section):
    """EASE^R, eq. 4 and 7."""

    lambda_f: PositiveFloat = 30.0
    """Ridge weight, lambda_F of eq. 3."""
    epsilon: Annotated[float, Field(ge=0.0)] = 0.01
    """Entries of B below this are dropped, eq. 7."""
    solver: Literal["auto", "driver", "cuda", "markets", "sweep", "neighbourhood"] = "auto"
    """auto: the fastest exact one that fits (`m3rec pretrain --plan` shows why); neighbourhood is approximate."""
    precision: Literal["float64", "float32"] = "float64"
    """Of the driver's and CUDA's inverse; float32 halves the memory, its error is reported."""
    tile: Annotated[int, Field(ge=16)] = 1024
    """Items on the side of a tile of the sweep."""
    neighbours: PositiveInt = 200
    """Strongest co-occurring items of each item in the neighbourhood solver."""
    memory_gb: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """What the solver may take; null: 80% of what the machine (or its container) has free."""


class Linear(Section):
    """What is linear in the history: each market's own item model, eq. 2, and the walks of two steps."""

    l1: Annotated[float, Field(ge=0.0)] = 1.0
    """lambda of eq. 2."""
    l2: PositiveFloat = 15.0
    """Its ridge weight, lambda_F."""
    others: tuple[Annotated[float, Field(ge=0.0)], ...] = (0.0, 0.1, 0.3, 1.0)
    """Weights of the other markets' Grams; all are solved, and the market's validation half chooses."""
    walk_neighbours: NonNegativeInt = 50
    """Items that the two-step walk to an item is kept from, RP3-beta; 0: no walks."""
    walk_beta: Annotated[float, Field(ge=0.0, le=2.0)] = 0.7
    """0: the walk; above 0 popular items are reached less."""


class Walks(Section):
    """Random walks, eq. 5."""

    per_item: PositiveInt = 10
    length: Annotated[int, Field(ge=2)] = 40
    """Items per walk, the start included."""
    self_loops: bool = False
    """Whether a step may stay on its item (the diagonal of A)."""
    engine: Literal["auto", "broadcast", "partitioned"] = "auto"
    """broadcast: every worker maps the whole of X; partitioned: one exchange a step. The same walks."""
    return_p: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """node2vec's p: a step back to the previous item weighs 1/p (engine broadcast)."""
    inout_q: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """node2vec's q: a step to an item that does not co-occur with the previous one weighs 1/q (engine broadcast)."""
    seed: NonNegativeInt = 42


class SkipGram(Section):
    """Skip-gram with negative sampling over the walks, eq. 6, 8, 9."""

    dimension: PositiveInt = 128
    window: PositiveInt = 10
    negatives: PositiveInt = 10
    """Negatives per pair, |N|."""
    shared: PositiveInt = 512
    """Negatives drawn once for a batch and shared by it; the expected gradient is that of `negatives` per pair."""
    exact: bool = False
    """Draw `negatives` for each pair instead: the slow reference."""
    smooth: bool = True
    """V = B V0 + V0 (eq. 8); false: V = V0."""
    smooth_rows_above: PositiveInt = 100_000
    """Catalogues larger than this are smoothed in the rows of the batch only."""
    epochs: PositiveInt = 4
    batch_walks: PositiveInt = 1024
    learning_rate: PositiveFloat = 0.05
    seed: NonNegativeInt = 42


class Train(Section):
    """The market model, eq. 10-13."""

    loss: Literal["softmax", "margin"] = "softmax"
    """softmax: over shared negatives, with temperature; margin: eq. 12 of the paper."""
    temperature: PositiveFloat = 0.1
    gamma: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.2
    """Margin of eq. 12."""
    negatives: PositiveInt = 10
    """Negatives per pair, |N| of eq. 12 (loss margin)."""
    shared_negatives: PositiveInt = 1024
    """Negatives of a market that its pairs in a batch share (loss softmax); all items where it has fewer."""
    lambda_loca: Annotated[float, Field(ge=0.0)] = 1e-7
    """Weight of the penalty on V-Loca, eq. 13."""
    intra: bool = True
    """Use B-Glob and the linear model (Table 3: without intra-market similarity)."""
    inter: bool = True
    """Use V-Glob and the walks of two steps (Table 3: without inter-market similarity)."""
    linear: Literal["own", "ease"] = "own"
    """The linear score on top of the cosine: own: each market's own model (section linear); ease: B of eq. 4."""
    ease_weights: tuple[Annotated[float, Field(ge=0.0)], ...] = (0.0, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 50.0)
    """Shares of the linear score tried on top, per market, on the validation half; []: the cosine alone."""
    walk_weights: tuple[Annotated[float, Field(ge=0.0)], ...] = (0.0, 0.5, 1.0, 2.5, 5.0, 10.0)
    """Then shares of the two-step walks (section linear), likewise; []: none. Not with linear: ease."""
    exclude_target: bool = False
    """Leave the pair to be predicted out of its own history. Off: B was fitted on that pair too (docs/decisions)."""
    dropout: Fraction = 0.0
    """Share of a user's history left out at random in a training step."""
    epochs: PositiveInt = 30
    patience: PositiveInt = 4
    """Epochs without a better validation NDCG@10 before training stops."""
    batch_size: PositiveInt = 4096
    learning_rate: PositiveFloat = 0.01
    feed: Literal["petastorm", "arrow"] = "petastorm"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: NonNegativeInt = 0
    """torch CPU threads; 0: leave as is. The same number gives the same bits."""
    validation_users: PositiveInt = 50_000
    """At most this many validation users (the first by a stable hash) judge an epoch."""
    seed: NonNegativeInt = 42


class Evaluate(Section):
    """Which models are ranked."""

    models: tuple[Literal["m3rec", "m3rec_cosine", "ease", "popularity"], ...] = (
        "m3rec", "m3rec_cosine", "ease", "popularity",
    )  # fmt: skip
    """m3rec_cosine: without the linear score that train.ease_weights adds."""
    block: PositiveInt = 256
    """Users scored at once against all items of their market."""


SystemName = Literal[
    "popularity", "neumf", "lightgcn", "random_walk", "slim", "slim_per_market", "ease", "ease_per_market",
    "cross_stitch", "mmoe", "bitgcf", "star", "forec", "m3rec", "m3rec_without_intra", "m3rec_without_inter",
    "m3rec_without_both", "m3rec_paper",
]  # fmt: skip


class Compare(Section):
    """Tables 2, 3 and 4: all systems under one contract."""

    models: Annotated[tuple[SystemName, ...], Field(min_length=1)] = get_args(SystemName)
    """Systems to compare; `m3rec compare --models ease,m3rec` is short for it."""
    seeds: PositiveInt = 5
    """Runs of a system that depends on one; the mean and the spread are reported."""
    seeds_of: dict[SystemName, PositiveInt] = {}
    """Runs of a system instead of that: fewer where it is slow. Name -> runs."""
    trials: PositiveInt = 5
    """Settings tried for every system on the validation half, at most; the best one is run with all seeds."""
    trial_seconds: PositiveFloat = 120.0
    """Of training, validation apart, of a trial of a network, the same for all; closed forms and walks end alone."""
    run_seconds: PositiveFloat = 240.0
    """The same of a run with the chosen settings."""
    epochs: PositiveInt = 100
    patience: PositiveInt = 5
    """Epochs without a better validation NDCG@10 before a baseline stops."""
    validation_users: PositiveInt = 4000
    """At most this many validation users judge an epoch and a trial."""
    settings: dict[SystemName, Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]] = {}
    """Settings to try, not the built-in ones: name -> list; what one does not name is as in the first of those."""
    scores: dict[str, str] = {}
    """Further rows: name -> CSV or Parquet of market, user_id, item_id, score for the users of the test half."""
    seed: NonNegativeInt = 42

    @field_validator("models")
    @classmethod
    def _once(cls, models: tuple[SystemName, ...]) -> tuple[SystemName, ...]:
        if twice := sorted({name for name in models if models.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is named twice: once is enough")
        return models

    @field_validator("scores")
    @classmethod
    def _names_are_free(cls, scores: dict[str, str]) -> dict[str, str]:
        for name in scores:
            if name in get_args(SystemName):
                raise ValueError(f"'{name}' is a system of ours: give the row another name")
            if not re.fullmatch(r"[A-Za-z0-9_.\- ]+", name):
                raise ValueError(f"the name '{name}' may have letters, digits, _ . - and spaces only")
        return scores


class Recommend(Section):
    """Lists for all users, as a table."""

    k: Annotated[int, Field(ge=1, le=1000)] = 10
    """Items of a list; fewer where the market has no more that the user has not bought."""
    reasons: bool = False
    """Say of each item which items of the history it is there for, and how many shoppers of each market bought both."""


class Registry(Section):
    """The MLflow model registry, and when a new model may serve."""

    name: str = "m3rec"
    """Of the registered model; in Unity Catalog catalog.schema.name."""
    uri: str | None = None
    """null: the registry of the tracking store; databricks-uc: Unity Catalog."""
    max_drop: Annotated[float, Field(ge=0.0)] = 0.01
    """How much NDCG@10 of any market may fall below the champion's."""
    min_gain: float = 0.0
    """By how much the mean over the markets has to be above the champion's."""
    data_license: str | None = None
    """Of the training data, for the model card."""


class Tracking(Section):
    """MLflow."""

    enabled: bool = True
    uri: str | None = None
    """null: MLFLOW_TRACKING_URI, else SQLite in the workspace."""
    experiment: str = "m3rec_spark"


class Spark(Section):
    """Used only where no session is active and spark-submit set nothing."""

    master: str = "local[*]"
    driver_memory: str = "2g"
    shuffle_partitions: PositiveInt = 8
    options: dict[str, str] = {}
    """Further Spark options by their full names."""


_ONLY_HOW = {"gram": {"pairs_per_task"}, "ease": {"memory_gb"}, "walks": {"engine"}, "train": {"device"}}


class Config(Section):
    """All sections."""

    source: Source = Source()
    demo: Demo = Demo()
    clean: Clean = Clean()
    split: Split = Split()
    candidates: Candidates = Candidates()
    gram: Gram = Gram()
    ease: Ease = Ease()
    linear: Linear = Linear()
    walks: Walks = Walks()
    skipgram: SkipGram = SkipGram()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    compare: Compare = Compare()
    recommend: Recommend = Recommend()
    registry: Registry = Registry()
    tracking: Tracking = Tracking()
    spark: Spark = Spark()


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file with `key.sub=value` overrides on top (values are YAML: `3`, `null`, `[a, b]`).

    Raises:
        UsageError: all problems at once: unreadable file, unknown key (with the nearest known one), wrong value.
    """
    tree = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        origin = f" in {path}" if path is not None else ""
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise UsageError(f"config{origin} is not valid:\n{problems}") from None


def changed(config: Config, section: str, changes: Mapping[str, Any], where: str) -> Any:
    """A section with other settings, checked like those of a file.

    Args:
        config: it stays as it is.
        section: name.
        changes: key -> value.
        where: of the changes, for the message.

    Raises:
        UsageError: an unknown key or a wrong value.
    """
    given: Section = getattr(config, section)
    try:
        return type(given).model_validate({**given.model_dump(), **changes})
    except ValidationError as error:
        problems = "\n".join(f"  {_explain({**one, 'loc': (section, *one['loc'])})}" for one in error.errors())
        raise UsageError(f"{where} is not valid:\n{problems}") from None


def flatten(config: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting, as for MLflow parameters."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Section):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def provenance(config: Config, section: str) -> dict[str, Any]:
    """The settings of a section that its results follow from: without those that only say how they are worked out."""
    given: Section = getattr(config, section)
    return given.model_dump(mode="json", exclude=_ONLY_HOW.get(section, set()))


def digest(*parts: object) -> str:
    """SHA-256 (hex) of sections and plain values, the same for the same settings in any process."""
    plain = [part.model_dump(mode="json") if isinstance(part, Section) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read config {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"config {path} is not YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"config {path} must hold `section: key: value`, got {type(tree).__name__}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"override '{override}' must look like section.key=value, as train.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"override '{override}': the value is not YAML; quote it") from None
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise UsageError(f"override '{override}': '{parent}' is a value, not a section")
    tree[leaf] = value


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        section: type[BaseModel] = Config
        for part in location[:-1]:
            section = section.model_fields[part].annotation  # type: ignore[assignment]
        known = list(section.model_fields)
        hint = did_you_mean(location[-1], known) or f" Known here: {', '.join(known)}."
        return f"{key}: unknown key.{hint}"
    if location[-1] == "[key]" and problem["type"] == "literal_error":  # a text, but none of those there are
        where, named = ".".join(location[:-2]), str(problem["input"])
        known = problem["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        hint = did_you_mean(named, known.split(", ")) or f" Known here: {known}."
        return f"{where}: unknown name '{named}'.{hint}"
    if location[-1] == "[key]" or problem["type"] == "invalid_key":  # no, on, 1: YAML's truth values and numbers
        named, depth = (problem["input"], 2) if location[-1] == "[key]" else (location[-1], 1)
        where = ".".join(location[:-depth]) or "the config"
        return f"{where}: the key {named!r} is not text: write it in quotes"
    if problem["type"] == "model_type":  # `epochs:5` is a text to YAML
        return f"{key}: must be a section of `key: value`, with a space after the colon, got {problem['input']!r}"
    return f"{key}: {problem['msg']}, got {problem['input']!r}"
