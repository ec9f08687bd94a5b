"""Compiles loops that no single numpy call covers, with numba. They release the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at the first call; kept on disk for the next process where numba finds a folder it may write to.

    What numba would take over from a compiled caller is said here, so that the first caller does not decide it for all:
    ffcv's would let numbers be added in any order.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": False, "error_model": "python"}
    try:
        return cast(Function, numba.njit(**options, cache=True)(function))
    except RuntimeError:
        return cast(Function, numba.njit(**options)(function))
