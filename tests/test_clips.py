"""Films, animated pictures and folders as people have them, and as nobody should."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, features

from anchor4d.core.files import InputError
from anchor4d.core.io import write_frames, write_mp4
from anchor4d.core.io.clip import Timeline, read_clip, read_picture, read_tensors
from anchor4d.core.io.video import load_video
from anchor4d.core.pictures import open_picture

RED, BLUE = (230, 20, 20), (20, 20, 230)


def marked(frames: int, width: int = 64, height: int = 48) -> np.ndarray:  # (T, H, W, 3) uint8
    """Frames on white that differ in grey at the middle, with a red corner at the top left and a blue one at its right."""
    out = np.full((frames, height, width, 3), 255, np.uint8)
    out[:, 8:16, 8:16], out[:, 8:16, width - 16 : width - 8] = RED, BLUE
    for t in range(frames):
        out[t, 20:40, 20:44] = 20 * t
    return out


def number(clip_frames: torch.Tensor) -> list[int]:
    """Which frames of :func:`marked` these are."""
    height, width = clip_frames.shape[1:3]
    middle = clip_frames[:, height // 2 + 6, width // 2, :3].float()
    return [round(value / 20) for value in middle.mean(-1).tolist()]


def film(
    path: Path,
    frames: np.ndarray,
    times: list[int] | None = None,  # milliseconds
    *,
    codec: str = "libx264",
    aspect: Fraction | None = None,
    last: int | None = None,
    fps: int = 10,
) -> Path:
    """A film whose frames begin at the given times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "8"} if codec == "libx264" else {}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.time_base = Fraction(1, 1000)
        times = times or [round(1000 * t / fps) for t in range(len(frames))]
        for picture, at in zip(frames, times):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The film with (a, b, c, d) as its display matrix."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


# Times


def test_a_timeline_of_even_frames_has_one_tick_each() -> None:
    for jitter in (0, 0.004):
        times = np.arange(10) / 25 + np.array([0, jitter] * 5)
        line = Timeline.of(times, 0.04, 25.0)
        assert line.ticks.tolist() == list(range(10)) and line.total == 10
        assert line.rate == pytest.approx(25.0, rel=0.02)
    long = Timeline.of(np.arange(5) / 10, 0.5)
    assert long.ticks.tolist() == [0, 1, 2, 3, 4] and long.total == 9
    pause = Timeline.of(np.array([0, 0.1, 0.2, 1.2, 1.3]), 0.1)
    assert pause.ticks.tolist() == [0, 1, 2, 12, 13] and pause.total == 14
    assert Timeline.of(np.zeros(3), 0.0, 12.0).ticks.tolist() == [0, 1, 2]


def test_a_film_of_varying_rate_shows_at_each_time_what_it_shows_then(tmp_path: Path) -> None:
    times = [0, 100, 200, 300, 1000, 1100]
    for suffix in ("mp4", "mkv"):
        path = film(tmp_path / f"a.{suffix}", marked(6), times)
        clip = read_clip(path)
        assert clip.fps == pytest.approx(10), suffix
        expected = [max(i for i, at in enumerate(times) if at <= 100 * tick + 5) for tick in range(12)]
        assert number(clip.frames) == expected, suffix
        few = read_clip(path, frames=4)
        assert few.fps == pytest.approx(10 / 3)
        assert number(few.frames) == expected[::3]


def test_a_long_last_frame_stays(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in marked(3)]
    times = [100, 100, 500]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        lossless = {"lossless": True} if suffix == "webp" else {}
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0, **lossless)
        clip = read_clip(path)
        assert clip.fps == pytest.approx(10)
        assert number(clip.frames) == [0, 1, 2, 2, 2, 2, 2], suffix
        assert number(read_clip(path, frames=3).frames) == [0, 2, 2]


def test_a_gif_without_times_plays_as_browsers_play_it(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in marked(4)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=0)
    assert read_clip(tmp_path / "a.gif").fps == pytest.approx(10)


