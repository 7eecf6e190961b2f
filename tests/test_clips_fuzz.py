"""Damaged and hostile films and pictures, made at random: each is read, or refused in one line, within a budget.

The long form: ANCHOR4D_FUZZ=20000 ANCHOR4D_FUZZ_SEED=1 python -m pytest tests/test_clips_fuzz.py
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, features

from anchor4d.core.files import InputError
from anchor4d.core.io.clip import read_clip, read_picture

COUNT, SEED = int(os.environ.get("ANCHOR4D_FUZZ", "1000")), int(os.environ.get("ANCHOR4D_FUZZ_SEED", "0"))
#: Seconds of processor time and bytes of memory that one small file may take.
SECONDS, MEMORY = 10.0, 2**30
STILL = {"k.jpg", "l.tga", "m.bmp", "n.png", "o.tif"}
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def pictures(count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    base = rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return [np.roll(base, 4 * t, 1) for t in range(count)]


def encoded(suffix: str, codec: str, pix_fmt: str = "yuv420p") -> bytes:
    file = BytesIO()
    with av.open(file, "w", format=suffix) as container:
        container.metadata["title"] = "a film"
        stream = container.add_stream(codec, rate=12)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pix_fmt
        for picture in pictures(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)))
        container.mux(stream.encode())
    return file.getvalue()


def saved(form: str, animated: bool = False, **settings: object) -> bytes:
    file, frames = BytesIO(), [Image.fromarray(p) for p in pictures()]
    more = {"save_all": True, "append_images": frames[1:], "duration": 80} if animated else {}
    frames[0].save(file, form, **more, **settings)
    return file.getvalue()


def sixteen_bits(form: str) -> bytes:
    file = BytesIO()
    Image.fromarray(pictures()[0][..., 0].astype(np.uint16) * 257).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def seeds() -> dict[str, bytes]:
    """Sound files of every kind that is read, by their ending."""
    found: dict[str, bytes] = {
        "a.mp4": encoded("mp4", "libx264" if "libx264" in av.codecs_available else "mpeg4"),
        "b.mov": encoded("mov", "mpeg4"),
        "c.mkv": encoded("matroska", "mpeg4"),
        "d.avi": encoded("avi", "mjpeg", "yuvj420p"),
        "e.ts": encoded("mpegts", "mpeg2video"),
        "f.flv": encoded("flv", "flv1"),
        "g.gif": saved("GIF", True),
        "h.webp": saved("WEBP", True),
        "i.png": saved("PNG", True),
        "j.tif": saved("TIFF", True, compression="tiff_lzw"),
        "k.jpg": saved("JPEG"),
        "l.tga": saved("TGA"),
        "m.bmp": saved("BMP"),
        "n.png": sixteen_bits("PNG"),
        "o.tif": sixteen_bits("TIFF"),
    }
    if "libvpx-vp9" in av.codecs_available:
        found["p.webm"] = encoded("webm", "libvpx-vp9")
    if features.check("avif"):
        found["q.avif"] = saved("AVIF", True)
    return found


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with a few of its bytes, numbers and parts changed, most often near its beginning."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        reach = len(out) if rng.random() < 0.5 else min(len(out), 400)
        at = rng.randrange(max(1, reach))
        what = rng.randrange(6)
        if what == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif what == 1:
            out[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(EXTREMES))
        elif what == 2:
            out[at : at + 2] = struct.pack(rng.choice("<>") + "H", rng.choice(EXTREMES) & 0xFFFF)
        elif what == 3:
            del out[at : at + rng.choice([1, 4, 64])]
        elif what == 4:
            out[at:at] = out[at : at + rng.choice([1, 8, 200])]
        else:
            del out[max(8, at) :]
    return bytes(out)


def memory() -> int:
    """Bytes that the process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def outcome(read: Callable[[], object]) -> str:
    """Whether a file is read or refused; anything else is an error of the test."""
    began, held = time.process_time(), memory()
    result, words = "read", ""
    try:
        read()
    except InputError as error:
        result, words = "refused", str(error)
    assert "\n" not in words
    assert time.process_time() - began < SECONDS
    assert memory() - held < MEMORY
    return result


def test_sound_files_are_read(seeds: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in seeds.items():
        (tmp_path / name).write_bytes(data)
        frames = (read_picture if name in STILL else read_clip)(tmp_path / name).frames
        assert len(frames) == (1 if name in STILL else 8 if name[0] in "abcdefp" else 4), name
        assert frames.shape[1:3] == (48, 64)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of tags that it leaves out
def test_damaged_files_are_read_or_refused(seeds: dict[str, bytes], tmp_path: Path) -> None:
    rng = random.Random(SEED)
    names = sorted(seeds)
    counts = {"read": 0, "refused": 0}
    for number in range(COUNT):
        name = names[number % len(names)]
        # The file stays where the process dies of it, named by the seed and its number.
        path = tmp_path / f"{SEED}_{number}{Path(name).suffix}"
        path.write_bytes(mutated(seeds[name], rng))
        settings = rng.choice([{}, {"frames": 2}, {"start": 0.1}, {"every": 2}])
        result = outcome(lambda: read_picture(path) if name in STILL else read_clip(path, **settings))  # noqa: B023
        counts[result] += 1
        path.unlink()
    assert counts["refused"] > COUNT // 10 and counts["read"] > COUNT // 10, counts
