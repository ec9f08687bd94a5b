"""Which tests may run beside each other: those of two areas may, those of one area share servers, zoos and clusters."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

AREAS_THAT_WAIT = ("slurm", "store", "end_to_end")
"""Started first: they take longest, and wait for clocks and servers more than they compute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One group an area for pytest-xdist (`--dist loadgroup --no-loadscope-reorder`), the long ones at the front."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_area(item)))
    items.sort(key=lambda item: AREAS_THAT_WAIT.index(area) if (area := _area(item)) in AREAS_THAT_WAIT else 9)


def _area(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]
