"""Nodes that a launch excludes: those whose check failed, or on which pilots died repeatedly, in the last day."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from kt_study.pilots import LaunchFiles
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.records import LaunchRecord
from orchestrator.cluster.slurm.endings import BadNode, bad_nodes, is_nobodys_fault
from orchestrator.cluster.slurm.view import SlurmView

FORGIVEN_AFTER_S = 24 * 3600.0
"""A node that is left out gets no chance to do better: what it did is forgotten after a day."""


def nodes_to_avoid(
    files: LaunchFiles, launches: Sequence[LaunchRecord], view: SlurmView, *, on_gpu: bool
) -> list[BadNode]:
    """Nodes that the next launch keeps away from, of all partitions, and why; sorted by name.

    Args:
        files, launches, view: what earlier launches of the study left, and what Slurm says of them.
        on_gpu: whether the next launch needs GPUs. What pilots on the other device found says nothing of this one.
    """
    since = time.time() - FORGIVEN_AFTER_S
    launches = [record for record in launches if record.on_gpu == on_gpu]
    tokens = {record.token for record in launches}
    runs = [run for run in view.runs if run.ended_at >= since and run.token in tokens]
    excused = {run.job for run in runs if is_nobodys_fault(run)}
    probes = records.probes(files, records.latest(launches), since=since)
    said = records.unfit_nodes([probe for probe in probes if probe.slurm_job not in excused])
    return bad_nodes(runs, said, root=str(files.root), python=sys.executable)
