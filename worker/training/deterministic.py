"""Reproducible runs: seeds by step, and torch's deterministic kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from kt_study.hashing import hash64


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Seed torch's generators for one step, so that dropout and negatives do not depend on where a run was resumed.

    Only generators in use: `torch.manual_seed` also records a stack trace for every unused device, which takes longer than
    the seeding.
    """
    state = hash64("step", seed, epoch, step) >> 1
    torch.default_generator.manual_seed(state)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(state)


@contextlib.contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """Allow deterministic kernels only, if `enabled`; the old setting is restored afterwards.

    An operation without such a kernel raises torch's RuntimeError, which names it. cuBLAS has them if
    CUBLAS_WORKSPACE_CONFIG was set before the process's first product of matrices (`worker.pilot.entry`).
    """
    if not enabled:
        yield
        return
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
