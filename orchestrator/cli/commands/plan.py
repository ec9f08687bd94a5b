"""kt-study plan"""

from __future__ import annotations

import itertools
import json
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from kt_study.database import parse_url
from kt_study.errors import DatabaseError, StudyFileError, UsageError
from kt_study.mistakes import readable, unusable_number
from kt_study.nearest import nearest
from kt_study.printable import printable
from kt_study.records import JobState
from kt_study.settings import SETTINGS, named
from kt_study.study import TransferSection
from orchestrator.cli import completion
from orchestrator.terminal.plural import counted
from orchestrator.terminal.progress import shown
from orchestrator.terminal.spans import size
from orchestrator.terminal.study_context import StudyContext, with_study_context

if TYPE_CHECKING:
    from kt_study.store import JobStore
    from orchestrator.planning import Plan, PlanOptions, Sources

_NO_AXES = (*named("teachers"), "keep")
"""Settings that --grid does not vary."""


@click.command()
@with_study_context
@click.option(
    "--preset",
    "preset_name",
    metavar="NAME",
    shell_complete=completion.presets,
    help="A preset from the paper: paper-10pct, ...",
)
@click.option("--pairs", type=click.IntRange(min=0), help="Transfer pairs per objective; 0 plans no transfers.")
@click.option(
    "--complementarity-pairs", metavar="N|all", help="Number of ordered pairs to compare, or all of them in one file."
)
@click.option(
    "--seeds", metavar="N|S1,S2", help="Replicates of each transfer, or their seeds: other order, dropout and views."
)
@click.option(
    "--controls", is_flag=True, help="Add the controls of each objective: labels only, a random partition, ..."
)
@click.option("--grid", multiple=True, metavar="KEY=V1,V2", help="Grid search over every combination of these values.")
@click.option(
    "--from-recommendation",
    "recommendation",
    metavar="[FILE]",
    type=click.Path(path_type=Path, dir_okay=False),
    is_flag=False,
    flag_value="recommendation.json",
    help="Plan the transfers in a file written by kt-study recommend (default: recommendation.json).",
)
@click.option(
    "--adopt", is_flag=True, help="Move the study of this name from the folder it was planned in to this one."
)
@click.option("--dry-run", is_flag=True, help="Show the plan and its cost; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(
    context: StudyContext,
    preset_name: str | None,
    pairs: int | None,
    complementarity_pairs: str | None,
    seeds: str | None,
    controls: bool,
    grid: tuple[str, ...],
    recommendation: Path | None,
    adopt: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Sample the pairs and fill the job table. Planning again adds only new jobs.

    \b
    Examples:
      kt-study plan                                 # 466 complementarity pairs and 400 transfer pairs per objective
      kt-study plan --pairs 40 --complementarity-pairs all
      kt-study plan --grid lr=1e-3,1e-4 --grid temperature=0.1,1,10
      kt-study plan --seeds 3                       # each transfer three times
      kt-study plan --controls                      # and what tells the teacher's part in a gain from training as such
      kt-study plan --dry-run                       # jobs by kind, models, forwards, cache bytes, GPU-hours
      kt-study plan --preset paper-10pct --dry-run  # the paper's own sizes; needs no study file
      kt-study plan --from-recommendation           # the teachers that kt-study recommend found

    \b
    presets: paper-10pct, paper-full, paper-multi, paper-contrastive, paper-hyperparameters, paper-datasets,
             paper-domain-shift
    """
    from orchestrator.planning import PlanOptions, left_over
    from orchestrator.planning.model_records import check_own_models

    options = PlanOptions(
        pairs=pairs,
        complementarity_pairs=_pairs_or_all(complementarity_pairs),
        controls=controls,
        seeds=_number_or_list(seeds),
        grid=dict(map(_grid_axis, grid)),
    )
    with suppress(StudyFileError):  # a preset can be planned without a study file, with --dry-run
        parse_url(context.database_url)  # report an error in it before the work of planning
        if not dry_run:
            context.require_writable()
        if not adopt and (existing := _store_if_any(context)):
            context.require_planned_here(existing)
    with _sources(context) as sources:
        if recommendation is None:
            plan = _plan(context, preset_name, sources, options, dry_run=dry_run)
        else:
            plan = _recommended(context, recommendation, preset_name, sources, options)
        plan.notes += check_own_models([*plan.models, *plan.others], plan.datasets[0], context.folder)
        plan.notes += [note for scanned in sources.contents.values() for note in scanned.notes]
        store = _store_if_any(context) if dry_run else context.store(create=True)
        command_line = None if dry_run else _command_line(preset_name, options, grid, recommendation)
        summary = _write_or_estimate(plan, sources, store, command_line)
    if store and preset_name is None and recommendation is None and options == PlanOptions():
        summary["unplanned"] = len(left_over(plan, store))
    click.echo(json.dumps(summary) if as_json else _as_text(plan.name, preset_name, summary, dry_run=dry_run))


def _command_line(
    preset_name: str | None, options: PlanOptions, grid: tuple[str, ...], recommendation: Path | None
) -> str:
    """The command line that makes the same plan from the same study file."""
    values = {
        "--preset": preset_name,
        "--pairs": options.pairs,
        "--complementarity-pairs": options.complementarity_pairs,
        "--from-recommendation": recommendation,
    }
    given = [(flag, str(value)) for flag, value in values.items() if value is not None]
    if isinstance(options.seeds, list):
        given.append(("--seeds", ",".join(map(str, options.seeds))))
    elif options.seeds is not None:
        given.append(("--seeds", str(options.seeds)))
    given += [("--grid", axis) for axis in grid]
    flags = ["--controls"] if options.controls else []
    return shlex.join(["kt-study", "plan", *itertools.chain.from_iterable(given), *flags])


def _write_or_estimate(plan: Plan, sources: Sources, store: JobStore | None, command: str | None) -> dict[str, Any]:
    """Write the plan, or compute what that would do if `command` is None. Returns the numbers to print."""
    from kt_study.store import Planned
    from orchestrator.planning import foreseen, plan_cost, write_plan

    if store is None:
        written, states = Planned(new=len(plan.jobs)), {}
    else:
        written = foreseen(plan, store) if command is None else write_plan(plan, sources, store, command)
        states = store.states(plan.jobs)
    done = {digest for digest, state in states.items() if state == JobState.DONE}
    counts = {str(state): list(states.values()).count(state) for state in JobState}
    summary: dict[str, Any] = msgspec.to_builtins(plan_cost(plan, done=done)) | msgspec.to_builtins(written) | counts
    summary["data"] = [
        {"dataset": scanned.dataset, **msgspec.to_builtins(split)}
        for scanned in sources.contents.values()
        for split in scanned.splits
    ]
    return summary


def plan_of_study_file(context: StudyContext) -> Plan:
    """The plan of `kt-study plan` without options. Writes nothing."""
    from orchestrator.planning import PlanOptions, make_plan

    with _sources(context) as sources:
        return make_plan(context.study, sources, PlanOptions())


def _store_if_any(context: StudyContext) -> JobStore | None:
    try:
        return context.store()
    except (DatabaseError, StudyFileError):
        return None


def _plan(
    context: StudyContext, preset_name: str | None, sources: Sources, options: PlanOptions, *, dry_run: bool
) -> Plan:
    from orchestrator.planning import make_plan, nominal_plan, preset_plan
    from orchestrator.planning.presets import preset

    if preset_name is None:
        return make_plan(context.study, sources, options)
    chosen = preset(preset_name)
    if not dry_run:
        return preset_plan(chosen, context.study, sources, options)
    if not context.study_path.exists():
        return nominal_plan(chosen, sources, options, why=f"there is no {context.study_path}")
    try:
        return preset_plan(chosen, context.study, sources, options)
    except UsageError as error:
        return nominal_plan(chosen, sources, options, why=str(error))


def _recommended(
    context: StudyContext, file: Path, preset_name: str | None, sources: Sources, options: PlanOptions
) -> Plan:
    from orchestrator.results.recommend.from_recommendation import recommended_plan

    given = {
        "--preset": preset_name,
        "--pairs": options.pairs,
        "--complementarity-pairs": options.complementarity_pairs,
        "--controls": options.controls or None,
        "--seeds": options.seeds,
        "--grid": options.grid or None,
    }
    for flag in (flag for flag, value in given.items() if value is not None):
        raise UsageError(f"{flag} and --from-recommendation: a recommendation has its own pairs; omit one")
    return recommended_plan(file, context.study, sources, context.store())


@contextmanager
def _sources(context: StudyContext) -> Iterator[Sources]:
    from orchestrator.planning import Sources
    from orchestrator.planning.lookups import Lookups
    from orchestrator.planning.model_records import FileDigests

    lookups = Lookups(lambda: _store_if_any(context), context.paths)
    with tempfile.TemporaryDirectory(prefix="kt-study-") as scratch, shown("scanning", "samples") as advance:
        scanned = 0

        def show_scanned(count: int) -> None:
            nonlocal scanned
            advance("", count - scanned)
            scanned = count

        yield Sources(
            folder=context.folder,
            scratch=Path(scratch),
            accuracies=lookups.accuracies,
            recorded=lookups.recorded,
            acc_after=lookups.acc_after,
            progress=show_scanned,
            digests=FileDigests(context.paths.cache / "digests.json"),
        )


def _pairs_or_all(text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if not text.isdigit():
        raise UsageError(f"--complementarity-pairs {text}: give a whole number or all")
    return int(text)


def _number_or_list(text: str | None) -> int | list[int] | None:
    """`3` as a number of replicates, `0,7` as their seeds."""
    if text is None:
        return None
    parts = text.rstrip(",").split(",")
    if not all(part.strip().isdigit() for part in parts) or text.strip() == "0":
        raise UsageError(f"--seeds {text}: give a number from 1, or seeds as in 0,7,9")
    return [int(part) for part in parts] if "," in text else int(text)


def _grid_axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """`lr=1e-3,1e-4` as ("lr", (0.001, 0.0001)), checked as in the study file."""
    name, _, values = text.partition("=")
    types = {field.name: field.type for field in msgspec.structs.fields(TransferSection)}
    known = [key for key in types if key in SETTINGS and key not in _NO_AXES]
    if name not in known or not values:
        hint = nearest(name, known) if name not in known else ""
        raise UsageError(f"--grid {text}: give KEY=V1,V2 with a key of [transfer]{hint} (there are {', '.join(known)})")
    try:
        axis = [msgspec.convert(value, types[name], strict=False) for value in values.split(",")]
    except msgspec.ValidationError as error:
        reason = readable(str(error).replace(" | null", ""), types[name])
        raise UsageError(f"--grid {text}: {reason}") from error
    if unusable := unusable_number(axis):
        raise UsageError(f"--grid {text}: {unusable}")
    return name, tuple(axis)


def _as_text(name: str, preset_name: str | None, cost: dict[str, Any], *, dry_run: bool) -> str:
    head = f"study {name}" if preset_name is None else f"study {name}, preset {preset_name}"
    lines = [f"{head}: {counted(cost['models'], 'model')}", *_data_lines(cost), *_pair_lines(cost)]
    lines.append("  jobs: " + ", ".join(f"{count:,} {kind}" for kind, count in cost["jobs"].items()))
    lines += _cost_lines(cost)
    lines += [f"  note: {printable(note)}" for note in cost["notes"]]
    if cost.get("unplanned"):
        lines.append(
            f"unfinished jobs of this study that are not in this plan any more: {cost['unplanned']:,}; "
            "`kt-study cancel --unplanned` cancels them"
        )
    lines.append(f"{_progress(cost)}; {'dry run: nothing written' if dry_run else _next_step(cost)}")
    return "\n".join(lines)


def _progress(cost: dict[str, Any]) -> str:
    """How many jobs are new and how many existed, and the states of the latter."""
    parts = [counted(cost["new"], "new job"), f"{cost['existing']:,} planned before"]
    if cost["linked"]:
        parts.append(f"{cost['linked']:,} shared with another study")
    if cost["done"]:
        parts.append("all done" if cost["done"] == _planned(cost) else f"{cost['done']:,} of them done")
    if cost["failed"]:
        parts.append(f"{cost['failed']:,} failed")
    return ", ".join(parts)


def _next_step(cost: dict[str, Any]) -> str:
    if cost["done"] == _planned(cost):
        return "next: kt-study collect"
    return f"next: kt-study {'launch' if cost['ready'] or cost['running'] else 'status'}"


def _cost_lines(cost: dict[str, Any]) -> Iterator[str]:
    if cost["done"] == _planned(cost):
        return
    what = "cost of the jobs that are not done" if cost["done"] else "cost"
    kept = f" and {size(cost['kept_bytes'])} of kept weights" if cost["kept_bytes"] else ""
    yield f"  {what}: {cost['forwards']:,} images forwarded once, {size(cost['cache_bytes'])} of logits cache{kept}"
    by_kind = ", ".join(f"{_hours(hours)} {kind}" for kind, hours in cost["gpu_hours_by_kind"].items())
    yield f"  about {_hours(cost['gpu_hours'])} GPU-hours (A100 class): {by_kind}"


def _planned(cost: dict[str, Any]) -> int:
    return sum(cost["jobs"].values())


def _data_lines(cost: dict[str, Any]) -> Iterator[str]:
    """How many images each split has, over how many classes, and what was left out."""
    for split in cost["data"]:
        fewest, most = split["fewest"], split["most"]
        per_class = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        classes = f", {counted(split['classes'], 'class', 'classes')} of {per_class}" if split["classes"] else ""
        yield f"  {split['split']} of {printable(split['dataset'])}: {counted(split['images'], 'image')}{classes}"
        for skipped in split["left_out"]:
            yield f"    left out: {skipped['count']:,} {skipped['why']}, first {printable(skipped['first'])}"


def _pair_lines(cost: dict[str, Any]) -> Iterator[str]:
    if cost["complementarity_pairs"]:
        pairs, models = cost["complementarity_pairs"], cost["complementarity_models"]
        yield f"  complementarity: {pairs:,} ordered pairs of {models} models"
    if cost["runs"]:
        by_objective = ", ".join(f"{count:,} {objective}" for objective, count in cost["pairs_by_objective"].items())
        yield f"  transfer: {cost['runs']:,} runs; pairs per objective: {by_objective}"


def _hours(hours: float) -> str:
    """Three significant digits are more than the precision of the estimate."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
