"""kt-study recommend"""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import completion
from orchestrator.terminal.study_context import StudyContext, with_study_context


@click.command()
@with_study_context
@click.option("--student", required=True, metavar="NAME", shell_complete=completion.models, help="The student model.")
@click.option("--classes", default="", metavar="A,B", help="Rank by what teachers know about these classes.")
@click.option(
    "--objective", default="kl_dp", show_default=True, shell_complete=completion.objectives, help="Transfer objective."
)
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Number of teachers.")
@click.option("--unmeasured", is_flag=True, help="Omit teachers whose transfer was measured.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the ranking to a file for `plan`.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(
    context: StudyContext,
    student: str,
    classes: str,
    objective: str,
    top: int,
    unmeasured: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Rank teachers for a student, by measured or predicted delta_transf, or by what they know about some classes.

    \b
    Examples:
      kt-study recommend --student resnet18
      kt-study recommend --student resnet18 --classes golden_retriever,tabby --top 5
      kt-study recommend --student resnet18 --unmeasured --out recommendation.json
      kt-study plan --from-recommendation  # plans the teachers of recommendation.json
    """
    from kt_study.files import write_bytes
    from orchestrator.planning import Sources
    from orchestrator.planning.model_records import FileDigests
    from orchestrator.results.recommend.advice import Question, recommend
    from orchestrator.results.recommend.record import as_json as encoded
    from orchestrator.results.recommend.record import require_ours
    from orchestrator.results.recommend.text import as_text

    if out is not None:
        require_ours(out)
    question = Question(student=student, objective=objective, classes=classes, top=top, unmeasured=unmeasured)
    cache = context.paths.cache
    sources = Sources(folder=context.folder, scratch=cache, digests=FileDigests(cache / "digests.json"))
    advice = recommend(context.database_url, context.study, sources, question)
    click.echo(encoded(advice) if as_json else as_text(advice), nl=not as_json)
    if out is not None:
        write_bytes(out, encoded(advice))
        if not as_json:
            click.echo(f"written to {out}; kt-study plan --from-recommendation {out} plans it")
