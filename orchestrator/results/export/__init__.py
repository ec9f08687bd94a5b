"""export: a transferred student as a folder that timm loads, with a model card."""

from __future__ import annotations

from orchestrator.results.export.folder import Exported, export_student
from orchestrator.results.export.selection import SelectedTransfer, TransferFilter, select_transfer

__all__ = ["Exported", "SelectedTransfer", "TransferFilter", "export_student", "select_transfer"]
