"""Result rows in the form that the database stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with numpy scalars as Python's and nan as None: what is undefined is empty in every database."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
