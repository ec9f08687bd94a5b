"""The job kinds. A new one is a module with `run(spec, context) -> Rows` and a line here."""

from __future__ import annotations

import importlib
from typing import cast

from kt_study.errors import UsageError
from worker.job.context import JobKind

KINDS = {
    "train": "worker.kinds.train",
    "logits": "worker.kinds.logits",
    "complementarity": "worker.kinds.complementarity",
    "all_pairs": "worker.kinds.all_pairs",
    "transfer": "worker.kinds.transfer",
    "soup": "worker.kinds.soup",
    "remake": "worker.kinds.remake",
    "shared": "worker.kinds.shared",
}

TINY = frozenset({"complementarity"})
"""Kinds whose jobs take milliseconds: a worker claims and finishes them in batches."""


def job_kind(name: str) -> JobKind:
    """The module of a job kind. Raises UsageError for a kind that this version does not know."""
    if name not in KINDS:
        raise UsageError(f"job kind {name!r} is not known to this version of kt-study; it knows {', '.join(KINDS)}")
    return cast(JobKind, importlib.import_module(KINDS[name]))
