"""Which nodes a launch keeps away from: those that pilots found unfit, or on which they keep dying, of late."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from kt_study.pilots import LaunchFiles, ProbeExit
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.records import LaunchRecord
from orchestrator.cluster.slurm.endings import BadNode, bad_nodes
from orchestrator.cluster.slurm.view import SlurmView

FORGIVEN_AFTER_S = 24 * 3600.0
"""A node that is left out gets no chance to do better: what it did is forgotten after a day."""


def nodes_to_avoid(files: LaunchFiles, launches: Sequence[LaunchRecord], view: SlurmView) -> list[BadNode]:
    """Nodes that the next launch keeps away from, of all partitions, and why; sorted by name."""
    since = time.time() - FORGIVEN_AFTER_S
    runs = [run for run in view.runs if run.ended_at >= since]
    without_database = {run.job for run in runs if run.exit_code == ProbeExit.NO_DATABASE}
    probes = records.probes(files, records.latest(launches), since=since)
    said = records.unfit_nodes([probe for probe in probes if probe.slurm_job not in without_database])
    return bad_nodes(runs, said, root=str(files.root), python=sys.executable)
