"""What every benchmark here shares: cases run by turns, medians, the machine in words, one JSON file a run.

Cases take turns, round by round, so that a machine that grows slower or busier slows all of them: ratios within a run
mean something where seconds do not.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kt_study.files import write_text

RESULTS = Path(__file__).parent / "results"


def interleave(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each case in each round, after one round that is not counted (compilation, caches)."""
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median of each case, seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def hardware() -> dict[str, Any]:
    """The machine: processor, cores this process may use, memory in GiB, load when asked, system, Python."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of these packages."""
    return {package: version(package) for package in packages}


def write_result(name: str, result: Mapping[str, Any]) -> Path:
    """Write `result` with date and hardware to results/<name>-<date>-<cpu>.json and return the path."""
    path = _result_path(name)
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(path, json.dumps({"benchmark": name, "date": stamp, "hardware": hardware(), **result}, indent=2) + "\n")
    return path


def read_result(name: str) -> dict[str, Any]:
    """What `write_result` wrote today on this kind of machine; empty when nothing."""
    path = _result_path(name)
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def _result_path(name: str) -> Path:
    cpu = re.sub(r"[^a-z0-9]+", "-", _cpu_name().lower()).strip("-")
    return RESULTS / f"{name}-{datetime.now(UTC):%Y-%m-%d}-{cpu}.json"


def _cpu_name() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if names:
            return str(names[0]).strip()
    return platform.processor() or platform.machine()
