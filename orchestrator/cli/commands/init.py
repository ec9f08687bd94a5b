"""kt-study init"""

from __future__ import annotations

import os
from pathlib import Path

import click

from kt_study.errors import UsageError
from kt_study.files import write_text
from orchestrator.planning.templates import digits_study, imagenet_study


@click.command()
@click.option(
    "--imagenet", type=click.Path(path_type=Path), help="Write the paper's study for the ImageNet data in this folder."
)
@click.option("--study", "study_path", type=click.Path(path_type=Path), default="study.toml", help="File to write.")
def command(imagenet: Path | None, study_path: Path) -> None:
    """Write a commented study.toml: the embedded digits zoo, or the paper's study with --imagenet.

    \b
    Examples:
      kt-study init
      kt-study init --imagenet /data/imagenet
    """
    if os.path.lexists(study_path):
        raise UsageError(f"{study_path} exists; remove it first, or name another file with --study")
    write_text(study_path, imagenet_study(imagenet) if imagenet else digits_study())
    click.echo(f"wrote {study_path}; next: kt-study plan --dry-run")
