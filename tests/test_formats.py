from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchor4d.core.cameras import quaternion_to_matrix
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians, half_turn
from anchor4d.core.io import (
    contact_sheet,
    film,
    read_ply,
    side_by_side,
    write_film,
    write_frames,
    write_mp4,
    write_ply,
    write_ply_sequence,
    write_png,
)
from anchor4d.core.scene.scene import Scene4D


def some_gaussians(count: int = 7, degree: int = 0) -> Gaussians:
    g = torch.Generator().manual_seed(1)
    return Gaussians(
        means=torch.randn(count, 3, generator=g),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1),
        log_scales=torch.randn(count, 3, generator=g) - 4,
        opacity_logits=torch.randn(count, generator=g),
        sh=torch.randn(count, (degree + 1) ** 2, 3, generator=g),
    )


def same_up_to_quaternion_sign(a: Gaussians, b: Gaussians) -> None:
    for name in ("means", "log_scales", "opacity_logits", "sh"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-6)
    torch.testing.assert_close(quaternion_to_matrix(a.quats), quaternion_to_matrix(b.quats), rtol=0, atol=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_ply_round_trip(tmp_path: Path, degree: int) -> None:
    gaussians = some_gaussians(degree=degree)
    write_ply(tmp_path / "a.ply", gaussians)
    same_up_to_quaternion_sign(read_ply(tmp_path / "a.ply"), gaussians)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_ply_golden_values_through_an_independent_reader(tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    s = math.sqrt(0.5)
    gaussians = Gaussians(
        means=torch.tensor([[1.0, 2.0, 3.0]]),
        quats=torch.tensor([[2 * s, 0.0, 0.0, 2 * s]]),  # a quarter turn about Z, not normalised
        log_scales=torch.tensor([[-1.0, -2.0, -3.0]]),
        opacity_logits=torch.tensor([0.25]),
        sh=torch.arange(12.0).reshape(1, 4, 3),
    )
    write_ply(tmp_path / "a.ply", gaussians)
    vertex = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"]
    rest = [f"f_rest_{i}" for i in range(9)]
    names = [*"xyz", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert [p.name for p in vertex.properties] == names
    assert all(p.val_dtype == "f4" for p in vertex.properties)
    value = {n: float(vertex[n][0]) for n in names}
    assert [value[n] for n in "xyz"] == [1, -2, -3]
    assert [value[f"f_dc_{i}"] for i in range(3)] == [0, 1, 2]
    # Channel by channel; of the degree-1 harmonics (~ y, z, x) the first two change sign with their axes.
    assert [value[n] for n in rest] == [-3, -6, 9, -4, -7, 10, -5, -8, 11]
    assert [value[n] for n in ("opacity", "scale_0", "scale_1", "scale_2")] == [0.25, -1, -2, -3]
    # diag(1, -1, -1) times the quarter turn about Z.
    matrix = quaternion_to_matrix(torch.tensor([value[f"rot_{i}"] for i in range(4)]))
    expected = torch.tensor([[0.0, -1, 0], [-1, 0, 0], [0, 0, -1]])
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-6)


def test_half_turn_keeps_view_dependent_colours() -> None:
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)

    def basis(d: torch.Tensor) -> torch.Tensor:  # 3DGS's real harmonics to degree 3, up to positive constants
        x, y, z = d.unbind(-1)
        xx, yy, zz = x * x, y * y, z * z
        values = [torch.ones_like(x), -y, z, -x, x * y, -y * z, 2 * zz - xx - yy, -x * z, xx - yy]
        values += [-y * (3 * xx - yy), x * y * z, -y * (4 * zz - xx - yy), z * (2 * zz - 3 * xx - 3 * yy)]
        values += [-x * (4 * zz - xx - yy), z * (xx - yy), -x * (xx - 3 * yy)]
        return torch.stack(values, -1)

    gaussians = some_gaussians(degree=3)
    before = basis(directions) @ gaussians.sh[0]
    after = basis(directions * torch.tensor([1.0, -1, -1])) @ half_turn(gaussians).sh[0]
    torch.testing.assert_close(after, before)
    same_up_to_quaternion_sign(half_turn(half_turn(gaussians)), gaussians)


def test_ply_written_elsewhere_in_another_order_and_type_is_read(tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    gaussians = some_gaussians(3)
    write_ply(tmp_path / "a.ply", gaussians)
    table = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"].data
    names = [n for n in reversed(table.dtype.names) if not n.startswith("n")]
    other = np.empty(3, [(n, "f8") for n in names] + [("red", "u1")])
    for n in names:
        other[n] = table[n]
    faces = plyfile.PlyElement.describe(np.array([([0, 1, 2],)], [("vertex_indices", "i4", (3,))]), "face")
    plyfile.PlyData([plyfile.PlyElement.describe(other, "vertex"), faces], byte_order="<", comments=["made elsewhere"]).write(
        tmp_path / "b.ply"
    )
    same_up_to_quaternion_sign(read_ply(tmp_path / "b.ply"), gaussians)


def test_bad_ply_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bad.ply"
    write_ply(path, some_gaussians())
    good = path.read_bytes()
    head = good[: good.index(b"end_header") + 11]
    cases = {
        "cut short": good[:-3],
        "not a ply": b"glTF" + good,
        "not a ply file": good[:40],
        "cut short ": good.replace(b"vertex 7", b"vertex 4000000000"),
        "no Gaussians": head.replace(b"vertex 7", b"vertex 0"),
        "its text is cut short": good.replace(b"binary_little_endian", b"ascii"),
        "has no f_dc_0": good.replace(b"f_dc_0", b"f_xx_0"),
        "garbled": good.replace(b"float opacity", b"flout opacity"),
        "compressed": head.replace(b"float f_dc_0", b"uint packed_position"),
        "NaN": head + np.full(7 * 17, np.nan, "<f4").tobytes(),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"bad.ply.*{message.strip()}"):
            read_ply(path)
    with pytest.raises(InputError, match=r"missing\.ply: no such file"):
        read_ply(tmp_path / "missing.ply")


def test_ply_sequence_with_manifest(tmp_path: Path) -> None:
    scene = Scene4D(some_gaussians(), frames=4, fps=8.0, loop=True)
    folder = tmp_path / "walk"
    folder.mkdir()
    (folder / "old.txt").write_text("from before")
    files = write_ply_sequence(folder, scene, 6)
    assert [f.name for f in files] == [f"frame{i:04}.ply" for i in range(6)]
    assert sorted(p.name for p in folder.iterdir()) == [*(f.name for f in files), "manifest.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == 1
    assert manifest["fps"] == 12.0
    assert manifest["loop"] is True
    assert manifest["frames"] == {"pattern": "frame{frame:04}.ply", "start": 0, "count": 6}
    same_up_to_quaternion_sign(read_ply(files[5]), scene.gaussians)


def flat_frames(count: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    colours = np.random.default_rng(0).integers(20, 236, (count, 1, 1, 3))
    return np.broadcast_to(colours, (count, height, width, 3)).astype(np.uint8)


def decode(path: Path) -> tuple[np.ndarray, float, str]:
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        as_rgb = {"format": "rgb24", "src_colorspace": "itu709", "dst_colorspace": "itu601"}
        frames = np.stack([f.reformat(**as_rgb).to_ndarray() for f in container.decode(stream)])
        return frames, float(stream.average_rate), stream.codec_context.name


def test_mp4_keeps_frames_rate_and_colours(tmp_path: Path) -> None:
    frames = flat_frames()
    write_mp4(tmp_path / "a.mp4", torch.from_numpy(frames).float() / 255, 13.813, loops=2)
    decoded, rate, codec = decode(tmp_path / "a.mp4")
    assert decoded.shape == (12, 32, 48, 3)
    assert codec == "h264"
    assert rate == pytest.approx(13.813, abs=1e-3)
    assert np.abs(decoded.astype(int) - np.concatenate([frames, frames])).max() <= 5
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_mp4_pads_odd_sizes(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", flat_frames(height=31, width=45), 12)
    assert decode(tmp_path / "a.mp4")[0].shape == (6, 32, 46, 3)


def test_mp4_without_x264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    av = pytest.importorskip("av")
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    write_mp4(tmp_path / "a.mp4", flat_frames(), 12)
    assert "no x264" in caplog.text
    decoded, _, codec = decode(tmp_path / "a.mp4")
    assert codec == "mpeg4"
    assert decoded.shape == (6, 32, 48, 3)


def test_a_failed_film_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frame 1 has shape"):
        write_mp4(tmp_path / "a.mp4", [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)], 12)
    assert list(tmp_path.iterdir()) == []


def moving_picture(alpha: bool, count: int = 5, height: int = 40, width: int = 64) -> list[np.ndarray]:
    """A disc with a smooth gradient that moves over white, or over nothing."""
    rows, columns = np.mgrid[:height, :width]
    frames = []
    for t in range(count):
        distance = np.hypot(rows - height / 2, columns - 20 - 5 * t)
        colour = np.stack([220 - 2 * rows, 40 + 3 * rows, 90 + columns], -1).clip(0, 255)
        cover = np.clip(14.5 - distance, 0, 1)[..., None]
        over = np.where(cover > 0, colour, 0) if alpha else colour * cover + 255 * (1 - cover)
        frames.append(np.concatenate([over, 255 * cover], -1).round().astype(np.uint8)[..., : 4 if alpha else 3])
    return frames


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(1e-9, np.square(a.astype(float) - b.astype(float)).mean()))


def over_grey(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 128 * (1 - alpha)


def read_back(path: Path) -> tuple[np.ndarray, list[float]]:
    """Frames (T, H, W, 4) and their durations in milliseconds of an animated picture, as Pillow sees them."""
    from PIL import Image, ImageSequence

    frames, durations = [], []
    with Image.open(path) as image:
        assert image.info["loop"] == 0  # for ever
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGBA")))
            durations.append(frame.info["duration"])
    return np.stack(frames), durations


def decode_alpha(path: Path) -> np.ndarray:  # (T, H, W, 4)
    """VP9 with its second plane, which only the library's own decoder shows."""
    import av

    decoder: Any = av.CodecContext.create("libvpx-vp9", "r")
    with av.open(str(path)) as container:
        packets = container.demux(video=0)
        pictures: list[Any] = [frame for packet in packets for frame in decoder.decode(packet)]
    assert {picture.format.name for picture in pictures} == {"yuva420p"}
    as_rgb: Any = {"format": "rgba", "src_colorspace": "itu709", "dst_colorspace": "itu601"}
    return np.stack([picture.reformat(**as_rgb).to_ndarray() for picture in pictures])


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp", ".apng", ""])
@pytest.mark.parametrize("alpha", [False, True])
def test_films_of_every_kind_keep_frames_colours_and_alpha(tmp_path: Path, suffix: str, alpha: bool) -> None:
    from PIL import Image

    pytest.importorskip("av")
    frames, path = moving_picture(alpha), tmp_path / f"film{suffix}"
    if suffix == ".mp4" and alpha:
        with pytest.raises(InputError, match=r"film\.mp4: an mp4 has no transparency"):
            write_film(path, iter(frames), 12)
        assert list(tmp_path.iterdir()) == []
        return
    write_film(path, iter(frames), 12)
    assert list(tmp_path.iterdir()) == [path]
    if suffix == "":
        read = np.stack([np.asarray(Image.open(path / f"{i:03}.png")) for i in range(5)])
        assert np.array_equal(read, np.stack(frames))
        return
    if suffix in (".mp4", ".webm"):
        read, rate, _ = decode(path)
        assert rate == pytest.approx(12)
        read = decode_alpha(path) if alpha else read
    else:
        read, durations = read_back(path)
        assert sum(durations) == pytest.approx(5 * 1000 / 12, abs=6)
        assert alpha or read[..., 3].min() == 255
        read = read if alpha else read[..., :3]
    assert len(read) == 5
    least = {".mp4": 36, ".webm": 36, ".gif": 34, ".webp": 35, ".apng": 99}[suffix]
    if alpha:
        # Of a GIF only what is quite there or quite gone.
        sure = np.isin(np.stack(frames)[..., 3], (0, 255)) if suffix == ".gif" else slice(None)
        assert psnr(read[..., 3][sure], np.stack(frames)[..., 3][sure]) > 38
        assert psnr(over_grey(read)[sure], over_grey(np.stack(frames))[sure]) > least
    else:
        assert psnr(read, np.stack(frames)) > least


def test_films_as_ffprobe_sees_them(tmp_path: Path) -> None:
    probe = shutil.which("ffprobe")
    if probe is None:
        pytest.skip("ffprobe is not installed")
    for name, alpha, expected in [
        ("a.mp4", False, {"codec_name": "h264", "pix_fmt": "yuv420p", "width": 64, "height": 42, "color_space": "bt709"}),
        ("a.webm", False, {"codec_name": "vp9", "pix_fmt": "yuv420p", "width": 64, "height": 42, "color_space": "bt709"}),
        ("b.webm", True, {"codec_name": "vp9", "width": 64, "height": 42}),
        ("a.gif", True, {"codec_name": "gif", "width": 64, "height": 41}),
        ("a.apng", True, {"codec_name": "apng", "pix_fmt": "rgba", "width": 64, "height": 41}),
    ]:
        write_film(tmp_path / name, iter(moving_picture(alpha, height=41)), 12.5)
        shown = subprocess.run(
            [probe, "-v", "error", "-count_frames", "-show_streams", "-of", "json", tmp_path / name],
            capture_output=True, check=True,
        )  # fmt: skip
        (stream,) = json.loads(shown.stdout)["streams"]
        assert {key: stream[key] for key in expected} == expected
        assert int(stream["nb_read_frames"]) == 5
        assert stream["avg_frame_rate"] == "25/2" or name == "a.gif"
        if name == "b.webm":
            assert stream["tags"]["ALPHA_MODE"] == "1"


def test_a_gif_keeps_even_colours_even_and_time_from_drifting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = moving_picture(False, 24)
    write_film(tmp_path / "a.gif", frames, 24)
    read, durations = read_back(tmp_path / "a.gif")
    assert (read[:, 0, 0, :3] == 255).all()
    assert set(durations) == {40, 50}
    assert sum(durations) == 1000
    assert not caplog.records
    write_film(tmp_path / "fast.gif", frames, 100)
    read, durations = read_back(tmp_path / "fast.gif")
    assert "12 of 24 are left out" in caplog.text
    assert durations == [20] * 12
    assert psnr(read[1, ..., :3], frames[2]) > 34


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "webp", "apng"])
@pytest.mark.parametrize("alpha", [False, True])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, kind: str, alpha: bool) -> None:
    if kind == "mp4" and alpha:
        pytest.skip("an mp4 has no transparency")
    for name in "ab":
        write_film(tmp_path / f"{name}.{kind}", iter(moving_picture(alpha, 6)), 12)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_loops_repeat_a_film_taken_from_a_generator(tmp_path: Path) -> None:
    write_film(tmp_path / "a.webm", iter(moving_picture(False, 3)), 12, loops=2)
    decoded, _, codec = decode(tmp_path / "a.webm")
    assert (len(decoded), codec) == (6, "vp9")
    assert psnr(decoded[:3], decoded[3:]) > 34


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp", ".apng", ""])
def test_an_interrupted_film_leaves_what_was_there(tmp_path: Path, suffix: str) -> None:
    def interrupted() -> Any:
        yield from moving_picture(False, 2)
        raise KeyboardInterrupt

    path = tmp_path / f"film{suffix}"
    write_film(path, moving_picture(False, 1), 12)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(KeyboardInterrupt):
        write_film(path, interrupted(), 12)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_frames_are_encoded_as_they_come(tmp_path: Path) -> None:
    """However long, a film never waits in memory as it came."""
    import weakref

    alive: list[Any] = []

    def frames() -> Any:
        for _ in range(60):
            picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
            alive.append(weakref.ref(picture))
            yield picture
            del picture
            assert sum(reference() is not None for reference in alive) <= 2

    for suffix in (".mp4", ".webp", ".gif"):
        alive.clear()
        write_film(tmp_path / f"a{suffix}", frames(), 12)
        assert len(alive) == 60


def test_bad_films_are_refused(tmp_path: Path) -> None:
    grey = np.zeros((8, 8, 3), np.uint8)
    for name, frames, fps, message in [
        ("a.avi", [grey], 12, r"a\.avi: no kind of film"),
        ("a.webm", [], 12, "no frames"),
        ("a.gif", [], 12, "no frames"),
        ("a.gif", [grey], 0, "0 frames a second"),
        ("a.webm", [grey], math.nan, "frames a second"),
        ("a.webp", [grey, np.zeros((8, 9, 3), np.uint8)], 12, "frame 1 has shape"),
        ("frames", [np.zeros((8, 8, 2), np.uint8)], 12, "frame 0 has shape"),
    ]:
        with pytest.raises(InputError, match=message):
            write_film(tmp_path / name, frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_pictures_round_to_the_nearest_and_replace_a_folder(tmp_path: Path) -> None:
    from PIL import Image

    values = torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 127.5001 / 255, 254.6 / 255, 2.0, float("nan"), 1.0])
    image = values.reshape(2, 1, 4).repeat(1, 3, 1)
    write_png(tmp_path / "a.png", image)
    assert np.asarray(Image.open(tmp_path / "a.png"))[:, 0].tolist() == [[0, 0, 1, 128], [255, 255, 0, 255]]
    write_frames(tmp_path / "f", torch.zeros(12, 4, 4, 4))
    files = write_frames(tmp_path / "f", torch.zeros(11, 4, 4, 4))
    assert sorted((tmp_path / "f").iterdir()) == files
    assert files[10].name == "010.png"
    assert Image.open(files[0]).mode == "RGBA"


