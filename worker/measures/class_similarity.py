"""Similarity of two classes of a data set, from several providers that are tried in order.

A provider is a function of (class names, settings) that returns a symmetric float64[C, C], or raises `Unavailable` with
the reason. A new one is a module and a line in PROVIDERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from kt_study.errors import UsageError
from worker.measures import clip_text, embeddings, sentence_model, wordnet
from worker.measures.arrays import Floats
from worker.measures.similarity import check_similarity, on_grid
from worker.measures.similarity_settings import SimilaritySettings, Unavailable

Provider = Callable[[Sequence[str], SimilaritySettings], Floats]

PROVIDERS: Mapping[str, Provider] = {
    "embeddings": embeddings.from_file,
    "clip": clip_text.text_similarity,
    "wordnet": wordnet.path_similarity,
    "sentence-model": sentence_model.name_similarity,
}


class ClassSimilarity(msgspec.Struct, frozen=True, kw_only=True):
    """`matrix` is float64[C, C], symmetric, `on_grid`; `name` is its provider, for the column `similarity`."""

    matrix: Floats
    name: str


def class_similarity(classes: Sequence[str], settings: SimilaritySettings | None = None) -> ClassSimilarity | None:
    """The similarity of classes from the first available provider, or from the one in the settings.

    The user's file of embeddings comes first, then CLIP's text embeddings as in the paper, WordNet, and a sentence model.
    Nothing is downloaded.

    Args:
        classes: names of the classes in label order: WordNet ids such as n01440764, or words.
        settings: which provider to use and where its files are.

    Returns:
        None under `none`, and under `auto` if no provider is available.

    Raises:
        UsageError: the provider in the settings does not exist or is unavailable, or a file does not fit.
    """
    settings = settings or SimilaritySettings()
    if settings.provider == "none":
        return None
    if settings.provider != "auto":
        return _from_provider(classes, settings)
    for name, provider in PROVIDERS.items():
        try:
            return _checked(name, provider(classes, settings))
        except Unavailable:
            continue
    return None


def _from_provider(classes: Sequence[str], settings: SimilaritySettings) -> ClassSimilarity:
    provider = PROVIDERS.get(settings.provider)
    if provider is None:
        raise UsageError(f"no class similarity {settings.provider!r}; choose auto, none, {', '.join(PROVIDERS)}")
    try:
        return _checked(settings.provider, provider(classes, settings))
    except Unavailable as reason:
        raise UsageError(f"class similarity {settings.provider!r} cannot be used: {reason}") from reason


def _checked(name: str, matrix: Floats) -> ClassSimilarity:
    check_similarity(matrix, len(matrix))
    return ClassSimilarity(matrix=on_grid(matrix), name=name)
