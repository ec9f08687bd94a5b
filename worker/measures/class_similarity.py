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
    """`matrix` is float64[C, C], symmetric, `on_grid`; `name` says what measured it, for the column `similarity`."""

    matrix: Floats
    name: str


def class_similarity(classes: Sequence[str], settings: SimilaritySettings | None = None) -> ClassSimilarity | None:
    """The similarity of classes from the first provider that can give one, or from the one that is asked for.

    A file of embeddings is used before anything else: it is there because the user said so. Then CLIP's text embeddings
    as in the paper, WordNet, and a sentence model. Nothing is ever downloaded.

    Args:
        classes: names of the classes in label order: WordNet ids such as n01440764, or words.
        settings: which provider to use and where its files are.

    Returns:
        None if no provider can give one and none was asked for by name.

    Raises:
        UsageError: the provider asked for does not exist or is unavailable, or a file does not fit.
    """
    settings = settings or SimilaritySettings()
    if settings.provider == "none":
        return None
    if settings.provider != "auto":
        return _asked_for(classes, settings)
    for name, provider in PROVIDERS.items():
        try:
            return _checked(name, provider(classes, settings))
        except Unavailable:
            continue
    return None


def _asked_for(classes: Sequence[str], settings: SimilaritySettings) -> ClassSimilarity:
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
