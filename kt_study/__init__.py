"""kt-study: measures what pretrained image classifiers know that others do not, and transfers it between them.

`kt_study.load("results/")` reads the parquet files of `kt-study collect` into typed pandas frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kt_study.loading import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from kt_study.loading import load

        return load
    raise AttributeError(f"module 'kt_study' has no attribute {name!r}")
