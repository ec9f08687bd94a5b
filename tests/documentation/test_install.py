"""The README's pip lines, in an environment of their own; then the installed command, far from the checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.documentation.blocks import ROOT, of, pages_for
from tests.documentation.environment import copy_checkout, run
from tests.require import require
from tests.untrained import untrained_mixer

NEEDS = {"ffcv": "ffcv", "postgres": "postgres", "similarity": "sentence-model"}
"""The extras that the block installs, and how KT_STUDY_REQUIRE calls what they bring."""

PACKAGES = ("kt_study", "worker", "orchestrator")

STUDY = """
[study]
name = "installed"
[dataset]
kind = "digits"
{models}
[complementarity]
pairs = 2
models = 2
[transfer]
pairs = 1
objectives = ["kl_dp"]
epochs = 1
views = 1
augment = "none"
"""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A virtual environment with kt-study in it, and an empty folder to work in."""

    environment: Path
    folder: Path

    @property
    def site_packages(self) -> Path:
        """Where pip puts packages."""
        return _site_packages(self.environment)

    def run(self, *argv: str, timeout: float = 300) -> str:
        """Standard output of one of the environment's programs, which must end with 0."""
        home = self.folder.parent / "home"
        home.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KT_STUDY_", "PYTHON"))}
        done = subprocess.run(
            [self.environment / "bin" / argv[0], *argv[1:]],
            cwd=self.folder,
            env={**kept, "HOME": str(home), "MPLCONFIGDIR": str(home)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """After the README's block. What kt-study requires is there already, so that pip installs kt-study and no more."""
    (block,) = of("README.md", "install")
    extras = re.findall(r"\[(\w+)\]", block.text)
    assert set(extras) == set(NEEDS)
    for extra in extras:
        missing = [str(one) for one in _requirements(extra) if not _is_met(one)]
        require(NEEDS[extra], not missing, f"not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("install")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    _lend_requirements(folder / "requirements", environment)
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    of_pip = {"PATH": path, "PYTHONPATH": "", "HOME": str(Path.home())}  # where a user's index is configured
    run(block, copy_checkout(folder / "checkout"), environment=of_pip)
    (folder / "far").mkdir()
    return Installed(environment=environment, folder=folder / "far")


def _requirements(extra: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"][extra])]


def _is_met(requirement: Requirement) -> bool:
    try:
        return importlib.metadata.version(requirement.name) in requirement.specifier
    except importlib.metadata.PackageNotFoundError:
        return False


def _lend_requirements(folder: Path, environment: Path) -> None:
    """Put on the environment's path all that this Python has installed, but kt-study and its editable finder."""
    folder.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name not in PACKAGES and "kt_study" not in entry.name:
            (folder / entry.name).symlink_to(entry)
    (_site_packages(environment) / "lent.pth").write_text(f"{folder}\n", encoding="utf-8")


def _site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))


def test_this_is_the_page() -> None:
    assert pages_for("install") == ["README.md"]


def test_pip_installs_kt_study_and_downloads_nothing_else(installed: Installed) -> None:
    found = {path.name.partition("-")[0] for path in installed.site_packages.glob("*.dist-info")}
    assert "kt_study" in found
    assert found <= {"kt_study", "pip", "setuptools"}


def test_it_is_not_the_checkout_that_runs(installed: Installed) -> None:
    listed = f"import {', '.join(PACKAGES)}; print({', '.join(f'{name}.__file__' for name in PACKAGES)}, sep='\\n')"
    files = installed.run("python", "-c", listed).split()
    assert files == [str(installed.site_packages / name / "__init__.py") for name in PACKAGES]
    assert installed.run("kt-study", "--version") == "kt-study, version 0.1.0\n"


def test_every_file_that_is_no_code_is_installed_too(installed: Installed) -> None:
    data = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if _is_data(path)]
    tools = set((ROOT / "sql").glob("*.py"))  # make migration writes into the checkout; migrations themselves are read
    found = [path for path in (ROOT / "sql").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    queries = [path for path in found if path not in tools]
    assert len(data) > 10
    assert len(queries) > 10
    share = installed.environment / "share" / "kt-study"
    expected = {installed.site_packages / path.relative_to(ROOT): path for path in data}
    expected |= {share / path.relative_to(ROOT): path for path in queries}
    assert [str(path) for path, source in expected.items() if not _same(path, source)] == []


def _is_data(path: Path) -> bool:
    return path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts


def _same(path: Path, source: Path) -> bool:
    return path.is_file() and path.read_bytes() == source.read_bytes()


def test_the_installed_command_does_a_study(installed: Installed) -> None:
    installed.run("kt-study", "init", "--study", "demo.toml")
    installed.run("kt-study", "plan", "--study", "demo.toml", "--dry-run")
    models = untrained_mixer("teacher", width=24, blocks=2) + untrained_mixer("student", width=32, blocks=2)
    (installed.folder / "study.toml").write_text(STUDY.format(models=models), encoding="utf-8")
    installed.run("kt-study", "plan")
    assert "complete: " in installed.run("kt-study", "launch", "--workers", "1", "--wait")
    installed.run("kt-study", "collect")
    installed.run("kt-study", "report")
    assert (installed.folder / "report" / "index.html").stat().st_size > 100_000
    (row,) = json.loads(installed.run("kt-study", "query", "success-rate", "--format", "json"))
    assert (row["objective"], row["pairs"]) == ("kl_dp", 1)


def test_the_installed_command_has_the_papers_lists(installed: Installed) -> None:
    said = installed.run("kt-study", "plan", "--preset", "paper-full", "--dry-run")
    assert "32 kl, 32 kl_dp, 32 kl_dp_unsupervised" in said
