"""Cached forward passes: one folder for each (model, split, view), made once, whoever asks."""

from worker.logits.cache import LogitsCache
from worker.logits.entry import CachedLogits

__all__ = ["CachedLogits", "LogitsCache"]
