"""Films, pictures and sheets of pictures."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

from ..files import InputError, atomic_path
from ..progress import pulse

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

#: Colours of a sheet: paper and ink.
PAPER, INK = (255, 255, 255), (40, 40, 40)
#: ITU-R BT.709, limited range: what every player assumes, and said in the file all the same.
BT709, LIMITED = 1, 1
#: Of a GIF's 256 colours the one that lets what is behind show.
UNCHANGED = 255
#: Colours of visible pixels reach two to this power pixels into transparent ones.
BLEED_LEVELS = 4

#: Pictures of one size, all there or made one by one.
Film: TypeAlias = Tensor | np.ndarray | Iterable[Any]


def _bayer() -> np.ndarray:  # (8, 8)
    """Ordered dithering's thresholds, in steps of 8-bit colour around 0."""
    pattern = np.zeros((1, 1))
    for _ in range(3):
        pattern = np.block([[4 * pattern, 4 * pattern + 2], [4 * pattern + 3, 4 * pattern + 1]])
    return (pattern / 64 - 63 / 128) * DITHER


#: How far apart the thresholds lie: about the distance between neighbouring colours of a palette.
DITHER = 8.0
#: A pixel whose colour the palette has but for this is not dithered, so that even surfaces stay even.
NEAR = 3
_BAYER = _bayer()


def to_uint8(images: Tensor | np.ndarray) -> np.ndarray:
    """8-bit pixels: values in [0, 1] rounded to the nearest of 256, uint8 kept."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if array.dtype == np.uint8:
        return array
    return np.round(np.clip(np.nan_to_num(array), 0, 1) * 255).astype(np.uint8)


def write_film(
    path: str | os.PathLike[str],
    frames: Film,  # each (H, W, 3) or straight-alpha (H, W, 4), in [0, 1] or uint8
    fps: float,
    *,
    loops: int = 1,
    quality: int = 90,
) -> None:
    """Write a film in the format that the path ends in: .mp4, .webm, .gif, .webp, .apng, or none for a folder of pictures.

    Frames are taken one by one, so a generator's film never lies in memory whole. Alpha is kept where there is any.

    Args:
        loops: how often an mp4 or webm plays the clip (above 1 it is kept in memory as 8-bit pictures). The others repeat for
            ever by themselves.
        quality: 1 to 100, higher = better and larger. gif, apng and pictures keep all that their format can.

    Raises:
        InputError: for an unknown ending, alpha in an mp4, no frames, or frames of different sizes.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        write_mp4(path, frames, fps, loops=loops, quality=round(11 + (100 - quality) * 0.4))
    elif suffix == ".webm":
        write_webm(path, frames, fps, loops=loops, quality=round(14 + (100 - quality) * 0.45))
    elif suffix == ".gif":
        write_gif(path, frames, fps)
    elif suffix == ".webp":
        write_webp(path, frames, fps, quality=quality)
    elif suffix == ".apng":
        write_apng(path, frames, fps)
    elif not suffix:
        write_frames(path, frames)
    else:
        raise InputError(
            f"{path}: no kind of film, give a name that ends in .mp4, .webm, .gif, .webp or .apng, or a folder's for pictures"
        )


def write_mp4(path: str | os.PathLike[str], frames: Film, fps: float, *, loops: int = 1, quality: int = 16) -> None:
    """Write a film that plays everywhere: H.264, yuv420p, the index in front; MPEG-4 where the PyAV build lacks x264.

    Args:
        frames: opaque pictures, each (H, W, 3) in [0, 1] or uint8; odd sizes grow by one pixel that repeats the edge.
        fps: frames a second.
        loops: how often the clip is repeated in the film.
        quality: constant rate factor, lower = better and larger.

    Raises:
        InputError: for pictures with alpha.
    """
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    if codec == "mpeg4":
        log.warning("this PyAV build has no x264, %s is written as MPEG-4, which browsers do not play", path)

    def setup(stream: Any, height: int, width: int, channels: int) -> str:
        if channels == 4:
            raise InputError(f"{path}: an mp4 has no transparency, put a background behind the frames or write .webm or .gif")
        stream.options = {"crf": str(quality), "preset": "medium"} if codec == "libx264" else {}
        if codec == "mpeg4":
            stream.bit_rate = int(8 * fps * height * width)
        return "yuv420p"

    _encode(path, "mp4", codec, _repeated(frames, loops), fps, setup, {"movflags": "faststart"})


