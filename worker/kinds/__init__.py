"""The job kinds: one module for each name in `kt_study.job_kinds`, with `run(spec, context) -> Rows`."""

from __future__ import annotations

import importlib
from typing import cast

from kt_study.errors import UsageError
from kt_study.job_kinds import JOB_KINDS
from worker.job.context import KindModule


def job_kind(name: str) -> KindModule:
    """The module of a job kind. Raises UsageError for a kind that this version does not know."""
    if name not in JOB_KINDS:
        known = ", ".join(JOB_KINDS)
        raise UsageError(f"job kind {name!r} is not known to this version of kt-study; it knows {known}")
    return cast(KindModule, importlib.import_module(f"{__name__}.{name}"))