def test_part_of_a_video(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", marked(12))
    clip = read_clip(path, start=0.2, end=0.9)
    assert number(clip.frames) == [2, 3, 4, 5, 6, 7, 8] and clip.fps == 10
    clip = read_clip(path, start=0.2, every=3)
    assert number(clip.frames) == [2, 5, 8, 11] and clip.fps == pytest.approx(10 / 3)
    clip = read_clip(path, start=0.4, frames=4)
    assert number(clip.frames) == [4, 6, 8, 10] and clip.fps == 5
    write_frames(tmp_path / "f", marked(12))
    clip = read_clip(tmp_path / "f", fps=4, start=1, end=2)
    assert number(clip.frames) == [4, 5, 6, 7] and clip.fps == 4
    tensors = read_tensors(torch.from_numpy(marked(12)).float() / 255, fps=4, start=1, every=2)
    assert number(tensors.frames * 255) == [4, 6, 8, 10] and tensors.fps == 2
    with pytest.raises(InputError, match=r"a\.mp4: lasts 1\.2 seconds, start at 5 is past its end"):
        read_clip(path, start=5)
    with pytest.raises(InputError, match=r"a\.mp4: 1 frames in the part that was asked for"):
        read_clip(path, start=0.5, end=0.6)
    for bad, words in [
        ({"fps": float("nan")}, "nan frames a second"),
        ({"fps": 0.0}, "0.0 frames a second"),
        ({"frames": -3}, "-3 frames asked for"),
        ({"start": -1.0}, "start -1.0"),
        ({"end": float("inf")}, "end inf"),
        ({"start": 2.0, "end": 1.0}, "end 1.0, choose more"),
        ({"every": 0}, "every 0"),
    ]:
        with pytest.raises(InputError, match=words):
            read_clip(path, **bad)


def test_a_part_far_into_a_film_is_found_without_what_comes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.concatenate([marked(12)] * 25)
    path = film(tmp_path / "a.mp4", frames, fps=25)
    whole = read_clip(path).frames
    monkeypatch.setenv("ANCHOR4D_MAX_DECODED_PIXELS", str(120 * 64 * 48))
    part = read_clip(path, start=10.4, end=10.8)
    assert torch.equal(part.frames, whole[260:270])
    with pytest.raises(InputError, match="to go through, cut the part"):
        read_clip(path, frames=4)


# Shapes


@pytest.mark.parametrize(("aspect", "size"), [("2", (128, 48)), ("1/2", (64, 96)), ("1", (64, 48)), ("4/3", (85, 48))])
def test_pixels_are_made_square(tmp_path: Path, aspect: str, size: tuple[int, int]) -> None:
    clip = read_clip(film(tmp_path / "a.mp4", marked(4), aspect=Fraction(aspect)))
    assert clip.frames.shape[1:3] == size[::-1]
    assert number(clip.frames) == [0, 1, 2, 3]


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("mirror", [False, True])
def test_turned_and_mirrored_films_are_shown_upright(tmp_path: Path, turn: int, mirror: bool) -> None:
    path = film(tmp_path / "a.mp4", marked(3))
    plain = read_clip(path).frames.numpy()
    # The matrix maps the picture's x (a, b) and y (c, d) to the screen's, whose y points down: quarter turns clockwise.
    quarter = np.array([[0, 1], [-1, 0]])
    matrix = np.linalg.matrix_power(quarter, turn)
    expected = np.rot90(plain, -turn, (1, 2))
    if mirror:
        matrix = np.array([[-1, 0], [0, 1]]) @ matrix
        expected = np.rot90(plain[:, :, ::-1], -turn, (1, 2))
    turned = read_clip(with_matrix(path, tuple(int(v) for v in matrix.ravel()))).frames.numpy()
    assert (turned == expected).all()


def test_frames_of_a_folder_in_every_kind_of_picture(tmp_path: Path) -> None:
    for name, save in [("jfif", {"format": "JPEG", "quality": 95}), ("tga", {}), ("bmp", {}), ("tiff", {}), ("webp", {})]:
        folder = tmp_path / name
        folder.mkdir()
        for t, frame in enumerate(marked(4)):
            Image.fromarray(frame).save(folder / f"{t}.{name}", **save)
        assert number(read_clip(folder).frames) == [0, 1, 2, 3], name


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_animated_avif(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in marked(4)]
    pictures[0].save(tmp_path / "a.avif", save_all=True, append_images=pictures[1:], duration=200, quality=95)
    clip = read_clip(tmp_path / "a.avif")
    assert number(clip.frames) == [0, 1, 2, 3] and clip.fps == pytest.approx(5)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_grey_of_sixteen_bits_is_scaled(tmp_path: Path, kind: str) -> None:
    ramp = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    for t in range(2):
        Image.fromarray(ramp).save(tmp_path / f"{t}.{kind}")
    clip = read_clip(tmp_path)
    assert clip.frames.shape == (2, 30, 40, 3)
    assert np.array_equal(clip.frames[0, ..., 0], np.round(ramp / 257.0))


def test_grey_of_floating_point_is_from_0_to_1(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 40 * 30, dtype=np.float32).reshape(30, 40)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    assert np.array_equal(read_picture(tmp_path / "a.tif").frames[0, ..., 1], np.round(ramp * 255))
    Image.fromarray(ramp * 900).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match=r"b\.tif.*from 0 to 900, give 0 to 1"):
        read_picture(tmp_path / "b.tif")


