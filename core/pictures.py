"""Pictures: the one place that opens them, bounds them, decodes and encodes them."""

from __future__ import annotations

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .files import InputError
from .reading import VARIABLES, limits, regular_size

log = logging.getLogger(__name__)

#: What Pillow may open, whatever a file is called: formats that it decodes by itself. EPS, for which it starts Ghostscript, is
#: none of them. TGA, which has no mark of its own, comes last.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "DDS", "PPM", "TGA")
#: The EXIF tag of a picture's orientation; values of 5 and more lie on their side.
ORIENTATION = 0x0112
MAX_TEXTURE_SIDE = 4096  # larger textures are reduced at reading


class TooLarge(InputError):
    """A picture of more pixels than may be decoded."""


def open_picture(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """A picture of one of :data:`FORMATS`, with only its header read. Decode it within :func:`readable`.

    Args:
        source: a path, or the file's content.
        name: for messages; the path itself where None.

    Raises:
        InputError: for what is no regular file, none of these formats, or larger than Pillow's own bound.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "picture")
    if not isinstance(source, bytes):
        regular_size(source, "picture")
    with readable(name):
        file = BytesIO(source) if isinstance(source, bytes) else Path(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below
            image = Image.open(file, formats=_formats())
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            image.close()
            raise Image.DecompressionBombError
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def readable(name: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever a decoder throws on a damaged or oversized picture, as one line that names it."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise TooLarge(f"{name}: the picture is too large to read safely, make it smaller") from None
    except Exception as error:  # decoders' errors share no base
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: not a readable picture, it is damaged or of another kind ({text})") from None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as the picture is seen."""
    width, height = image.size
    return (width, height) if image.getexif().get(ORIENTATION, 1) < 5 else (height, width)


def upright_pixels(image: Image.Image) -> np.ndarray:  # (H, W, 3 | 4) uint8
    """RGB or RGBA of a picture as it is seen; 16-bit grey is scaled to 8.

    Raises:
        ValueError: for grey values beyond 16 bits, or in floating point beyond 1; :func:`readable` names the picture.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.nan_to_num(np.asarray(image, np.float64))
        white = 1.0 if image.mode == "F" else 65535.0
        if grey.min() < 0 or grey.max() > white:
            raise ValueError(f"grey values from {grey.min():g} to {grey.max():g}, give 0 to {white:g}")
        return np.repeat(np.round(grey * (255 / white)).astype(np.uint8)[..., None], 3, -1)
    alpha = "A" in image.getbands() or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if alpha else "RGB"))


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
            image = open_picture(data, name)
        except TooLarge:
            image = None
        except InputError:
            raise InputError(f"{owner}: texture {name} is not a picture that can be read, convert it to PNG") from None
        if image is not None:
            self.pixels += image.width * image.height
            if self.pixels <= self.most:
                return image
        raise InputError(
            f"{owner}: texture {name} exceeds the {self.most / 1e6:.3g} million pixels a mesh may have, reduce it or raise "
            f"{VARIABLES['pixels'][0]}"
        )
