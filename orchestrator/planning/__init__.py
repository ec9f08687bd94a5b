"""plan: from a study file, or one of the paper's presets, to jobs.

study file -> models (trained first if requested) -> pairs -> runs -> jobs, each after those that it needs
"""

from __future__ import annotations

from orchestrator.planning.cost import Cost, plan_cost
from orchestrator.planning.from_preset import nominal_plan, preset_plan
from orchestrator.planning.from_study import make_plan
from orchestrator.planning.record import Pair, Plan, PlanOptions, RecordedTransfer, Sources
from orchestrator.planning.write import foreseen, left_over, write_plan

__all__ = [
    "Cost",
    "Pair",
    "Plan",
    "PlanOptions",
    "RecordedTransfer",
    "Sources",
    "foreseen",
    "left_over",
    "make_plan",
    "nominal_plan",
    "plan_cost",
    "preset_plan",
    "write_plan",
]
