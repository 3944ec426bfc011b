"""Every error that the library raises on purpose. Imports nothing heavy: serving has no Spark."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class M3RecError(Exception):
    """A failure told in the user's words: what is wrong, with the value, the rule and the way out."""

    exit_code = 1


class UsageError(M3RecError):
    """A wrong command line or config value."""

    exit_code = 2


class DataError(M3RecError):
    """Input data that cannot be used."""

    exit_code = 2


class MissingTableError(M3RecError):
    """A table that a stage needs is absent or stale; the message names the stage to run."""

    exit_code = 2


class CapacityError(M3RecError):
    """A step would need more memory than there is; the message gives the bytes and the ways out."""

    exit_code = 2


class CorruptTableError(M3RecError):
    """A published table's files do not match its manifest."""


class DivergedError(M3RecError):
    """A training whose loss or scores are no numbers any more."""


class CheckpointError(M3RecError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean 'x'?', or '' when nothing known is near.

    >>> did_you_mean("marke", ["market", "user_id"])
    " Did you mean 'market'?"
    """
    folded = {word.casefold(): word for word in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return f" Did you mean '{folded[near[0]]}'?" if near else ""
