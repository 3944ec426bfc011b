"""The settings that a comparison tries: the built-in ones or the user's, checked before anything is trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from m3rec_spark.config import Config, SystemName, changed
from m3rec_spark.errors import UsageError, did_you_mean
from m3rec_spark.stages.bench import Settings
from m3rec_spark.stages.systems import SYSTEMS, System

log = logging.getLogger(__name__)

_SHARES = ("dropout", "keep")


def all_trials(config: Config) -> dict[SystemName, list[Settings]]:
    """System -> its settings to try, every one complete, at most compare.trials of them.

    Raises:
        UsageError: compare.settings names a setting that the system has not, or a value it cannot take.
    """
    return {name: _trials(config, name, SYSTEMS[name]) for name in config.compare.models}


def _trials(config: Config, name: SystemName, system: System) -> list[Settings]:
    given: Sequence[Mapping[str, Any]] = config.compare.settings.get(name, ())
    limit = config.compare.trials
    if len(given) > limit:
        log.warning(
            "compare.settings.%s: the last %d are not tried, compare.trials allows %d", name, len(given) - limit, limit
        )
    return [_checked(config, name, system, one) for one in given[:limit]] or list(system.grid[:limit])


def _checked(config: Config, name: str, system: System, given: Mapping[str, Any]) -> Settings:
    """The settings over the first built-in ones: what is not named stays."""
    where, first = f"compare.settings.{name}", system.grid[0]
    if system.section is None:
        for key, value in given.items():
            if key not in first:
                known = did_you_mean(key, first) or f" Known: {', '.join(first) or 'none'}."
                raise UsageError(f"{where}: {name} has no setting '{key}'.{known}")
            if rule := _broken_rule(key, value, first[key], key in system.above_0):
                raise UsageError(f"{where}: {key} must be {rule}, got {value!r}")
        return {**first, **given}
    if held := system.held & set(given):
        raise UsageError(f"{where}: {', '.join(sorted(held))} cannot be set: the comparison gives it")
    changed(config, system.section, {**first, **given}, where)
    return {**first, **given}


def _broken_rule(key: str, value: Any, default: Any, above_0: bool) -> str | None:
    """What a value of the default's kind has to be, if it is not."""
    if isinstance(default, list):
        whole = isinstance(value, list) and value and all(type(one) is int and one >= 1 for one in value)
        return None if whole else "a list of whole numbers of at least 1"
    if isinstance(default, int):
        return None if type(value) is int and value >= 1 else "a whole number of at least 1"
    number = type(value) in (int, float) and math.isfinite(value) and value >= 0
    if key in _SHARES:
        return None if number and value < 1 else "a number from 0 to below 1"
    if above_0:
        return None if number and value > 0 else "a number above 0"
    return None if number else "a number of at least 0"
