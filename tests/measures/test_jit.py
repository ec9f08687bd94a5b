"""Compiled loops give the same numbers whoever calls them first."""

from __future__ import annotations

import numba
import numpy as np

from worker.measures.jit import compiled


def test_a_caller_that_allows_any_order_does_not_change_the_order() -> None:
    def lost_digits(large: float, small: float) -> float:
        return (large + small) - large  # small itself, if numbers may be added in any order

    def careless(large: float, small: float) -> float:
        return float(inner(large, small))

    inner = numba.njit(lost_digits)
    assert numba.njit(fastmath=True)(careless)(1e16, 1.0) == 1.0  # numba hands it down, or this test shows nothing
    inner = compiled(lost_digits)
    assert numba.njit(fastmath=True)(careless)(1e16, 1.0) == 0.0


def test_dividing_by_zero_is_an_error_whoever_calls() -> None:
    def divided(value: float, by: float) -> float:
        return value / by

    inner = compiled(divided)
    caller = numba.njit(error_model="numpy")(lambda: inner(1.0, 0.0))
    with np.testing.assert_raises(ZeroDivisionError):
        caller()
