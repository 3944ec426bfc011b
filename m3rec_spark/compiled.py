"""The one door to numba: loops over pairs, compiled once and kept on disk for the next process.

numba keeps compiled code beside the module or in the user's cache folder, and raises at import where it can write to
neither (a read-only site-packages under a user without a home). There the code is compiled anew in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(kernel: Kernel) -> Kernel:
    """`kernel`, compiled to machine code for the types of its first call; releases the GIL, never reorders floats."""
    try:
        return cast(Kernel, numba.njit(cache=True, nogil=True)(kernel))
    except RuntimeError:  # "cannot cache function: no locator available"
        return cast(Kernel, numba.njit(nogil=True)(kernel))
