"""Overview of the study: counts, hardware, fixed settings, failed jobs, and the commands to reproduce it."""

from __future__ import annotations

from typing import Any

import msgspec
import pandas as pd

from kt_study.failures import GROUP_SHOWN
from kt_study.records import JobState
from orchestrator.results.report.study_results import SETTINGS, StudyResults
from orchestrator.terminal.plural import counted


def facts(study: StudyResults) -> dict[str, str]:
    """What a reader needs to judge or repeat the study: label -> value, in order, without empty values."""
    results, transfers = study.results, study.results.transfers
    jobs = results.jobs
    states = ", ".join(f"{count:,} {state}" for state, count in jobs["state"].value_counts().sort_index().items())
    found = {
        "study": study.name,
        "data set": study.dataset,
        "validation samples": _distinct(results.evaluations.loc[results.evaluations["split"] == "val", "n"])
        or _distinct(transfers["n"])
        or _distinct(study.pairs["n"]),
        "transfer samples": _distinct(transfers["n_train"]),
        "models": _count(study.models),
        "pairs measured": _count(study.pairs),
        "transfers": _count(transfers),
        "jobs": states,
        "hours of work": _hours(results.attempts),
        "devices": _distinct(pd.concat([transfers["device"], results.evaluations["device"]])),
        "versions": _distinct(transfers["versions"]),
    }
    return {label: value for label, value in found.items() if value}


def fixed_settings(study: StudyResults) -> dict[str, str]:
    """Settings with one value in all transfers of the study, by the study file's names."""
    transfers = study.results.transfers
    known = [name for name in (*SETTINGS, "seed") if name in transfers and transfers[name].nunique(dropna=False) == 1]
    return {name: str(transfers[name].iloc[0]) for name in known if transfers[name].notna().all()}


class FailureGroup(msgspec.Struct, frozen=True):
    """Failed jobs with one cause."""

    sentence: str  # their number, kinds and cause
    command: str  # resets them to ready


def failures(study: StudyResults) -> list[FailureGroup]:
    """Why jobs of the study failed, the most frequent cause first."""
    jobs, attempts = study.results.jobs, study.results.attempts
    last = attempts.dropna(subset=["error_group"]).drop_duplicates("job_id", keep="last")
    failed = last[last["job_id"].isin(jobs.loc[jobs["state"] == JobState.FAILED, "job_id"])]
    found = []
    for group in failed["error_group"].value_counts().index:
        rows = failed[failed["error_group"] == group]
        kinds = ", ".join(sorted(set(rows["kind"])))
        cause = f"{rows['error'].iloc[-1]}: {rows['message'].iloc[-1]}"
        command = f"kt-study retry --error {group[:GROUP_SHOWN]}"
        found.append(FailureGroup(f"{counted(len(rows), 'job')} failed ({kinds}). {cause}", command))
    return found


def commands(study: StudyResults) -> list[str]:
    """The commands that repeat the study from its study file."""
    planned = list(study.results.plans["command"]) or ["kt-study plan"]
    return [*planned, "kt-study launch", "kt-study collect", "kt-study report"]


def _count(rows: pd.DataFrame) -> str:
    return f"{len(rows):,}" if len(rows) else ""


def _distinct(values: pd.Series[Any]) -> str:
    """The distinct values; of more than four their number and range."""
    distinct = sorted(set(values.dropna()))
    if len(distinct) > 4:
        return f"{len(distinct)} different, {distinct[0]} to {distinct[-1]}"
    return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in distinct)


def _hours(attempts: pd.DataFrame) -> str:
    seconds = (attempts["ended_at"] - attempts["started_at"]).groupby(attempts["kind"]).sum()
    return ", ".join(f"{kind} {value / 3600:.2f}" for kind, value in seconds.sort_values(ascending=False).items())
