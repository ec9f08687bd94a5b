"""Class similarity from embeddings of the classes, one row per class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kt_study.errors import DataError
from worker.measures.arrays import Floats
from worker.measures.similarity_settings import SimilaritySettings, Unavailable


def cosine_similarity(embeddings: Floats) -> Floats:
    """float64[C, C]: cosines of the rows of `embeddings`, float[C, D]; exactly symmetric.

    Raises:
        DataError: not a matrix, or a row that is zero or not finite.
    """
    if embeddings.ndim != 2:
        raise DataError(f"class embeddings have shape {embeddings.shape}, expected one row per class")
    rows = embeddings.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise DataError("a row of the class embeddings is zero or not finite; every class needs a direction")
    rows /= lengths
    products: Floats = rows @ rows.T
    return (products + products.T) / 2


def from_file(classes: Sequence[str], settings: SimilaritySettings) -> Floats:
    """Cosines of the embeddings in the user's .npy file.

    Raises:
        Unavailable: no file is set.
        DataError: the file is missing or unreadable, or has another number of rows than classes.
    """
    path = settings.class_embeddings
    if not path:
        raise Unavailable("no class_embeddings file is set")
    try:
        embeddings = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read class_embeddings {path}: {error}") from error
    if embeddings.ndim != 2 or len(embeddings) != len(classes):
        shape = embeddings.shape
        raise DataError(f"class_embeddings {path} has shape {shape} for {len(classes)} classes; give one row per class")
    return cosine_similarity(embeddings)