def test_odd_names_are_put_in_order(tmp_path: Path) -> None:
    names = ["0①0.png", "0②0.png", "f2.png", "f10.png", "f٣.png", "ｆ.png", "½.png"]
    for t, name in enumerate(names):
        Image.fromarray(marked(8)[t]).save(tmp_path / name)
    order = number(read_clip(tmp_path).frames)
    assert sorted(order) == list(range(7))
    assert order.index(0) < order.index(1) and order.index(2) < order.index(4) < order.index(3)


def test_frames_of_different_size_name_two(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    data = bytearray((tmp_path / "a.gif").read_bytes())
    second = data.rindex(b"\x2c\x00\x00\x00\x00\x14\x00\x14\x00")
    data[second + 1 : second + 3] = struct.pack("<H", 12)  # the second frame begins at 12 and reaches beyond the canvas
    (tmp_path / "a.gif").write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"a\.gif: frame 1 has 32x20 pixels where frame 0 has 20x20"):
        read_clip(tmp_path / "a.gif")


# Masks


def test_masks_of_a_file_beside_the_video(tmp_path: Path) -> None:
    frames = marked(6)
    masks = np.zeros((6, 48, 64, 3), np.uint8)
    for t in range(6):
        masks[t, 10:30, 10 : 20 + 4 * t] = 255
    path = film(tmp_path / "a.mp4", frames, [0, 100, 200, 300, 1000, 1100])
    write_frames(tmp_path / "m", masks)
    video = read_clip(path, tmp_path / "m", every=5)
    assert number(video.frames) == [0, 3, 4]
    assert video.masks is not None
    assert torch.equal(video.masks, torch.from_numpy(masks[[0, 3, 4], ..., 0]).float() / 255)
    one = load_video(path, tmp_path / "m" / "002.png", frames=4)
    assert one.masked_by == "mask" and float(one.masks.sum()) == 4 * 20 * 18
    as_film = read_clip(path, film(tmp_path / "m.mp4", masks, [0, 100, 200, 300, 1000, 1100]), frames=3).masks
    assert as_film is not None and as_film.shape == (3, 48, 64)
    write_frames(tmp_path / "few", masks[:5])
    with pytest.raises(InputError, match=r"few: 5 masks where a\.mp4 has 6 frames"):
        read_clip(path, tmp_path / "few")
    write_frames(tmp_path / "small", masks[:, :40])
    with pytest.raises(InputError, match=r"small: masks of 64x40 where a\.mp4 is 64x48"):
        read_clip(path, tmp_path / "small")
    with pytest.raises(InputError, match="no such video"):
        read_clip(path, tmp_path / "gone")


# Trust


def eps(folder: Path) -> None:
    """Two frames that start Ghostscript where Pillow may open them; a marker file would show that it ran."""
    folder.mkdir()
    for name in ("0.png", "1.png"):
        (folder / name).write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n"
            f"({folder / 'ran'}) (w) file closefile\n0 0 32 32 rectfill\nshowpage\n%%EOF\n"
        )


def test_postscript_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def started(*arguments: object, **settings: object) -> None:
        raise AssertionError("Ghostscript is started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    eps(tmp_path / "f")
    with pytest.raises(InputError, match=r"0\.png: not a readable picture"):
        read_clip(tmp_path / "f")
    with pytest.raises(InputError, match="not a readable picture"):
        open_picture((tmp_path / "f" / "0.png").read_bytes(), "texture")
    assert not (tmp_path / "f" / "ran").exists()


def test_pictures_are_opened_in_one_place() -> None:
    root = Path(__file__).parent.parent
    for path in [*(root / "core").rglob("*.py"), *(root / "nodes").rglob("*.py")]:
        if path.name != "pictures.py":
            assert "Image.open(" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile other.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 15999 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        '<?xml version="1.0"?>'
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT10S"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>other.mp4</BaseURL><SegmentBase/>'
        "</Representation></AdaptationSet></Period></MPD>",
    ],
    ids=["concat", "hls", "sdp", "dash"],
)
def test_playlists_open_no_other_file(tmp_path: Path, text: str) -> None:
    film(tmp_path / "other.mp4", marked(3))
    for suffix in ("mp4", "m3u8", "sdp", "mpd", "txt"):
        path = tmp_path / f"list.{suffix}"
        path.write_text(text)
        with pytest.raises(InputError, match="not a readable video") as caught:
            read_clip(path)
        assert "\n" not in str(caught.value)


