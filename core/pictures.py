"""Pictures: the one place that opens them, bounds them and encodes them."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .files import InputError
from .reading import VARIABLES, limits, regular_size

log = logging.getLogger(__name__)

#: What Pillow may open, whatever a file is called. Left out is what starts other programs (EPS) or reads other files. TGA,
#: which has no mark of its own, comes last.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "DDS", "PPM", "TGA")
MAX_TEXTURE_SIDE = 4096  # larger textures are reduced at reading


def open_picture(source: str | os.PathLike[str] | bytes, name: str = "") -> Image.Image:
    """A picture with only its header read: of a path, or of a file's bytes.

    Args:
        name: for messages; the path where there is one.

    Raises:
        InputError: for a missing file, what is no regular file, no picture, or a picture of another kind than :data:`FORMATS`.
        Image.DecompressionBombError: for far too many pixels.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "picture")
    if not isinstance(source, bytes):
        regular_size(source, "picture")
    try:
        return Image.open(BytesIO(source) if isinstance(source, bytes) else Path(source), formats=_formats())
    except Image.DecompressionBombError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, TypeError, MemoryError):  # plug-ins on damaged headers
        raise InputError(f"{name}: not a picture that can be read, convert it to PNG") from None


@cache
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def decode_texture(image: Image.Image, name: str) -> Tensor:  # (h, w, 4)
    """The pixels in [0, 1], reduced where they are more than :data:`MAX_TEXTURE_SIDE` a side.

    Raises:
        InputError: for a damaged picture.
    """
    shrink = -(-max(image.size) // MAX_TEXTURE_SIDE)
    try:
        image = _eight_bits(image).convert("RGBA")
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, zlib.error) as error:
        raise InputError(f"{name}: a texture is damaged ({' '.join(str(error).split())}), export it again") from None
    if shrink > 1:
        log.info("%s: texture of %dx%d reduced %d times", name, *image.size, shrink)
        image = image.reduce(shrink)
    return torch.from_numpy(np.array(image)).float() / 255


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16-bit grey with its values scaled, which conversions clip."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))


def encode_picture(picture: Tensor) -> bytes:  # (h, w, 4) sRGB in [0, 1]
    """A texture as a PNG file, or as a JPEG file where it is opaque and larger than a megapixel."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().cpu().numpy()
    image = Image.fromarray(pixels)
    opaque = bool((pixels[..., 3] == 255).all())
    file = BytesIO()
    if opaque and image.width * image.height > 1 << 20:
        image.convert("RGB").save(file, "JPEG", quality=95, subsampling=0)
    else:
        (image.convert("RGB") if opaque else image).save(file, "PNG")
    return file.getvalue()


class PictureBudget:
    """Opens the pictures that one file brings and counts their pixels against the budget of :mod:`.reading`."""

    def __init__(self) -> None:
        self.pixels = 0
        self.most = limits().pixels

    def open(self, data: bytes, name: str, owner: str) -> Image.Image:
        """The picture with only its header read.

        Args:
            name: of the picture, and ``owner`` the file that brings it: for messages.

        Raises:
            InputError: for what is no picture, or too many pixels.
        """
        try:
            image = open_picture(data)
            self.pixels += image.width * image.height
            if self.pixels <= self.most:
                return image
        except Image.DecompressionBombError:
            pass
        except InputError:
            raise InputError(f"{owner}: texture {name} is not a picture that can be read, convert it to PNG") from None
        raise InputError(
            f"{owner}: texture {name} exceeds the {self.most / 1e6:.3g} million pixels a mesh may have, reduce it or raise "
            f"{VARIABLES['pixels'][0]}"
        )
