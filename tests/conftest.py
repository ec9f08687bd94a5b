"""Which tests may run beside each other: those of two areas may, those of one area share servers, zoos and clusters."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

AREAS_THAT_WAIT = ("slurm", "faults", "store", "end_to_end", "documentation", "extension")
"""Started first: they take longest, and wait for clocks and servers more than they compute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long areas at the front."""
    items.sort(key=lambda item: AREAS_THAT_WAIT.index(area) if (area := _area(item.nodeid)) in AREAS_THAT_WAIT else 9)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--numprocesses`, one process for each area at a time, and the next area to the first that is free."""
    from xdist.scheduler import LoadScopeScheduling

    class ByArea(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _area(nodeid)

    return ByArea(config, log)


def _area(nodeid: str) -> str:
    return nodeid.removeprefix("tests/").split("/")[0]