def write_webm(path: str | os.PathLike[str], frames: Film, fps: float, *, loops: int = 1, quality: int = 18) -> None:
    """Write a film for the web: VP9, yuv420p, with a plane of alpha where the frames have it.

    Args:
        frames: each (H, W, 3), or straight-alpha (H, W, 4), in [0, 1] or uint8; odd sizes grow by one pixel.
        loops: how often the clip is repeated in the film.
        quality: constant rate factor, lower = better and larger.
    """

    def setup(stream: Any, height: int, width: int, channels: int) -> str:
        stream.bit_rate = 0  # the rate factor alone decides
        stream.options = {"crf": str(quality), "deadline": "good", "cpu-used": "4", "row-mt": "1", "auto-alt-ref": "0"}
        if channels == 4:
            stream.metadata["alpha_mode"] = "1"
        return "yuva420p" if channels == 4 else "yuv420p"

    # Without the flag the container gets an identity drawn at random, and no two files are alike.
    _encode(path, "webm", "libvpx-vp9", _repeated(frames, loops), fps, setup, {"fflags": "+bitexact"})


def write_webp(path: str | os.PathLike[str], frames: Film, fps: float, *, quality: int = 90, effort: int = 4) -> None:
    """Write an animated WebP that repeats for ever, with alpha where the frames have it.

    Args:
        quality: 1 to 100, higher = better and larger.
        effort: 0 to 6, higher = slower and smaller.
    """

    def setup(stream: Any, height: int, width: int, channels: int) -> str:
        stream.options = {"quality": str(quality), "compression_level": str(effort)}
        return "bgra"

    _encode(path, "webp", "libwebp_anim", frames, fps, setup, {"loop": "0"})


def write_apng(path: str | os.PathLike[str], frames: Film, fps: float) -> None:
    """Write an animated PNG that repeats for ever: lossless, with alpha where the frames have it."""

    def setup(stream: Any, height: int, width: int, channels: int) -> str:
        stream.options = {"pred": "mixed"}
        return "rgba" if channels == 4 else "rgb24"

    _encode(path, "apng", "apng", frames, fps, setup, {"plays": "0"})


