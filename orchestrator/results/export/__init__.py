"""export: a transferred student as a folder that timm loads, with a model card."""

from __future__ import annotations

from orchestrator.results.export.choice import Chosen, Wanted, choose
from orchestrator.results.export.folder import Exported, export_student

__all__ = ["Chosen", "Exported", "Wanted", "choose", "export_student"]
