"""kt-study data"""

from __future__ import annotations

import click

from orchestrator.terminal.progress import shown
from orchestrator.terminal.spans import size
from orchestrator.terminal.study_context import StudyContext, with_study_context


@click.group()
def command() -> None:
    """Prepare data for the fast loader.

    \b
    Examples:
      kt-study data prepare --max-side 400 --workers 8
    """


@command.command()
@with_study_context
@click.option("--split", type=click.Choice(["train", "val"]), default="train", show_default=True)
@click.option(
    "--max-side",
    type=click.IntRange(min=0),
    default=500,
    show_default=True,
    help="Longest side in pixels; 0 keeps the size.",
)
@click.option("--jpeg-quality", type=click.IntRange(1, 100), default=90, show_default=True)
@click.option(
    "--jpeg-share",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Share stored as JPEG; the rest is raw.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Threads that read and encode images."
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def prepare(
    context: StudyContext,
    split: str,
    max_side: int,
    jpeg_quality: int,
    jpeg_share: float,
    workers: int,
    as_json: bool,
) -> None:
    """Write a split as an ffcv file. An interrupted run is resumed.

    \b
    Examples:
      kt-study data prepare --max-side 400 --workers 8
    """
    import msgspec

    from worker.pilot.entry import prepare_data

    written = prepare_data(
        context.study,
        context.folder,
        split,
        shown,
        max_side=max_side,
        jpeg_quality=jpeg_quality,
        jpeg_share=jpeg_share,
        workers=workers,
    )
    if as_json:
        click.echo(msgspec.json.encode(written).decode())
        return
    click.echo(f"{written.n:,} images, {size(written.nbytes)}")
    if split == "train":
        click.echo(
            'kt-study plan now plans transfers with the ffcv loader, unless the study file says loader = "torch"'
        )
