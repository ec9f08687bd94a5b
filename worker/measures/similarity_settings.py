"""Settings of the class similarity, and the reason a provider gives when it cannot be used here."""

from __future__ import annotations

from pathlib import Path

from kt_study.records import Record

SIMILARITY_FILES = ("class_embeddings", "clip_weights", "wordnet")
"""The settings that are paths, as the study file and a data set's location name them."""


class Unavailable(Exception):
    """A provider lacks its files or packages; the next one is tried."""


class SimilaritySettings(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Which source to use for the similarity of classes, and where its files are. Paths are absolute."""

    provider: str = "auto"  # auto | none | embeddings | clip | wordnet | sentence-model
    class_embeddings: str = ""  # .npy, float[C, D], one row per class in label order
    clip_weights: str = ""  # open_clip checkpoint of ViT-B/32; the usual caches are looked at when empty
    wordnet: str = "/usr/share/wordnet"  # folder of WordNet's data.noun and index.noun (Debian: wordnet-base)

    def embeddings_file(self) -> Path | None:
        """The user's file of embeddings, if there is one."""
        return Path(self.class_embeddings) if self.class_embeddings else None
