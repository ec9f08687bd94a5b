"""Settings of the study: fixed settings, counts, hardware, and the commands to reproduce it."""

from __future__ import annotations

from typing import Any

import msgspec
import pandas as pd

from kt_study.failures import GROUP_SHOWN
from kt_study.records import JobState
from orchestrator.results.report.material import SETTINGS, Material
from orchestrator.terminal.plural import counted


def facts(material: Material) -> dict[str, str]:
    """What a reader needs to judge or repeat the study, label to value, in order; empty values left out."""
    results, transfers = material.results, material.results.transfers
    jobs = results.jobs
    states = ", ".join(f"{count:,} {state}" for state, count in jobs["state"].value_counts().sort_index().items())
    listed = {
        "study": material.study,
        "data set": material.dataset,
        "validation samples": _several(results.evaluations.loc[results.evaluations["split"] == "val", "n"])
        or _several(transfers["n"])
        or _several(material.pairs["n"]),
        "transfer samples": _several(transfers["n_train"]),
        "models": f"{len(material.models):,}" if len(material.models) else "",
        "pairs measured": f"{len(material.pairs):,}" if len(material.pairs) else "",
        "transfers": f"{len(transfers):,}" if len(transfers) else "",
        "jobs": states,
        "hours of work": _hours(results.attempts),
        "devices": _several(pd.concat([transfers["device"], results.evaluations["device"]])),
        "versions": _several(transfers["versions"]),
    }
    return {label: value for label, value in listed.items() if value}


def fixed_settings(material: Material) -> dict[str, str]:
    """Settings with one value in all transfers of the study, by the study file's names."""
    transfers = material.results.transfers
    known = [name for name in (*SETTINGS, "seed") if name in transfers and transfers[name].nunique(dropna=False) == 1]
    return {name: str(transfers[name].iloc[0]) for name in known if transfers[name].notna().all()}


class Failed(msgspec.Struct, frozen=True):
    """Failed jobs of one cause."""

    sentence: str  # how many, of what kind, and why
    command: str  # that puts them back to ready


def failures(material: Material) -> list[Failed]:
    """Why jobs of the study failed, the most frequent cause first."""
    jobs, attempts = material.results.jobs, material.results.attempts
    last = attempts.dropna(subset=["error_group"]).drop_duplicates("job_id", keep="last")
    failed = last[last["job_id"].isin(jobs.loc[jobs["state"] == JobState.FAILED, "job_id"])]
    found = []
    for group in failed["error_group"].value_counts().index:
        rows = failed[failed["error_group"] == group]
        kinds = ", ".join(sorted(set(rows["kind"])))
        cause = f"{rows['error'].iloc[-1]}: {rows['message'].iloc[-1]}"
        command = f"kt-study retry --error {group[:GROUP_SHOWN]}"
        found.append(Failed(f"{counted(len(rows), 'job')} failed ({kinds}). {cause}", command))
    return found


def commands(material: Material) -> list[str]:
    """What gives the same again from the same study file."""
    planned = list(material.results.plans["command"]) or ["kt-study plan"]
    return [*planned, "kt-study launch", "kt-study collect", "kt-study report"]


def _several(values: pd.Series[Any]) -> str:
    """The distinct values, or how many there are."""
    distinct = sorted(set(values.dropna()))
    if len(distinct) > 4:
        return f"{len(distinct)} different, {distinct[0]} to {distinct[-1]}"
    return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in distinct)


def _hours(attempts: pd.DataFrame) -> str:
    seconds = (attempts["ended_at"] - attempts["started_at"]).groupby(attempts["kind"]).sum()
    return ", ".join(f"{kind} {value / 3600:.2f}" for kind, value in seconds.sort_values(ascending=False).items())