def test_contact_sheet_places_pictures_on_white() -> None:
    red = torch.tensor([1.0, 0, 0, 0.5]).expand(20, 30, 4)
    grey = np.full((20, 10), 128, np.uint8)
    plain = contact_sheet([[red, grey], [grey]], gap=2)
    pixels = np.asarray(plain)
    assert pixels.shape == (2 + 2 * 22, 2 + 32 + 12, 3)
    assert pixels[12, 10].tolist() == [255, 127, 127]
    assert pixels[12, 38].tolist() == [128] * 3
    assert (pixels[24:44, 14:] == 255).all()
    labelled = contact_sheet([[red, grey], [grey]], ["first", "second"], columns=["a", "b"], height=40)
    assert labelled.width > plain.width
    assert labelled.height > 2 * 40
    assert (np.asarray(labelled)[:, :8] < 100).any()


def test_side_by_side_holds_the_last_frame_of_a_shorter_panel() -> None:
    frames = flat_frames(3, 20, 20)
    film_frames = side_by_side({"video": frames, "result": frames[:2]})
    assert film_frames.shape[0] == 3
    assert film_frames.dtype == np.uint8
    assert (film_frames[2, -8, -8] == frames[1, 0, 0]).all()
    assert (film_frames[2, -8, 8] == frames[2, 0, 0]).all()
    assert film.to_uint8(film_frames) is film_frames
