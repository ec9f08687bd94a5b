"""kind = "digits": the 1,797 handwritten digits of scikit-learn, in a zoo, a transfer and a validation part.

Source: UCI "Optical Recognition of Handwritten Digits", 8x8 scans of 17 grey levels.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kt_study.datasets.kind import ArrayImages, Found, Listing
from kt_study.datasets.subset import split_by_hash
from kt_study.errors import DataError
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = 32
"""Height and width, pixels, to which the 8x8 scans are enlarged (bicubic)."""

SHARES = {"zoo": 0.30, "train": 0.28, "val": 0.42}
"""Share of each digit's scans in each split: one trains the zoo, one is the transfer set, one measures."""


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """The three parts; always the same, whatever the study's seed. Raises DataError without scikit-learn."""
    import numpy as np

    _, labels = _scans()
    everything = Listing(
        names=[f"digit-{i:04d}" for i in range(len(labels))], labels=labels, sizes=np.full(len(labels), -1, np.int64)
    )
    progress(len(labels))
    return Found(
        listings=split_by_hash(everything, SHARES, "digits"),
        class_names=[str(digit) for digit in range(10)],
        options={"side": SIDE},
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> ArrayImages:  # noqa: ARG001
    """The named scans, enlarged: uint8 [n, 32, 32]."""
    numbers = [int(name.removeprefix("digit-")) for name in names]
    return ArrayImages(pixels=_enlarged()[numbers])


@functools.cache
def _scans() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Scans uint8 [1797, 8, 8] in 0..16 and labels int32 [1797]. scikit-learn is located and not imported."""
    import numpy as np

    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError('[dataset] kind = "digits" comes with scikit-learn, which is not installed')
    source = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(source, "rt", encoding="ascii") as stream:
        table: NDArray[np.float64] = np.loadtxt(stream, delimiter=",")
    return table[:, :64].astype(np.uint8).reshape(-1, 8, 8), table[:, 64].astype(np.int32)


@functools.cache
def _enlarged() -> NDArray[np.uint8]:
    """All scans, uint8 [1797, 32, 32]."""
    import numpy as np
    from PIL import Image

    grey = (_scans()[0].astype(np.uint16) * 255 // 16).astype(np.uint8)
    scans = (Image.fromarray(scan).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for scan in grey)
    return np.stack([np.asarray(scan) for scan in scans])
