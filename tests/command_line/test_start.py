"""Commands of a login node start at once: none of the heavy packages is imported, and the processor time says so."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import COMMANDS
from tests.cli import refused, succeeds

HEAVY = ("torch", "torchvision", "timm", "pandas", "pyarrow", "sklearn", "scipy", "numpy", "submitit", "vl_convert")

_IMPORT_ALL = """
import importlib, json, sys
import kt_study.__main__, orchestrator.cli
for name in orchestrator.cli.COMMANDS:
    importlib.import_module(f"orchestrator.cli.commands.{name}")
import orchestrator.planning, orchestrator.cli.status, kt_study.store
print(json.dumps(sorted(sys.modules)))
"""


def test_no_command_imports_a_heavy_package() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & set(HEAVY)


def test_help_costs_less_than_half_a_second() -> None:
    least = min(_processor_time(["--help"]) for _ in range(3))
    assert least < 0.5


def test_planning_the_embedded_study_does_not_import_torch(tmp_path: Path) -> None:
    succeeds(tmp_path, "init")
    plan = "import sys; from kt_study.__main__ import main; sys.argv = ['kt-study', 'plan', '--dry-run']; main()"
    tell = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {plan}"
    done = subprocess.run([sys.executable, "-c", tell], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_init_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("mine")
    (tmp_path / "link.toml").symlink_to(tmp_path / "nowhere")
    for name in ("study.toml", "link.toml"):
        assert f"{name} exists; remove it first" in refused(tmp_path, "init", "--study", name)
    assert (tmp_path / "study.toml").read_text() == "mine"
    assert (tmp_path / "link.toml").is_symlink()


def test_a_file_of_others_among_the_caches_is_said(tmp_path: Path) -> None:
    succeeds(tmp_path, "init")
    (tmp_path / "cache").mkdir()
    theirs = tmp_path / "cache" / "digests.json"
    theirs.write_text("[1, 2]")
    assert f"{theirs} is not one of kt-study's" in refused(tmp_path, "plan", "--dry-run")
    assert theirs.read_text() == "[1, 2]"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_a_summary(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kt_study", name, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert f"kt-study {name}" in done.stdout


def test_a_mistyped_command_gets_the_nearest_name() -> None:
    done = subprocess.run([sys.executable, "-m", "kt_study", "lanch"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'launch'?" in done.stderr


@pytest.mark.parametrize("package", ["worker", "orchestrator"])
def test_a_package_that_shadows_ours_is_named(package: str, tmp_path: Path) -> None:
    shadow = tmp_path / package / "__init__.py"
    shadow.parent.mkdir()
    shadow.touch()
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from kt_study.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.strip().splitlines() == [
        f"kt-study: {shadow} hides kt-study's own package {package!r}; rename it or take its folder out of PYTHONPATH"
    ]


def _processor_time(arguments: list[str]) -> float:
    """User and system seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "kt_study", *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
