"""Tracks what torch.compile has compiled in this process, and when to free it."""

from __future__ import annotations

from typing import Any

import torch

from kt_study.settings import Settings


def forget_compiled(worker_cache: dict[str, Any], student: str, settings: Settings) -> None:
    """Free the code that was compiled for other students and other kinds of steps.

    torch compiles one class's forward pass at most eight times (`torch._dynamo.config.recompile_limit`): of a worker's
    students of one class about the fifth would silently run uncompiled. The same student in steps of the same kind reuses
    its code.

    Args:
        worker_cache: `JobContext.worker_cache`, where the last student and kind are noted.
        student: key of the student that is about to be compiled.
        settings: of its transfer.
    """
    kind = (settings.batch_size, settings.precision, settings.batchnorm, settings.channels_last)
    if worker_cache.get("compiled") != (student, kind):
        torch._dynamo.reset()
        worker_cache["compiled"] = (student, kind)
