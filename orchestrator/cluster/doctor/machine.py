"""Checks of Python, packages, GPU and driver of this machine. torch is checked in a separate process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from kt_study.records import Record
from orchestrator.cluster.doctor.findings import Finding, note, ok, wrong

PACKAGES = ("kt-study", "torch", "timm", "submitit", "sqlalchemy", "psycopg", "pandas", "pyarrow")
TORCH_TIMEOUT_S = 120.0  # the first import from a shared disk may take that long
NVIDIA_SMI_TIMEOUT_S = 30.0
_INSTALL_AGAIN = "install kt-study again: pip install kt-study"

_ASK_TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda or "",
    "gpus": [torch.cuda.get_device_name(n) for n in range(count)], "threads": torch.get_num_threads(),
}))
"""


class Torch(Record, frozen=True, kw_only=True):
    """torch's version and GPUs. `cuda` is the CUDA version of its build, empty for none."""

    version: str
    cuda: str
    gpus: tuple[str, ...]
    threads: int


class Driver(Record, frozen=True, kw_only=True):
    """The driver's version, and the newest CUDA version that it supports, from nvidia-smi."""

    version: str
    cuda: str
    gpus: tuple[str, ...]


def python() -> Iterator[Finding]:
    """The interpreter."""
    found = f"{platform.python_version()} at {sys.executable}"
    yield ok("python", found) if sys.version_info >= (3, 11) else wrong("python", found, "install Python 3.11 or newer")


def packages() -> Iterator[Finding]:
    """The packages that a study needs, and their versions."""
    for name in PACKAGES:
        try:
            yield ok(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield wrong(name, "not installed", _INSTALL_AGAIN)


def ffcv() -> Iterator[Finding]:
    """The fast loader, which is optional."""
    if importlib.util.find_spec("ffcv"):
        yield ok("ffcv", importlib.metadata.version("ffcv"))
        return
    do = "for the fast loader: libopencv-dev, libturbojpeg0-dev and pkg-config, then pip install kt-study[ffcv]"
    yield note("ffcv", "not installed; the torch loader is used", do)


def gpu() -> Iterator[Finding]:
    """The GPUs, the driver, and whether torch can use them."""
    torch, driver = ask_torch(), ask_driver()
    if isinstance(driver, str):
        yield wrong("driver", driver, "ask your cluster's staff to fix the NVIDIA driver")
    elif driver:
        yield ok("driver", f"{driver.version}, for CUDA up to {driver.cuda}")
    if isinstance(torch, str):
        yield wrong("gpu", torch, _INSTALL_AGAIN)
    else:
        yield judge(torch, driver if isinstance(driver, Driver) else None)


def judge(torch: Torch, driver: Driver | None) -> Finding:
    """Whether torch can use the driver's GPUs."""
    build = f"torch {torch.version} for CUDA {torch.cuda}" if torch.cuda else f"torch {torch.version} without CUDA"
    if torch.gpus:
        names = ", ".join(f"{torch.gpus.count(name)} x {name}" for name in dict.fromkeys(torch.gpus))
        return ok("gpu", f"{names}; {build}")
    if driver is None:
        return note("gpu", f"none on this machine; workers here run on the CPU, {torch.threads} threads; {build}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda:
        do = "install torch's build for CUDA, as on pytorch.org"
    elif _version(torch.cuda) > _version(driver.cuda):
        do = f"the driver supports CUDA {driver.cuda} at most: install torch for an older CUDA, or a newer driver"
    elif visible is not None:
        do = f"CUDA_VISIBLE_DEVICES is {visible!r}: ask Slurm for a GPU with --gpus-per-node 1, or unset it"
    else:
        do = "look at `nvidia-smi` and the kernel's log on that machine"
    return wrong("gpu", f"torch sees none of {len(driver.gpus)} GPUs; {build}", do)


def ask_torch() -> Torch | str:
    """torch's version and GPUs, from a separate process; a string with the error if torch cannot be imported."""
    import msgspec

    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=TORCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"torch cannot be imported within {TORCH_TIMEOUT_S:.0f} s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"torch cannot be imported: {last}"
    return msgspec.convert(json.loads(done.stdout.splitlines()[-1]), Torch)


def ask_driver() -> Driver | str | None:
    """The driver; a string with the error if nvidia-smi fails; None without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return None
    try:
        page, listing = _nvidia_smi(), _nvidia_smi("-L")
    except subprocess.TimeoutExpired:
        return f"nvidia-smi does not answer within {NVIDIA_SMI_TIMEOUT_S:.0f} s"
    if page.returncode or listing.returncode:
        return f"nvidia-smi: {((page.stdout + page.stderr).strip().splitlines() or ['no answer'])[0]}"
    versions = dict(re.findall(r"(Driver|CUDA) Version:\s*([\d.]+)", page.stdout))
    names = tuple(re.findall(r"^GPU \d+: (.*?) \(UUID", listing.stdout, re.MULTILINE))
    return Driver(version=versions.get("Driver", "?"), cuda=versions.get("CUDA", "0"), gpus=names)


def _nvidia_smi(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nvidia-smi", *options], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))
