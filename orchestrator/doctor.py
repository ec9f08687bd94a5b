"""doctor: looks at everything a study needs on this machine; one line each, with what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from kt_study.errors import KtStudyError
from kt_study.words import Record

if TYPE_CHECKING:
    from orchestrator.surroundings import Surroundings

Verdict = Literal["ok", "note", "wrong"]


class Finding(Record, frozen=True, kw_only=True):
    """One line. `do` is empty where nothing is to be done."""

    what: str
    verdict: Verdict
    found: str
    do: str = ""


def examine(here: Surroundings) -> list[Finding]:
    """Every check, in the order in which a study would meet them."""
    checks: tuple[Callable[[Surroundings], Iterator[Finding]], ...] = (
        _python, _packages, _gpu, _ffcv, _study_folder, _database, _slurm,
    )  # fmt: skip
    return [finding for check in checks for finding in check(here)]


def as_text(findings: list[Finding]) -> str:
    """One line for each finding."""
    width = max(len(finding.what) for finding in findings)
    return "\n".join(
        f"{finding.verdict:<6}{finding.what:<{width + 2}}{finding.found}" + (f"; {finding.do}" if finding.do else "")
        for finding in findings
    )


def _python(here: Surroundings) -> Iterator[Finding]:  # noqa: ARG001
    ok = sys.version_info >= (3, 11)
    yield Finding(
        what="python",
        verdict="ok" if ok else "wrong",
        found=f"{platform.python_version()} at {sys.executable}",
        do="" if ok else "install Python 3.11 or newer",
    )


def _packages(here: Surroundings) -> Iterator[Finding]:  # noqa: ARG001
    for name in ("torch", "timm", "submitit", "sqlalchemy", "pyarrow"):
        try:
            yield Finding(what=name, verdict="ok", found=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                what=name, verdict="wrong", found="not installed", do="install kt-study again: pip install kt-study"
            )


def _gpu(here: Surroundings) -> Iterator[Finding]:  # noqa: ARG001
    if not shutil.which("nvidia-smi"):
        yield Finding(what="gpu", verdict="note", found="none on this machine; workers here run on the CPU")
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    for line in said.stdout.splitlines() or ["nvidia-smi answers nothing"]:
        yield Finding(what="gpu", verdict="ok" if said.returncode == 0 else "wrong", found=line.strip())


def _ffcv(here: Surroundings) -> Iterator[Finding]:  # noqa: ARG001
    if importlib.util.find_spec("ffcv"):
        yield Finding(what="ffcv", verdict="ok", found=importlib.metadata.version("ffcv"))
    else:
        yield Finding(
            what="ffcv",
            verdict="note",
            found="not installed; views come from the torch loader",
            do="for the fast loader: libopencv-dev, libturbojpeg0-dev and pkg-config, then pip install kt-study[ffcv]",
        )


def _study_folder(here: Surroundings) -> Iterator[Finding]:
    from kt_study.database import file_system

    folder = here.folder
    kind = file_system(folder)
    free = shutil.disk_usage(folder).free / 1e9
    yield Finding(
        what="study folder",
        verdict="ok" if free > 10 else "note",
        found=f"{folder} on {kind}, {free:.0f} GB free",
        do="" if free > 10 else "the logits cache may need more; kt-study plan --dry-run says how much",
    )
    try:
        yield Finding(what="study file", verdict="ok", found=f"{here.study_path}: study {here.name!r}")
    except KtStudyError as error:
        yield Finding(what="study file", verdict="wrong", found=str(error))


def _database(here: Surroundings) -> Iterator[Finding]:
    try:
        began = time.perf_counter()
        store = here.store()
        studies = store.studies()
        latency = 1000 * (time.perf_counter() - began)
        yield Finding(
            what="database", verdict="ok", found=f"{store.url}, {len(studies)} studies, answered in {latency:.0f} ms"
        )
    except KtStudyError as error:
        yield Finding(what="database", verdict="note", found=str(error))


def _slurm(here: Surroundings) -> Iterator[Finding]:  # noqa: ARG001
    if not shutil.which("sinfo"):
        yield Finding(what="slurm", verdict="note", found="no Slurm commands here; kt-study launch uses this machine")
        return
    said = subprocess.run(
        ["sinfo", "-h", "-o", "%P %D nodes %G %l"], capture_output=True, text=True, timeout=30, check=False
    )
    if said.returncode:
        first = (said.stderr.strip().splitlines() or ["no answer"])[0]
        yield Finding(
            what="slurm", verdict="wrong", found=first, do="ask the cluster's administrators, or check SLURM_CONF"
        )
        return
    version = subprocess.run(
        ["sinfo", "--version"], capture_output=True, text=True, timeout=30, check=False
    ).stdout.strip()
    yield Finding(what="slurm", verdict="ok", found=version)
    for line in said.stdout.splitlines():
        yield Finding(what="partition", verdict="ok", found=line)
