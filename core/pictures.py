"""Pictures inside other files: opened, bounded, encoded."""

from __future__ import annotations

import logging
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .files import InputError

log = logging.getLogger(__name__)

MAX_TEXTURE_PIXELS = 2**26  # all base colour textures together, as stored in the file
MAX_TEXTURE_SIDE = 4096  # larger textures are reduced at reading


def decode_texture(image: Image.Image, name: str) -> Tensor:  # (h, w, 4)
    shrink = -(-max(image.size) // MAX_TEXTURE_SIDE)
    try:
        image = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{name}: a texture is damaged ({error}), export it again") from error
    if shrink > 1:
        log.info("%s: texture of %dx%d reduced %d times", name, *image.size, shrink)
        image = image.reduce(shrink)
    return torch.from_numpy(np.array(image)).float() / 255


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
    """Opens the pictures that one file brings and counts their pixels against :data:`MAX_TEXTURE_PIXELS`."""

    def __init__(self) -> None:
        self.pixels = 0

    def open(self, data: bytes, name: str, owner: str) -> Image.Image:
        """The picture with only its header read.

        Args:
            name: of the picture, and ``owner`` the file that brings it: for messages.

        Raises:
            InputError: for what is no picture, or too many pixels.
        """
        try:
            image = Image.open(BytesIO(data))
            self.pixels += image.width * image.height
            if self.pixels <= MAX_TEXTURE_PIXELS:
                return image
        except Image.DecompressionBombError:
            pass
        except (OSError, ValueError, SyntaxError):
            raise InputError(f"{owner}: texture {name} is not a picture that can be read, convert it to PNG") from None
        raise InputError(
            f"{owner}: texture {name} exceeds the {MAX_TEXTURE_PIXELS >> 20} million pixels a mesh may have, reduce it"
        )
