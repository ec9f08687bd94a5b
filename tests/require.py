"""Tests that need more than Python say so here, once. In CI a missing need fails the test instead of skipping it."""

from __future__ import annotations

import os

import pytest


def require(name: str, ok: bool, reason: str) -> None:
    """Go on if `ok`; otherwise skip with `reason`, or fail if the comma list KT_STUDY_REQUIRE has `name` in it."""
    if ok:
        return
    if name in os.environ.get("KT_STUDY_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required by KT_STUDY_REQUIRE: {reason}")
    pytest.skip(reason)
