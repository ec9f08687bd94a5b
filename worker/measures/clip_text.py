"""Class similarity from CLIP ViT-B/32 text embeddings of the class names, as in the paper (Section 3)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from worker.measures.arrays import Floats
from worker.measures.embeddings import cosine_similarity
from worker.measures.similarity_settings import SimilaritySettings, Unavailable
from worker.measures.wordnet import readable_names

_ARCHITECTURE = "ViT-B-32-quickgelu"  # OpenAI's weights were trained with QuickGELU
_CACHED = ("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")  # where open_clip keeps them
_BATCH = 256


def text_similarity(classes: Sequence[str], settings: SimilaritySettings) -> Floats:
    """float64[C, C]: cosines of CLIP's text embeddings of the bare class names, as the released code embeds them.

    Raises:
        Unavailable: open_clip or its weights are not on this machine, or a class has no readable name.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise Unavailable("open_clip is not installed; pip install open-clip-torch")
    weights = _local_weights(settings)
    names = readable_names(classes, settings)
    import open_clip  # takes seconds, so only after its weights were found
    import torch

    model = open_clip.create_model(_ARCHITECTURE, pretrained=str(weights), device="cpu").eval()
    tokens = open_clip.get_tokenizer(_ARCHITECTURE)(names)
    with torch.inference_mode():
        vectors = torch.cat([model.encode_text(part) for part in tokens.split(_BATCH)])
    return cosine_similarity(vectors.float().numpy())


def _local_weights(settings: SimilaritySettings) -> Path:
    """The checkpoint of the settings, or the one in the caches of open_clip and Hugging Face. Raises Unavailable."""
    if settings.clip_weights:
        path = Path(settings.clip_weights)
        if not path.is_file():
            raise Unavailable(f"no CLIP weights at {path}")
        return path
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(*_CACHED)
    if isinstance(cached, str):
        return Path(cached)
    path = Path.home() / ".cache" / "clip" / "ViT-B-32.pt"
    if path.is_file():
        return path
    raise Unavailable("no CLIP ViT-B/32 weights in the caches; set clip_weights to an open_clip checkpoint")
