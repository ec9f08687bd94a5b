"""kt-study export"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kt_study.errors import UsageError
from orchestrator.cli import completion
from orchestrator.terminal.study_context import StudyContext, with_study_context


@click.command()
@with_study_context
@click.option("--student", metavar="NAME", shell_complete=completion.models, help="The student model.")
@click.option(
    "--teacher",
    metavar="NAME",
    shell_complete=completion.models,
    help="The teacher model; for several, A+B as in the result rows.",
)
@click.option(
    "--objective", metavar="NAME", shell_complete=completion.objectives, help="Only transfers with this objective."
)
@click.option("--seed", type=int, help="Only transfers with this seed.")
@click.option("--job", type=int, metavar="N", help="The transfer with this job number.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Output folder; must be new or empty.")
def command(
    context: StudyContext,
    student: str | None,
    teacher: str | None,
    objective: str | None,
    seed: int | None,
    job: int | None,
    out: Path,
) -> None:
    """Export a transferred student for timm, with a model card. Needs keep = "all" or "best" in [transfer].

    \b
    Examples:
      kt-study export --student resnet18 --teacher vit_base --out my-resnet18
      kt-study export --student resnet18 --teacher vit_base --objective kl_dp --seed 1 --out my-resnet18
      kt-study export --job 812 --out my-resnet18
      python -c 'import timm; timm.create_model("local-dir:my-resnet18", pretrained=True)'
    """
    from orchestrator.results.export import Wanted, choose, export_student
    from orchestrator.results.export.folder import check_empty

    if job is None and (student is None or teacher is None):
        raise UsageError("export needs --student and --teacher, or --job")
    check_empty(out)
    wanted = Wanted(student=student, teacher=teacher, objective=objective, seed=seed, job=job)
    store = context.store()
    chosen = choose(store, context.name, context.paths, wanted)
    exported = export_student(chosen, store, context.name, context.paths, out)
    click.echo(f"{exported.folder}: {_description(chosen.row)}")
    for note in exported.notes:
        click.echo(f"  note: {note}")
    if exported.by_timm:
        click.echo(f'  load: timm.create_model("local-dir:{exported.folder}", pretrained=True)')


def _description(row: dict[str, Any]) -> str:
    what = f"{row['student']} taught by {row['teacher']}, {row['objective']}, job {row['job_id']}"
    if row["acc_after"] is None:
        return what
    interval = f"{row['delta_transf_low']:+.2f} to {row['delta_transf_high']:+.2f}"
    change = f"{row['delta_transf']:+.2f} points, {interval}"
    return f"{what}: {row['acc_before']:.2f} % before, {row['acc_after']:.2f} % after ({change})"