def write_gif(path: str | os.PathLike[str], frames: Film, fps: float) -> None:
    """Write a GIF that repeats for ever: 255 colours chosen from the whole clip, on-or-off transparency where there is alpha.

    Colours are dithered with a pattern that stands still. GIF counts time in hundredths of a second, of which programs show no
    fewer than two: the frames' times are rounded so that they do not drift, and above 50 frames a second some are left out.
    """
    from PIL import Image
    from PIL.GifImagePlugin import getdata

    packed, samples, shape = [], [], (0, 0, 0)
    for picture in _pictures(frames):
        shape = picture.shape
        packed.append(zlib.compress(picture.tobytes(), 1))
        pixels = picture.reshape(-1, shape[2])
        pixels = pixels[:: max(1, len(pixels) // 50_000)]
        samples.append(pixels[pixels[:, 3] >= 128, :3] if shape[2] == 4 else pixels.copy())  # no view: it would keep the whole
    height, width, channels = shape
    if max(height, width) > 65535:
        raise InputError(f"{path}: {width} x {height} pixels, a GIF has at most 65535 a side; make it smaller")
    palette, nearest = _palette(np.concatenate(samples))
    threshold = np.tile(_BAYER, (-(-height // 8), -(-width // 8)))[:height, :width, None]
    # When each frame that is shown begins, in hundredths of a second.
    starts = [round(100 * i / _rate(fps)) for i in range(len(packed) + 1)]
    shown = [0]
    for index in range(1, len(packed)):
        if starts[index] - starts[shown[-1]] >= 2:
            shown.append(index)
    if len(shown) < len(packed):
        log.warning(
            "%s: a GIF shows at most 50 frames a second, %d of %d are left out", path, len(packed) - len(shown), len(packed)
        )
    ends = [*(starts[index] for index in shown[1:]), max(starts[-1], starts[shown[-1]] + 2)]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7, UNCHANGED, 0))
        file.write(palette.tobytes() + b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
        before = np.full((height, width), -1)
        for index, end in zip(shown, ends):
            pulse()
            picture = np.frombuffer(zlib.decompress(packed[index]), np.uint8).reshape(shape)
            colours = picture[..., :3]
            plain = nearest[tuple(np.moveaxis(colours >> 2, -1, 0))]
            levels = (colours + threshold).clip(0, 255).astype(np.uint8) >> 2
            near = np.abs(palette[plain].astype(np.int16) - colours).max(-1) <= NEAR
            indices = np.where(near, plain, nearest[tuple(np.moveaxis(levels, -1, 0))])
            if channels == 4:  # each frame replaces the one before
                indices = np.where(picture[..., 3] >= 128, indices, UNCHANGED)
            else:
                indices, before = np.where(indices == before, UNCHANGED, indices).astype(np.uint8), indices
            rows, columns = (np.flatnonzero((indices != UNCHANGED).any(axis)) for axis in (1, 0))
            top, bottom, left, right = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) if len(rows) else (0, 1, 0, 1)
            image = Image.fromarray(np.ascontiguousarray(indices[top:bottom, left:right]))
            disposal = 2 if channels == 4 else 1
            blocks = getdata(
                image, (int(left), int(top)), duration=10 * (end - starts[index]), disposal=disposal, transparency=UNCHANGED
            )
            file.writelines(blocks)
        file.write(b";")


def _palette(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (N, 3) uint8 -> (256, 3) uint8, (64, 64, 64) uint8
    """255 colours that stand for the pixels, and the nearest of them to each colour of 6 bits a channel.

    The commonest colour, that of the background, is exactly among them. The 256th is free.
    """
    from PIL import Image
    from scipy.spatial import KDTree

    pixels = pixels[:: max(1, len(pixels) // 200_000)] if len(pixels) else np.zeros((1, 3), np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels)[None])
    reduced = image.quantize(UNCHANGED - 1, method=Image.Quantize.MEDIANCUT, kmeans=1)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    others = np.array(reduced.getpalette(), np.uint8).reshape(-1, 3)[: UNCHANGED - 1]
    chosen = np.concatenate([values[[counts.argmax()]], others])
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(chosen)] = chosen
    grid = np.stack(np.meshgrid(*[np.arange(64) * 4 + 1.5] * 3, indexing="ij"), -1)
    nearest = np.asarray(KDTree(chosen.astype(np.float32)).query(grid)[1]).astype(np.uint8)
    return palette, nearest


def _encode(
    path: str | os.PathLike[str],
    form: str,
    codec: str,
    frames: Film,
    fps: float,
    setup: Callable[[Any, int, int, int], str],
    options: dict[str, str] | None = None,
) -> None:
    """Frames through one of PyAV's encoders; ``setup`` takes the stream, height, width and channels, and returns the format."""
    import av

    if codec not in av.codecs_available:
        raise InputError(f"{path}: this PyAV build has no {codec}; install a newer av, or choose another format")
    rate = Fraction(_rate(fps)).limit_denominator(1000)
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format=form, options=options or {}) as container:
        stream: Any = None
        wanted, halved = "", False
        for picture in _pictures(frames):
            height, width, channels = picture.shape
            if stream is None:
                stream = container.add_stream(codec, rate=rate)
                wanted = setup(stream, height, width, channels)
                halved = "420" in wanted
                stream.pix_fmt = wanted
                stream.height, stream.width = (side + side % 2 if halved else side for side in (height, width))
                if halved:
                    context = stream.codec_context
                    context.colorspace = context.color_primaries = context.color_trc = BT709
                    context.color_range = LIMITED
            if halved:
                picture = _bled(picture) if channels == 4 else picture
                picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgba" if channels == 4 else "rgb24")
            converted = frame.reformat(format=wanted, dst_colorspace="itu709") if halved else frame.reformat(format=wanted)
            container.mux(stream.encode(converted))
        container.mux(stream.encode())


def _pictures(frames: Film) -> Iterator[np.ndarray]:
    """The frames as 8-bit pictures of one shape.

    Raises:
        InputError: for none, for other shapes than (H, W, 3) and (H, W, 4), or for different ones.
    """
    shape = None
    for number, frame in enumerate(frames):
        pulse()
        picture = to_uint8(frame)
        if picture.ndim != 3 or picture.shape[2] not in (3, 4) or 0 in picture.shape:
            raise InputError(f"film: frame {number} has shape {picture.shape}, give (height, width, 3 or 4)")
        shape = shape or picture.shape
        if picture.shape != shape:
            raise InputError(f"film: frame {number} has shape {picture.shape} but the first {shape}, make them equal")
        yield picture
    if shape is None:
        raise InputError("film: no frames, give at least one")


def _repeated(frames: Film, loops: int) -> Film:
    if loops == 1:
        return frames
    kept = list(_pictures(frames))
    return (picture for _ in range(loops) for picture in kept)


def _rate(fps: float) -> float:
    if not 1e-3 <= fps <= 1000:
        raise InputError(f"film: {fps:g} frames a second, choose 0.001 to 1000")
    return float(fps)


def _bled(picture: np.ndarray) -> np.ndarray:  # straight (H, W, 4) uint8
    """Transparent pixels take the colours of visible ones near by, since halved chroma mixes neighbours.

    Colours are averaged, weighted by alpha, over blocks that double from level to level; each transparent pixel takes the
    finest average that has any.
    """
    side = 2**BLEED_LEVELS
    rows, columns = (np.flatnonzero((picture[..., 3] > 0).any(axis)) for axis in (1, 0))
    if not len(rows):
        return picture
    top, left = max(0, rows[0] - side), max(0, columns[0] - side)
    out = picture.copy()
    part = out[top : rows[-1] + side, left : columns[-1] + side]
    height, width = part.shape[:2]
    padded = np.pad(part, ((0, -height % side), (0, -width % side), (0, 0))).astype(np.float32)
    weight = padded[..., 3:]
    levels = [(padded[..., :3] * weight, weight)]
    for _ in range(BLEED_LEVELS):
        halves = [x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2] for x in levels[-1]]
        levels.append((halves[0], halves[1]))
    filled = np.zeros_like(levels[-1][0])
    for colour, weight in reversed(levels):
        if filled.shape != colour.shape:
            filled = filled.repeat(2, 0).repeat(2, 1)
        np.divide(colour, weight, out=filled, where=weight > 0)
    hidden = part[..., 3] == 0
    part[..., :3][hidden] = np.round(filled[:height, :width][hidden])
    return out


def write_png(path: str | os.PathLike[str], image: Tensor | np.ndarray) -> None:  # (H, W), (H, W, 3) or straight (H, W, 4)
    """Write one 8-bit picture."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(to_uint8(image)).save(temporary, format="PNG")


def write_frames(folder: str | os.PathLike[str], images: Film) -> list[Path]:
    """Write 000.png, 001.png, ... to a fresh folder that replaces one of the same name.

    Args:
        images: each (H, W, 3), or straight-alpha (H, W, 4), in [0, 1] or uint8; taken one by one.

    Returns:
        The files' paths, in order.
    """
    from PIL import Image

    folder, names = Path(folder), []
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for picture in _pictures(images):
            names.append(f"{len(names):03}.png")
            Image.fromarray(picture).save(temporary / names[-1])
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
