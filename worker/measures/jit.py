"""Compiles loops that no single numpy call covers, with numba. They release the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at the first call; cached on disk for the next process if numba finds a writable folder.

    The options are explicit because numba would otherwise inherit them from the first compiled caller: ffcv's allow
    additions in any order.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": False, "error_model": "python"}
    try:
        return cast(Function, numba.njit(**options, cache=True)(function))
    except RuntimeError:
        return cast(Function, numba.njit(**options)(function))
