"""Films, pictures and sheets of pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..files import atomic_path

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

#: Colours of a sheet: paper and ink.
PAPER, INK = (255, 255, 255), (40, 40, 40)
#: ITU-R BT.709, limited range: what every player assumes, and said in the file all the same.
BT709, LIMITED = 1, 1


def to_uint8(images: Tensor | np.ndarray) -> np.ndarray:
    """8-bit pixels: values in [0, 1] rounded to the nearest of 256, uint8 kept."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if array.dtype == np.uint8:
        return array
    return np.round(np.clip(np.nan_to_num(array), 0, 1) * 255).astype(np.uint8)


def write_mp4(
    path: str | os.PathLike[str],
    frames: Tensor | np.ndarray | Sequence[Any],  # (T, H, W, 3) in [0, 1] or uint8
    fps: float,
    *,
    loops: int = 1,
    quality: int = 16,
) -> None:
    """Write a film that plays everywhere: H.264, yuv420p, the index in front; MPEG-4 where the PyAV build lacks x264.

    Args:
        frames: opaque pictures; odd sizes grow by one pixel that repeats the edge.
        fps: frames a second.
        loops: how often the clip is repeated in the film.
        quality: constant rate factor, lower = better and larger.
    """
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    if codec == "mpeg4":
        log.warning("this PyAV build has no x264, %s is written as MPEG-4, which browsers do not play", path)
    height, width = frames[0].shape[:2]
    with atomic_path(path) as temporary:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            stream.options = {"crf": str(quality), "preset": "medium"} if codec == "libx264" else {}
            if codec == "mpeg4":
                stream.bit_rate = int(8 * fps * height * width)
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED
            for _ in range(loops):
                for frame in frames:
                    picture = np.pad(to_uint8(frame), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                    container.mux(stream.encode(rgb.reformat(format="yuv420p", dst_colorspace="itu709")))
            container.mux(stream.encode())


def write_png(path: str | os.PathLike[str], image: Tensor | np.ndarray) -> None:  # (H, W), (H, W, 3) or straight (H, W, 4)
    """Write one 8-bit picture."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(to_uint8(image)).save(temporary, format="PNG")


def write_frames(folder: str | os.PathLike[str], images: Tensor | np.ndarray | Sequence[Any]) -> list[Path]:
    """Write 000.png, 001.png, ... to a fresh folder that replaces one of the same name.

    Args:
        images: (T, H, W, 3), or straight-alpha (T, H, W, 4), in [0, 1] or uint8.

    Returns:
        The files' paths, in order.
    """
    from PIL import Image

    folder = Path(folder)
    names = [f"{i:03}.png" for i in range(len(images))]
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, image in zip(names, images):
            Image.fromarray(to_uint8(image)).save(temporary / name)
    return [folder / name for name in names]


def contact_sheet(
    rows: Sequence[Sequence[Tensor | np.ndarray]],  # each (H, W), (H, W, 3) or straight (H, W, 4)
    labels: Sequence[str] = (),
    *,
    columns: Sequence[str] = (),
    height: int | None = None,
    gap: int = 4,
) -> Image.Image:
    """Rows of pictures on white, with a label before each row and a heading over each column.

    Args:
        height: every row's pictures are drawn this high; their own height where None.
    """
    from PIL import Image, ImageDraw

    drawn = [[_on_paper(picture, height) for picture in row] for row in rows]
    font = _font(max(11, min(20, max(p.height for row in drawn for p in row) // 12)))
    titles = _font(_fitting(font.size, columns, [picture.width for picture in drawn[0]]))
    left = gap + max((round(font.getlength(label)) + 2 * gap for label in labels), default=0)
    line = round(font.getbbox("Ag")[3]) + 2 * gap
    width = left + max(sum(p.width + gap for p in row) for row in drawn)
    top = gap + (line if columns else 0)
    sheet = Image.new("RGB", (width, top + sum(max(p.height for p in row) + gap for row in drawn)), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = top
    for index, row in enumerate(drawn):
        x, tall = left, max(p.height for p in row)
        if index < len(labels):
            draw.text((gap, y + tall / 2), labels[index], fill=INK, font=font, anchor="lm")
        for column, picture in enumerate(row):
            sheet.paste(picture, (x, y))
            if index == 0 and column < len(columns):
                draw.text((x + picture.width / 2, top / 2), columns[column], fill=INK, font=titles, anchor="mm")
            x += picture.width + gap
        y += tall + gap
    return sheet


def side_by_side(
    panels: Mapping[str, Tensor | np.ndarray],  # each (T, H, W, 3) or straight (T, H, W, 4)
    *,
    height: int | None = None,
    gap: int = 4,
) -> np.ndarray:  # (T, H', W', 3) uint8
    """Frames of a film of labelled panels next to each other on white; a shorter panel holds its last frame.

    Args:
        height: panels are drawn this high; as high as the first where None.
    """
    first = next(iter(panels.values()))
    tall = first.shape[1] if height is None else height
    count = max(len(panel) for panel in panels.values())
    rows = [[panel[min(t, len(panel) - 1)] for panel in panels.values()] for t in range(count)]
    return np.stack([np.asarray(contact_sheet([row], columns=list(panels), height=tall, gap=gap)) for row in rows])


def _on_paper(picture: Tensor | np.ndarray, height: int | None) -> Image.Image:
    """RGB on white at the wanted height."""
    from PIL import Image

    image = Image.fromarray(to_uint8(picture))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*PAPER, 255)), image)
    image = image.convert("RGB")
    if height is None or height == image.height:
        return image
    return image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)


def _fitting(size: float, titles: Sequence[str], widths: Sequence[int]) -> float:
    """The largest font size up to ``size`` at which each title fits its width, but still legible."""
    needed = [_font(size).getlength(title) / width for title, width in zip(titles, widths)]
    return max(8.0, size / max([1.0, *needed]))


def _font(size: float) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
