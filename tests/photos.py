"""Where the 200 ImageNet photographs lie that some tests look at; the project itself ships none."""

from __future__ import annotations

import os
from pathlib import Path

from tests.require import require


def photos_dir() -> Path:
    """An image folder named by WordNet ids: KT_STUDY_PHOTOS, else shared/data/photos beside the checkout."""
    root = Path(__file__).resolve().parent.parent
    found = Path(os.environ.get("KT_STUDY_PHOTOS") or root.parent / "shared" / "data" / "photos")
    require("photos", found.is_dir(), f"no photographs at {found}; set KT_STUDY_PHOTOS to an ImageNet image folder")
    return found
