"""kt-study doctor"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from orchestrator.cluster.launch.options import with_slurm_options
from orchestrator.terminal.study_context import StudyContext, with_study_context

if TYPE_CHECKING:
    from orchestrator.cluster.doctor import Finding


@click.command()
@with_study_context
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@with_slurm_options
@click.option("--node", default="", metavar="NAME", help="With --partition: check this node instead of any node.")
@click.option(
    "--patience", type=float, default=60.0, show_default=True, help="Seconds to wait for a node to become free."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Device to run models on.")
@click.option("--on-node", type=click.Path(path_type=Path), hidden=True, help="Used internally on a compute node.")
@click.pass_context
def command(
    ctx: click.Context,
    here: StudyContext,
    as_json: bool,
    profile: Path | None,
    flags: dict[str, Any],
    node: str,
    patience: float,
    device: str,
    on_node: Path | None,
) -> None:
    """Check everything that a study needs, here and on a compute node; exit code 3 if something is wrong.

    \b
    Examples:
      kt-study doctor
      kt-study doctor --partition gpu
      kt-study doctor --profile slurm/example.toml --node node7
    """
    from orchestrator.cluster.doctor import as_text, examine, examine_as_pilot

    findings = examine_as_pilot(on_node) if on_node else examine(here)
    if profile is not None or any(value is not None for value in flags.values()) or node:
        findings += _on_a_node(here, findings, profile, flags, node=node, patience_s=patience, device=device)
    click.echo(json.dumps([msgspec.to_builtins(finding) for finding in findings]) if as_json else as_text(findings))
    ctx.exit(3 if any(finding.verdict == "wrong" for finding in findings) else 0)


def _on_a_node(
    here: StudyContext,
    findings: list[Finding],
    profile: Path | None,
    flags: dict[str, Any],
    *,
    node: str,
    patience_s: float,
    device: str,
) -> list[Finding]:
    """What one node of a partition has; a cluster that refuses is a finding too. Raises UsageError."""
    from kt_study.errors import EnvironmentUnusable, StudyFileError
    from orchestrator.cluster.doctor import Finding, NodeRequest, examine_node
    from orchestrator.cluster.launch.request import fitted, read_request
    from orchestrator.cluster.slurm.cluster import look_at_cluster

    request = read_request(profile, flags)
    if any(finding.what == "slurm" and finding.verdict == "wrong" for finding in findings):
        return [Finding(what="node", verdict="note", found="not looked at, since Slurm does not answer here")]
    try:
        wish = NodeRequest(request=fitted(request, look_at_cluster(), device), node=node, patience_s=patience_s)
        return examine_node(here.folder, here.database_url, wish, findings)
    except (EnvironmentUnusable, StudyFileError) as error:
        return [Finding(what="node", verdict="wrong", found=str(error))]