def test_a_name_is_a_file_and_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.mp4|b.mp4", "http:%2f", "pipe:0", "50%d.mp4", "später.mp4"):
        film(tmp_path / "a.mp4", marked(3)).rename(name)
        assert number(read_clip(name).frames) == [0, 1, 2]
        Path(name).unlink()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claiming_png(frames: int, side: int = 16, there: int = 2) -> bytes:
    """An animated PNG that claims ``frames`` frames and has ``there``."""
    pixels = zlib.compress(b"".join(b"\0" + b"\x80" * side * 4 for _ in range(side)))
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))]
    parts.append(chunk(b"acTL", struct.pack(">II", frames, 0)))
    for t in range(there):
        parts.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", max(0, 2 * t - 1), side, side, 0, 0, 1, 10, 0, 0)))
        parts.append(chunk(b"IDAT", pixels) if t == 0 else chunk(b"fdAT", struct.pack(">I", 2 * t) + pixels))
    return b"".join([*parts, chunk(b"IEND", b"")])


@pytest.mark.parametrize("claim", [2**31 - 1, 10**7])
def test_claims_of_a_header_cost_nothing(tmp_path: Path, claim: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(claiming_png(claim))
    began = time.process_time()
    for settings in ({}, {"frames": 2}):
        with pytest.raises(InputError, match=r"a\.png: not a readable picture"):
            read_clip(path, **settings)
    path.write_bytes(claiming_png(2))
    assert len(read_clip(path).frames) == 2
    assert time.process_time() - began < 5


def test_bombs_are_refused_before_they_unpack(tmp_path: Path) -> None:
    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    (tmp_path / "bombs").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "bombs" / name).write_bytes(header + chunk(b"IDAT", zlib.compress(bytes(2**20))) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"0\.png: the picture is too large"):
        read_clip(tmp_path / "bombs")
    with pytest.raises(InputError, match=r"0\.png: the picture is too large"):
        read_clip(tmp_path / "bombs" / "0.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes as files")
def test_pipes_and_devices_are_no_frames(tmp_path: Path) -> None:
    def make(place: Path, kind: str) -> None:
        place.mkdir()
        Image.fromarray(marked(1)[0]).save(place / "0.png")
        if kind == "pipe":
            os.mkfifo(place / "1.png")
        elif kind == "device":
            (place / "1.png").symlink_to("/dev/zero")
        elif kind == "loop":
            (place / "1.png").symlink_to(place / "1.png")
        else:
            (place / "1.png").mkdir()

    for kind in ("pipe", "device", "loop", "folder"):
        make(tmp_path / kind, kind)
        with pytest.raises(InputError, match=r"1\.png: (not a regular file|no such file)"):
            read_clip(tmp_path / kind)
    for name in ("film.mp4", "anim.gif"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="not a regular file"):
            read_clip(tmp_path / name)
    with pytest.raises(InputError, match="not a regular file"):
        read_clip("/dev/zero")


def test_metadata_that_is_no_text_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLEHERE"
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for picture in marked(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"TITLEHERE", b"\xff\xfe\x80TITLES"))
    assert len(read_clip(path).frames) == 3


def test_progress_is_told_often_and_may_interrupt(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, of: int) -> None:
        raise Stopped

    seen: list[int] = []
    path = film(tmp_path / "a.mp4", marked(12))
    pictures = [Image.fromarray(frame) for frame in marked(12)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100)
    write_frames(tmp_path / "f", marked(12))
    for source in (path, tmp_path / "a.gif", tmp_path / "f"):
        seen.clear()
        load_video(source, progress=lambda done, of: seen.append(done))
        assert seen == sorted(seen) and seen[-1] == 100 and len(seen) > 24, source
        with pytest.raises(Stopped):
            read_clip(source, progress=stop)


# The same for any number of threads

DIGEST = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from anchor4d.core.io.video import load_video
for source in sys.argv[2:]:
    for resolution in (512, 40):
        video = load_video(source, resolution=resolution)
        for value in (video, video.resized(24), video.resized(150)):
            print(hashlib.sha256(value.frames.numpy().tobytes() + value.masks.numpy().tobytes()).hexdigest())
"""


def test_pixels_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgba = np.zeros((20, 90, 120, 4), np.uint8)
    rgba[:, 20:75, 30:101] = rng.integers(0, 256, (20, 55, 71, 4))
    write_frames(tmp_path / "f", rgba)
    write_mp4(tmp_path / "a.mp4", np.where(rgba[..., 3:] > 0, rgba[..., :3], 255).astype(np.uint8), 12)
    sources = [tmp_path / "f", tmp_path / "a.mp4"]
    told = [
        subprocess.run(
            [sys.executable, "-c", DIGEST, str(threads), *map(str, sources)], capture_output=True, text=True, check=True
        ).stdout
        for threads in (1, 2)
    ]
    assert told[0] == told[1]
    assert len(set(told[0].split())) == 12
