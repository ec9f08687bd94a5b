"""kt-study doctor"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from orchestrator.cluster.launch.options import device_option, with_slurm_options
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
@device_option
@click.option("--on-node", type=click.Path(path_type=Path), hidden=True, help="Used internally on a compute node.")
@click.pass_context
def command(
    ctx: click.Context,
    context: StudyContext,
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

    findings = examine_as_pilot(on_node) if on_node else examine(context)
    if profile is not None or flags or node:
        findings += _on_a_node(context, findings, profile, flags, node=node, patience_s=patience, device=device)
    click.echo(json.dumps([msgspec.to_builtins(finding) for finding in findings]) if as_json else as_text(findings))
    ctx.exit(3 if any(finding.verdict == "wrong" for finding in findings) else 0)


def _on_a_node(
    context: StudyContext,
    findings: list[Finding],
    profile: Path | None,
    flags: dict[str, Any],
    *,
    node: str,
    patience_s: float,
    device: str,
) -> list[Finding]:
    """Check one node of a partition; an error of the cluster is a finding too. Raises UsageError."""
    from kt_study.errors import EnvironmentUnusable, StudyFileError
    from orchestrator.cluster.doctor import NodeRequest, examine_node
    from orchestrator.cluster.doctor.findings import note, wrong
    from orchestrator.cluster.launch.request import completed_request, read_request
    from orchestrator.cluster.slurm.cluster import read_cluster

    request = read_request(profile, flags)
    if any(finding.what == "slurm" and finding.verdict == "wrong" for finding in findings):
        return [note("node", "not checked, since Slurm does not answer here")]
    try:
        target = NodeRequest(
            request=completed_request(request, read_cluster(), device), node=node, patience_s=patience_s
        )
        return examine_node(context.folder, context.database_url, target, findings)
    except (EnvironmentUnusable, StudyFileError) as error:
        return [wrong("node", str(error))]
