"""Nodes that a launch excludes: those whose check failed, or on which pilots died repeatedly, in the last day."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from kt_study.pilots import LaunchFiles
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.records import LaunchRecord
from orchestrator.cluster.slurm.endings import BadNode, bad_nodes, is_unrelated_to_node
from orchestrator.cluster.slurm.view import SlurmView

EXCLUDED_FOR_S = 24 * 3600.0
"""An excluded node cannot show that it works again, so its failures are forgotten after a day."""


def nodes_to_exclude(
    files: LaunchFiles, launches: Sequence[LaunchRecord], view: SlurmView, *, on_gpu: bool
) -> list[BadNode]:
    """Nodes that the next launch excludes, of all partitions, and why; sorted by name.

    Args:
        files: of the study folder, with the probes of its pilots.
        launches: earlier launches of the study.
        view: their jobs in Slurm.
        on_gpu: whether the next launch needs GPUs. Failures on the other device do not count.
    """
    since = time.time() - EXCLUDED_FOR_S
    launches = [record for record in launches if record.on_gpu == on_gpu]
    tokens = {record.token for record in launches}
    runs = [run for run in view.runs if run.ended_at >= since and run.token in tokens]
    unrelated = {run.job for run in runs if is_unrelated_to_node(run)}
    probes = records.probes(files, records.recent(launches), since=since)
    failed = records.failed_nodes([probe for probe in probes if probe.slurm_job not in unrelated])
    return bad_nodes(runs, failed, root=str(files.root), python=sys.executable)
