"""doctor: checks everything that a study needs, on this machine and on a compute node; one line each, with the fix."""

from __future__ import annotations

from orchestrator.cluster.doctor.examine import examine, examine_as_pilot
from orchestrator.cluster.doctor.findings import Finding, Verdict, as_text
from orchestrator.cluster.doctor.node import NodeRequest, examine_node

__all__ = ["Finding", "NodeRequest", "Verdict", "as_text", "examine", "examine_as_pilot", "examine_node"]
