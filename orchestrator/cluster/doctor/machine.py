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
from orchestrator.cluster.doctor.findings import Finding

PACKAGES = ("kt-study", "torch", "timm", "submitit", "sqlalchemy", "psycopg", "pandas", "pyarrow")
TORCH_TIMEOUT_S = 120.0  # the first import from a shared disk takes that long at times
NVIDIA_SMI_TIMEOUT_S = 30.0

_ASK_TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda or "",
    "gpus": [torch.cuda.get_device_name(n) for n in range(count)], "threads": torch.get_num_threads(),
}))
"""


class Torch(Record, frozen=True, kw_only=True):
    """What torch says of itself. `cuda` is the CUDA it was built for, empty for none."""

    version: str
    cuda: str
    gpus: tuple[str, ...]
    threads: int


class Driver(Record, frozen=True, kw_only=True):
    """What nvidia-smi says: the driver's version, and the newest CUDA that it serves."""

    version: str
    cuda: str
    gpus: tuple[str, ...]


def python() -> Iterator[Finding]:
    """The interpreter."""
    ok = sys.version_info >= (3, 11)
    yield Finding(
        what="python",
        verdict="ok" if ok else "wrong",
        found=f"{platform.python_version()} at {sys.executable}",
        do="" if ok else "install Python 3.11 or newer",
    )


def packages() -> Iterator[Finding]:
    """The packages that a study needs, and their versions."""
    for name in PACKAGES:
        try:
            yield Finding(what=name, verdict="ok", found=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                what=name, verdict="wrong", found="not installed", do="install kt-study again: pip install kt-study"
            )


def ffcv() -> Iterator[Finding]:
    """The fast loader, which is optional."""
    if importlib.util.find_spec("ffcv"):
        yield Finding(what="ffcv", verdict="ok", found=importlib.metadata.version("ffcv"))
        return
    yield Finding(
        what="ffcv",
        verdict="note",
        found="not installed; views come from the torch loader",
        do="for the fast loader: libopencv-dev, libturbojpeg0-dev and pkg-config, then pip install kt-study[ffcv]",
    )


def gpu() -> Iterator[Finding]:
    """The GPUs, the driver, and whether torch can use them."""
    torch, driver = ask_torch(), ask_driver()
    if isinstance(driver, str):
        yield Finding(what="driver", verdict="wrong", found=driver, do="ask for the NVIDIA driver to be mended")
    elif driver:
        yield Finding(what="driver", verdict="ok", found=f"{driver.version}, for CUDA up to {driver.cuda}")
    if isinstance(torch, str):
        yield Finding(what="gpu", verdict="wrong", found=torch, do="install kt-study again: pip install kt-study")
    else:
        yield judge(torch, driver if isinstance(driver, Driver) else None)


def judge(torch: Torch, driver: Driver | None) -> Finding:
    """Whether torch can use the GPUs that the driver has."""
    built = f"torch {torch.version} for CUDA {torch.cuda}" if torch.cuda else f"torch {torch.version} without CUDA"
    if torch.gpus:
        names = ", ".join(f"{torch.gpus.count(name)} x {name}" for name in dict.fromkeys(torch.gpus))
        return Finding(what="gpu", verdict="ok", found=f"{names}; {built}")
    if driver is None:
        found = f"none on this machine; workers here run on the CPU, {torch.threads} threads; {built}"
        return Finding(what="gpu", verdict="note", found=found)
    found = f"torch sees none of {len(driver.gpus)} GPUs; {built}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda:
        do = "install torch's build for CUDA, as on pytorch.org"
    elif _version(torch.cuda) > _version(driver.cuda):
        do = f"the driver serves CUDA {driver.cuda} at most: install torch for an older CUDA, or a newer driver"
    elif visible is not None:
        do = f"CUDA_VISIBLE_DEVICES is {visible!r}: ask Slurm for a GPU with --gpus-per-node 1, or unset it"
    else:
        do = "look at `nvidia-smi` and the kernel's log on that machine"
    return Finding(what="gpu", verdict="wrong", found=found, do=do)


def ask_torch() -> Torch | str:
    """What torch says in a process of its own, or why it says nothing."""
    import msgspec

    try:
        said = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=TORCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"torch cannot be imported within {TORCH_TIMEOUT_S:.0f} s"
    if said.returncode:
        last = (said.stderr.strip().splitlines() or [f"exit code {said.returncode}"])[-1]
        return f"torch cannot be imported: {last}"
    return msgspec.convert(json.loads(said.stdout.splitlines()[-1]), Torch)


def ask_driver() -> Driver | str | None:
    """What nvidia-smi says, why it says nothing, or None without it."""
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
