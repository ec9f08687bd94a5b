"""Servers that all tests share, which tests may run beside each other, and which are quick.

With `--numprocesses` a process takes one scope after another: a file, or some files that share a cluster or a study.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported, and for every child process

import hypothesis
import pytest

from tests.databases import databases
from tests.postgres import either_url, postgres_server, postgres_url, sqlite_template

__all__ = ["databases", "either_url", "postgres_server", "postgres_url", "sqlite_template"]

hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

TOGETHER = {
    "first cluster": ("slurm/test_acceptance.py", "slurm/test_documentation.py", "slurm/test_preemption.py"),
    "second cluster": ("slurm/",),
    "digits study": ("end_to_end/test_digits.py", "end_to_end/test_all_modes.py", "end_to_end/test_recommend.py"),
    "exports": ("export/",),
}
"""Files that share a cluster or a study are taken by one process; any other file goes by itself."""

LONGEST = (
    "second cluster", "first cluster", "digits study", "documentation/test_make.py", "exports",
    "end_to_end/test_photographs.py", "documentation/test_blocks.py", "documentation/test_install.py",
)  # fmt: skip
"""Taken first, in this order, so that none of them is still running when everything else is done."""


SLOW = (
    "slurm/", "launch/", "pilot/", "end_to_end/", "export/", "extension/", "faults/", "own/", "documentation/",
    "command_line/test_start.py",
    "data/test_cache_faults.py", "data/test_commands.py", "data/test_determinism.py", "data/test_ffcv.py",
    "data/test_logits_cache.py", "data/test_photographs.py", "planning/test_train_kind.py", "recommend/test_plan.py",
    "results/test_collect.py", "results/test_figures.py", "results/test_page.py", "results/test_published.py",
    "results/test_report.py", "store/test_server.py", "store/test_spool.py", "store/test_under_fire.py",
    "transfer/test_kinds.py", "transfer/test_memory.py", "transfer/test_remake.py",
)  # fmt: skip
"""Left out by `--quick`: they start workers, servers, a browser or many processes, and wait for them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--quick`, as in `make test-quick`."""
    parser.addoption("--quick", action="store_true", help="leave out what needs a server or runs a study")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--quick`, what is slow is not even imported."""
    if not config.getoption("quick"):
        return None
    inside = f"{collection_path.relative_to(Path(__file__).parent).as_posix()}{'/' * collection_path.is_dir()}"
    return True if inside.startswith(SLOW) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest at the front; with `--quick` the quick ones only."""
    if config.getoption("quick"):
        config.hook.pytest_deselected(items=[item for item in items if not _is_quick(item)])
        items[:] = filter(_is_quick, items)
    items.sort(key=lambda item: LONGEST.index(scope) if (scope := _scope(item.nodeid)) in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out whole scopes."""
    from xdist.scheduler import LoadScopeScheduling

    class ByScope(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return ByScope(config, log)


def _scope(nodeid: str) -> str:
    file = nodeid.removeprefix("tests/").partition("::")[0]
    return next((scope for scope, files in TOGETHER.items() if file.startswith(files)), file)


def _is_quick(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
    on_a_server = "postgres_server" in fixtures or any(
        isinstance(one, str) and one == "postgresql" for one in parameters
    )
    return not on_a_server
