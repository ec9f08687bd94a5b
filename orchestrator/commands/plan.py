"""kt-study plan"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec

from kt_study.errors import UsageError
from kt_study.paths import StudyPaths
from kt_study.words import Settings
from orchestrator.surroundings import Surroundings, with_surroundings


@click.command()
@with_surroundings
@click.option("--pairs", type=click.IntRange(min=0), help="Transfer pairs for each objective; 0 plans no transfers.")
@click.option("--complementarity-pairs", metavar="N|all", help="Ordered pairs to compare, or all of them as one file.")
@click.option("--grid", multiple=True, metavar="KEY=V1,V2", help="A search: every combination of the values given.")
@click.option("--dry-run", is_flag=True, help="Show what would be planned and what it would cost; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(
    here: Surroundings,
    pairs: int | None,
    complementarity_pairs: str | None,
    grid: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Sample the pairs and fill the job table. Planning twice adds nothing.

    \b
    kt-study plan                      466 complementarity pairs and 400 transfer pairs for each objective
    kt-study plan --pairs 40 --complementarity-pairs all
    kt-study plan --grid lr=1e-3,1e-4 --grid temperature=0.1,1,10
    kt-study plan --dry-run            jobs by kind, models, forwards, cache bytes, GPU-hours
    """
    from orchestrator.cost import plan_cost
    from orchestrator.plan import Wishes, make_plan, write_plan

    wishes = Wishes(
        pairs=pairs, complementarity_pairs=_pairs_or_all(complementarity_pairs), grid=dict(map(_grid_axis, grid))
    )
    with tempfile.TemporaryDirectory() as scratch:
        paths = StudyPaths(root=Path(scratch)) if dry_run else here.paths
        plan = make_plan(here.study, folder=here.folder, paths=paths, wishes=wishes)
    cost = msgspec.to_builtins(plan_cost(plan))
    if not dry_run:
        store = here.store(create=True)
        written = write_plan(plan, store)
        cost |= {"new": written.new, "linked": written.linked, "existing": written.existing}
    for note in plan.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(cost) if as_json else _as_text(here.name, cost))


def _pairs_or_all(text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if not text.isdigit():
        raise UsageError(f"--complementarity-pairs {text}: give a whole number or all")
    return int(text)


def _grid_axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """`lr=1e-3,1e-4` as ("lr", (0.001, 0.0001)), checked against the settings of a transfer."""
    name, _, values = text.partition("=")
    if name not in Settings.__struct_fields__ or not values:
        raise UsageError(
            f"--grid {text}: give KEY=V1,V2 with a key of [transfer]: {', '.join(Settings.__struct_fields__)}"
        )
    types = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    try:
        return name, tuple(msgspec.convert(value, types[name], strict=False) for value in values.split(","))
    except msgspec.ValidationError as error:
        raise UsageError(f"--grid {text}: {error}") from error


def _as_text(name: str, cost: dict[str, Any]) -> str:
    lines = [f"study {name}: {cost['models']} models"]
    if cost["complementarity_pairs"]:
        lines.append(
            f"  complementarity: {cost['complementarity_pairs']:,} ordered pairs "
            f"of {cost['complementarity_models']} models"
        )
    if cost["transfers"]:
        lines.append(
            f"  transfer: {cost['transfers']:,} runs ({cost['transfer_pairs']} pairs, {cost['objectives']} objectives)"
        )
    lines.append("  jobs: " + ", ".join(f"{count:,} {kind}" for kind, count in cost["jobs"].items()))
    lines.append(
        f"  cost: {cost['forwards']:,} pictures forwarded once, {_bytes(cost['cache_bytes'])} of logits cache, "
        f"about {cost['gpu_hours']:,} GPU-hours"
    )
    if "new" in cost:
        lines.append(f"{cost['new']} new jobs, {cost['existing']} planned before; next: kt-study launch")
    else:
        lines.append("dry run: nothing written")
    return "\n".join(lines)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    raise AssertionError
