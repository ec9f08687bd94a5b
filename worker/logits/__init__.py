"""The logits cache: one folder for each (model, split, view), computed once for all jobs."""

from worker.logits.cache import LogitsCache
from worker.logits.entry import CachedLogits

__all__ = ["CachedLogits", "LogitsCache"]
