"""Settings of the class similarity, and the error of a provider that is not available."""

from __future__ import annotations

from kt_study.records import Record

SIMILARITY_FILES = ("class_embeddings", "clip_weights", "wordnet")
"""The settings that are paths, as the study file and a data set's location name them."""


class Unavailable(Exception):
    """A provider lacks its files or packages; the next one is tried."""


class SimilaritySettings(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Which source to use for the similarity of classes, and where its files are. Paths are absolute."""

    provider: str = "auto"  # auto | none | embeddings | clip | wordnet | sentence-model
    class_embeddings: str = ""  # .npy, float[C, D], one row per class in label order
    clip_weights: str = ""  # open_clip checkpoint of ViT-B/32; empty to search the usual caches
    wordnet: str = "/usr/share/wordnet"  # folder of WordNet's data.noun and index.noun (Debian: wordnet-base)
