"""status: a summary of the job table, as text or JSON, and the details of one job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kt_study.database import parse_url, place
from kt_study.errors import UsageError
from kt_study.failures import GROUP_SHOWN
from kt_study.pilots import LaunchFiles, alive_within_s
from kt_study.printable import printable
from kt_study.records import JobState
from kt_study.store import JobRow, Selection
from orchestrator.cluster import slurm_status
from orchestrator.cluster.launch import records
from orchestrator.cluster.slurm_status import SlurmStatus
from orchestrator.terminal.plural import counted
from orchestrator.terminal.spans import span
from orchestrator.terminal.tint import tint

if TYPE_CHECKING:
    from kt_study.store import JobStore

_RATE_WINDOW_S = 600.0


def summary(store: JobStore, study: str, files: LaunchFiles) -> dict[str, Any]:
    """Everything that `kt-study status` shows of a study, as JSON-ready builtins. Times are in seconds.

    Raises:
        UsageError: the database has no such study.
    """
    jobs = store.summary(study, window_s=_RATE_WINDOW_S)
    if not jobs.counts:
        raise UsageError(f"study {study!r} has no jobs in this database; kt-study plan adds them")
    slurm = slurm_status.slurm_status_of(
        files, store, study, eta_s=jobs.eta_s
    )  # first: it ends workers that Slurm ended
    leases_s = [record.lease_s for record in records.launches(files, study)]
    workers = store.workers(alive_within_s=alive_within_s(*leases_s))
    running = store.jobs(Selection(study=study, state=JobState.RUNNING), limit=200)
    return {
        "study": study,
        "folder": store.study(study).get("folder", ""),
        "database": place(parse_url(store.url)),
        "counts": _nested(jobs.counts),
        "workload": msgspec.to_builtins(jobs.workload),
        "running": [_running(job) for job in running],
        "workers": [msgspec.to_builtins(worker) for worker in workers],
        "failures": [msgspec.to_builtins(group) for group in store.failures(study)],
        "slurm": msgspec.to_builtins(slurm),
        "jobs_per_s": jobs.jobs_per_s,
        "eta_s": jobs.eta_s if workers else None,
    }


def is_over(summary: dict[str, Any]) -> bool:
    """Whether no job is left that can run."""
    workload = summary["workload"]
    return not (workload["running"] or workload["ready_now"] or workload["ready_later"])


def as_text(summary: dict[str, Any]) -> str:
    """The output of `kt-study status`."""
    head = [
        f"study {printable(summary['study'])}",
        printable(f"  folder {summary['folder'] or '?'}, database {summary['database']}"),
    ]
    return "\n".join([*head, *_table(summary["counts"]), *details(summary)])


def details(summary: dict[str, Any]) -> list[str]:
    """The lines below the counts."""
    lines = []
    if summary["jobs_per_s"]:
        eta = f", about {span(summary['eta_s'])} left" if summary["eta_s"] else ""
        lines.append(
            f"\n{60 * summary['jobs_per_s']:.1f} jobs per minute{eta}, {counted(len(summary['workers']), 'worker')}"
        )
    if summary["slurm"]:
        lines += ["", *map(printable, slurm_status.lines(msgspec.convert(summary["slurm"], SlurmStatus)))]
    if summary["running"]:
        lines.append("\nrunning")
        lines += [f"  {printable(_running_line(job))}" for job in summary["running"]]
    if summary["failures"]:
        lines.append("\nfailed, by cause")
        for group in summary["failures"]:
            jobs = ", ".join(map(str, group["job_ids"]))
            cause = tint(f"{group['count']:>5} x {printable(group['error'])}", "failed")
            name = group["group"][:GROUP_SHOWN]
            lines.append(f"  {name}  {cause}: {printable(group['message'])}")
            lines.append(f"            jobs {jobs}; kt-study retry --error {name}")
    if summary["workload"]["blocked"] and is_over(summary):
        lines.append("\nblocked jobs wait for failed ones; kt-study status --why N names them")
    return lines


def describe_job(job: JobRow, *, as_json: bool) -> str:
    """The details of one job: kind, state, reason, specification, attempts."""
    if as_json:
        return json.dumps(msgspec.to_builtins(job))
    lines = [
        f"job {job.id}: {job.kind}, {job.state}" + (", paused" if job.paused else ""),
        f"  why       {job.why}",
        f"  spec      {json.dumps(job.spec)}",
        f"  digest    {job.digest}",
        f"  studies   {', '.join(job.studies)}",
    ]
    lines += [f"  needs     job {need.job_id} ({need.kind}), {need.state}" for need in job.needs]
    for number, attempt in enumerate(job.attempts, 1):
        outcome = attempt.outcome or "running"
        lines.append(f"  attempt {number} by {attempt.worker}: {outcome}")
        if attempt.error:
            lines.append(f"            {attempt.error}: {attempt.message}")
    return "\n".join(map(printable, lines))


def log_of(job: JobRow) -> str:
    """The log of the last worker that ran the job.

    Raises:
        UsageError: the job has no attempt yet, or the log cannot be read here.
    """
    if not job.attempts:
        raise UsageError(f"job {job.id} has not been run yet: {job.why}")
    last = job.attempts[-1]
    try:
        text = Path(last.log).read_text(encoding="utf-8", errors="replace")
        return "\n".join(printable(line.expandtabs()) for line in text.splitlines())
    except OSError as error:
        raise UsageError(f"the log of worker {last.worker} on {last.host} cannot be read here: {last.log!r}") from error


def _nested(counts: dict[tuple[str, JobState], int]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (kind, state), count in sorted(counts.items()):
        nested.setdefault(kind, {})[str(state)] = count
    return nested


def _table(counts: dict[str, dict[str, int]]) -> list[str]:
    states = [str(state) for state in JobState if any(str(state) in row for row in counts.values())]
    header = f"  {'':<16}" + "".join(f"{state:>11}" for state in states)
    rows = [
        f"  {kind:<16}" + "".join(tint(f"{row.get(state, 0) or '-':>11}", state) for state in states)
        for kind, row in counts.items()
    ]
    return [header, *rows]


def _running(job: JobRow) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "worker": job.worker,
        "age_s": round(job.age_s, 1),
        "progress": msgspec.to_builtins(job.progress) if job.progress else None,
    }


def _running_line(job: dict[str, Any]) -> str:
    progress = job["progress"] or {}
    where = f"epoch {progress['epoch']}/{progress['epochs']}, " if progress.get("epochs") else ""
    step = f"step {progress['step']}/{progress['steps']}, " if progress.get("steps") else ""
    rate = f"{progress['images_per_s']:.0f} img/s, " if progress.get("images_per_s") else ""
    return f"job {job['id']} {job['kind']}: {where}{step}{rate}{span(job['age_s'])} on {job['worker']}"
