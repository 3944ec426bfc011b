"""Settings that a comparison tries: what is refused, and that every built-in one can be built."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from shops import SMALL

from m3rec_spark.config import Config, changed, load
from m3rec_spark.errors import M3RecError, UsageError
from m3rec_spark.models.catalogue import GRAPH_MODELS, PAIR_MODELS, build
from m3rec_spark.stages.compare_runs import Run, select
from m3rec_spark.stages.systems import SYSTEMS
from m3rec_spark.stages.trials import all_trials

LEARNING = ("learning_rate", "batch_size", "negatives")


def configured(name: str, *given: dict[str, Any], trials: int = 4) -> Config:
    return load(
        None, [f"compare.models=[{name}]", f"compare.settings={{{name}: {list(given)}}}", f"compare.trials={trials}"]
    )


def test_built_in_settings_are_all_there_and_complete() -> None:
    found = all_trials(load(None, []))
    assert list(found) == list(SYSTEMS)
    for name, system in SYSTEMS.items():
        assert found[name] == list(system.grid)
        assert len(system.grid) <= 5
    assert all(len(grid) == 1 for grid in all_trials(load(None, ["compare.trials=1"])).values())


@pytest.mark.parametrize("name", [*PAIR_MODELS, *GRAPH_MODELS])
def test_every_network_of_the_grid_can_be_built(name: str) -> None:
    for settings in SYSTEMS[name].grid:
        given = {key: value for key, value in settings.items() if key not in LEARNING}
        model = build(name, SMALL, given, seed=0).eval()
        with torch.no_grad():
            scores = model.scorer()(1, torch.tensor([3]), torch.tensor([3, 4]))
        assert scores.shape == (1, 2)
        assert scores[0, 0] != scores[0, 1]


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.section])
def test_every_other_setting_of_the_grid_is_one_of_the_config(name: str) -> None:
    for settings in SYSTEMS[name].grid:
        section = changed(load(None, []), SYSTEMS[name].section or "", settings, "here")
        assert {key: getattr(section, key) for key in settings} == dict(settings)


def test_what_is_not_named_stays_as_in_the_first_built_in_settings() -> None:
    assert all_trials(configured("lightgcn", {"l2": 0}))["lightgcn"][0]["l2"] == 0  # no penalty
    found = all_trials(configured("neumf", {"dimension": 16}, {"dropout": 0}))
    first = SYSTEMS["neumf"].grid[0]
    assert found == {"neumf": [{**first, "dimension": 16}, {**first, "dropout": 0}]}
    held = all_trials(configured("m3rec_without_both", {"dropout": 0.1}))
    assert held == {"m3rec_without_both": [{"intra": False, "inter": False, "dropout": 0.1}]}


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("neumf", {"dimensions": 8}, "neumf has no setting 'dimensions'. Did you mean 'dimension'?"),
        ("popularity", {"decay": 1}, "popularity has no setting 'decay'. Known: none."),
        ("neumf", {"dimension": 8.5}, "dimension must be a whole number of at least 1, got 8.5"),
        ("neumf", {"dimension": True}, "dimension must be a whole number of at least 1, got True"),
        ("neumf", {"widths": []}, "widths must be a list of whole numbers of at least 1, got []"),
        ("neumf", {"widths": [8, 0]}, "widths must be a list of whole numbers of at least 1, got [8, 0]"),
        ("neumf", {"dropout": 1.0}, "dropout must be a number from 0 to below 1, got 1.0"),
        ("slim", {"l2": 0}, "l2 must be a number above 0, got 0"),
        ("ease_per_market", {"lambda_f": 0.0}, "lambda_f must be a number above 0, got 0.0"),
        ("lightgcn", {"learning_rate": 0}, "learning_rate must be a number above 0, got 0"),
        ("slim", {"l1": -1}, "l1 must be a number of at least 0, got -1"),
        ("slim", {"l1": "much"}, "l1 must be a number of at least 0, got 'much'"),
        ("m3rec", {"temprature": 0.1}, "train.temprature: unknown key. Did you mean 'temperature'?"),
        ("m3rec", {"dropout": "abc"}, "train.dropout: "),
        ("m3rec", {"seed": 3}, "seed cannot be set: the comparison gives it"),
        ("m3rec_without_both", {"intra": True}, "intra cannot be set: the comparison gives it"),
        ("random_walk", {"smooth": True}, "smooth cannot be set: the comparison gives it"),
        ("random_walk", {"window": 0}, "skipgram.window: "),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        all_trials(configured(name, given))
    assert f"compare.settings.{name}" in str(error.value)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("compare.models=[]", "compare.models: "),
        ("compare.models=[ease, slim, ease]", "ease is named twice"),
        ("compare.settings={neumf: []}", "compare.settings.neumf: "),
        ("compare.settings={neumv: [{}]}", r"compare.settings: unknown name 'neumv'. Did you mean 'neumf'\\?"),
        ("compare.seeds_of={xyz: 2}", r"compare.seeds_of: unknown name 'xyz'. Known here: popularity, neumf, lightgcn"),
    ],
)
def test_lists_that_cannot_be_are_refused(override: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        load(None, [override])


def test_settings_beyond_the_budget_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = all_trials(configured("slim", {"l1": 1}, {"l1": 2}, {"l1": 3}, trials=1))
    assert [one["l1"] for one in found["slim"]] == [1]
    assert "the last 2 are not tried, compare.trials allows 1" in caplog.text


def test_a_failed_trial_is_not_chosen() -> None:
    def run(**result: Any) -> Run:
        return Run("neumf", {"dimension": 8}, 0, None, result)  # type: ignore[arg-type]

    failed, good, better = run(failed="the loss became nan"), run(valid_ndcg_10=0.1), run(valid_ndcg_10=0.2)
    assert select([failed, good, better, better]) is better
    with pytest.raises(
        M3RecError, match=r"no settings of neumf can be trained: .*became nan\. Give it others in compare\.se"
    ):
        select([failed, failed])
