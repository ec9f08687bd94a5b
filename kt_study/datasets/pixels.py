"""Reads one image as 8-bit RGB, for every kind of data set.

Pillow converts colour of any depth, and greyscale of up to 8 bits, as expected. Greyscale of more bits it clips at 255. Such an
image is reduced to its upper 8 bits here, as Pillow does with colour of 16 bits.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2


def read_rgb(source: Path | io.BytesIO, name: str) -> Image.Image:
    """Read an image as RGB, its first frame where it has several.

    Args:
        source: a file, or its content.
        name: of the image, for errors.

    Raises:
        DataError: missing, truncated, not an image, or of values whose range is unknown.
    """
    from PIL import Image

    try:
        with Image.open(source) as image:
            return as_rgb(image, name)
    except FileNotFoundError as error:
        raise DataError(
            f"{name}: this image is missing since the study was planned; restore it or plan again"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: unreadable image ({reason}); fix or remove it and plan again") from error


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """An opened image as RGB. Raises DataError naming the image and its mode, and what Pillow raises of a damaged one."""
    if image.mode == "F":
        raise DataError(
            f"{name}: mode F, floating-point values whose range is unknown; save it as integers of 8 or 16 bits and plan again"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _upper_bits(image, name).convert("RGB")
    return image.convert("RGB")


def _upper_bits(image: Image.Image, name: str) -> Image.Image:
    """Greyscale of more than 8 bits in mode L. Raises DataError where the values do not use the range of the format."""
    import numpy as np
    from PIL import Image

    bits = _bits(image)
    values = np.asarray(image)
    if bits == 32:
        values = values.view(np.uint32)  # Pillow reads unsigned values as signed ones
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or 0 < highest < 1 << (bits - 8):
        what = "has values below 0" if lowest < 0 else "would be black with 8 bits"
        raise DataError(
            f"{name}: mode {image.mode}, integers up to {2**bits - 1:,}, but its values are {lowest:,} to {highest:,} and it "
            f"{what}; save it with 8 bits, or scaled to the full range, and plan again"
        )
    grey = (values >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(~grey if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO else grey)


def _bits(image: Image.Image) -> int:
    """Bits that hold a pixel, without the sign. Where the format does not say, those of Pillow's mode."""
    stored = _tag(image, _BITS_PER_SAMPLE)
    if stored is not None:
        return int(stored) - int(_tag(image, _SAMPLE_FORMAT) == _SIGNED)
    if image.mode != "I" or image.format in ("PNG", "PPM"):  # PPM is scaled to 16 bits by Pillow, whatever its maximum
        return 16
    return 31


def _tag(image: Image.Image, number: int) -> Any:
    """A number among the tags of a TIFF, of the first channel; None where it is missing, or for other formats."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value
