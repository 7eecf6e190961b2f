"""The play stream: sizes, stated errors, and files that are not right."""

from __future__ import annotations

import io
import json
import logging
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anchor4d.bench.moving import moving_sample
from anchor4d.core.deformation.frames import FrameField
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.io.stream import MAX_HEADER, read_stream, write_stream
from anchor4d.core.render import rasterize
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.views import scene_cameras


@pytest.fixture(scope="module")
def packed() -> bytes:
    file = io.BytesIO()
    write_stream(file, moving_sample(500, 4, changing="shape"))
    return file.getvalue()


def with_header(data: bytes, **changes: object) -> bytes:
    """The stream with other header fields."""
    length = struct.unpack("<I", data[8:12])[0]
    text = json.dumps({**json.loads(data[12 : 12 + length]), **changes}).encode()
    return data[:8] + struct.pack("<I", len(text)) + text + data[12 + length :]


def degrees_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    p, q = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (a, b))
    return torch.rad2deg(2 * torch.acos((p * q).sum(-1).abs().clamp(max=1)))


@pytest.mark.parametrize(("changing", "record"), [("motion", 10), ("shape", 12), ("color", 16)])
def test_round_trip_within_stated_errors_and_size(tmp_path: Path, changing: str, record: int):
    scene = moving_sample(3000, 16, changing=changing)
    header = write_stream(tmp_path / "clip.a4d", scene)
    assert sum(words * bits for _, words, bits in header["layout"]) == 8 * record
    assert (tmp_path / "clip.a4d").stat().st_size <= 12 * 3000 * 16

    stream = read_stream(tmp_path / "clip.a4d")
    assert stream.header == json.loads(json.dumps(header))
    assert (len(stream.frames), header["fps"], header["loop"], header["continuous"]) == (16, 12.0, True, True)
    stated = header["errors"]
    assert stated["position"] < 1e-5
    assert stated["rotation"] < (0.3 if changing == "motion" else 1.0)
    assert stated["log_scale"] < 0.012
    assert stated["opacity"] < 0.003
    assert stated["color"] < 1e-3
    for frame, tau in zip(stream.frames, scene.taus):
        real = scene.at(float(tau))
        found = {
            "position": (frame.means - real.means).abs().max(),
            "rotation": degrees_apart(frame.quats, real.quats).max(),
            "log_scale": (frame.log_scales - real.log_scales).abs().max(),
            "opacity": (frame.opacities - real.opacities).abs().max(),
            "color": (frame.colors - real.colors.clamp_min(0)).abs().max(),
        }
        for name, value in found.items():
            assert float(value) <= stated[name] * 1.01 + 1e-6, name


def test_noise_that_cannot_be_deflated_keeps_the_size():
    generator = torch.Generator().manual_seed(0)
    sets = [
        Gaussians(
            means=torch.rand(2000, 3, generator=generator),
            quats=torch.randn(2000, 4, generator=generator),
            log_scales=torch.randn(2000, 3, generator=torch.Generator().manual_seed(1)),
            opacity_logits=torch.randn(2000, generator=torch.Generator().manual_seed(2)),
            sh=torch.randn(2000, 1, 3, generator=torch.Generator().manual_seed(3)),
        )
        for _ in range(16)
    ]
    file = io.BytesIO()
    write_stream(file, Scene4D(sets[0], FrameField.of(sets), 16))
    assert len(file.getvalue()) <= 12 * 2000 * 16


def test_pictures_of_what_was_read_match():
    scene = moving_sample(2000, 4, changing="shape")
    file = io.BytesIO()
    write_stream(file, scene)
    file.seek(0)
    frames = read_stream(file).frames
    cameras = scene_cameras(scene, [0.0, 120.0], 10.0, 160)
    for index in (0, 3):
        real, shown = (rasterize(g, cameras, torch.ones(3)).color for g in (scene.at(float(scene.taus[index])), frames[index]))
        assert float(-10 * (real - shown).square().mean().log10()) > 55


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_colours_that_depend_on_the_view_come_back(tmp_path: Path, degree: int, caplog: pytest.LogCaptureFixture):
    scene = moving_sample(200, 3)
    rest = torch.randn(200, (degree + 1) ** 2 - 1, 3, generator=torch.Generator().manual_seed(0))
    shiny = replace(scene, gaussians=replace(scene.gaussians, sh=torch.cat([scene.gaussians.sh - 0.5, rest], 1)))
    header = write_stream(tmp_path / "a.a4d", shiny)
    frames = read_stream(tmp_path / "a.a4d").frames
    worst = header["harmonics"]["reach"] / 1022 * 1.01
    for frame, tau in zip(frames, scene.taus.tolist()):
        torch.testing.assert_close(frame.sh[:, 1:], shiny.at(tau).sh[:, 1:], rtol=0, atol=worst)
        torch.testing.assert_close(frame.colors, shiny.at(tau).colors, rtol=0, atol=2e-3)
    data = (tmp_path / "a.a4d").read_bytes()
    for wrong in (b'"coefficients":7', b'"coefficients":0'):
        (tmp_path / "b.a4d").write_bytes(
            data.replace(b'"coefficients":%d' % ((degree + 1) ** 2 - 1), wrong.ljust(16 + (degree > 2)))
        )
        with pytest.raises(InputError):
            read_stream(tmp_path / "b.a4d")
    turning = replace(shiny, field=FrameField.of([shiny.gaussians, replace(shiny.gaussians, sh=-shiny.gaussians.sh)]))
    with caplog.at_level(logging.INFO):
        assert "harmonics" not in write_stream(tmp_path / "c.a4d", turning)
    assert "view-dependent colours change over the clip" in caplog.text


def test_retimed_still_and_held_clips(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    scene = moving_sample(200, 8)
    header = write_stream(tmp_path / "a.a4d", scene, 12)
    assert (header["frames"], header["fps"]) == (12, 18.0)
    frames = read_stream(tmp_path / "a.a4d").frames
    assert torch.allclose(frames[6].means, scene.at(0.5).means, atol=1e-4)

    still = Scene4D(replace(scene.gaussians, sh=torch.cat([scene.gaussians.sh, torch.zeros(200, 3, 3)], 1)))
    header = write_stream(tmp_path / "b.a4d", still)
    assert header["frames"] == 1 and "harmonics" not in header
    assert torch.allclose(read_stream(tmp_path / "b.a4d").frames[0].colors, still.gaussians.colors.clamp_min(0), atol=1e-3)

    held = FrameField.of([scene.gaussians, scene.at(0.5)], interpolation="hold")
    assert not write_stream(tmp_path / "c.a4d", Scene4D(scene.gaussians, held, 2))["continuous"]


def test_odd_values_survive(tmp_path: Path):
    """Flat and full Gaussians of other programs, colours beyond 1, quaternions of any length and sign, one point."""
    gaussians = Gaussians(
        means=torch.tensor([[0.5, 0.5, 0.5]] * 3),
        quats=torch.tensor([[-2.0, 0, 0, 0], [0, 0, 0, 3.0], [0.5, -0.5, 0.5, -0.5]]),
        log_scales=torch.tensor([[-1e30, -3.0, -3.0]] * 3),
        opacity_logits=torch.tensor([1e30, -1e30, 0.0]),
        sh=torch.tensor([[[9.0, -9.0, 0.0]]] * 3),
    )
    write_stream(tmp_path / "odd.a4d", Scene4D(gaussians))
    found = read_stream(tmp_path / "odd.a4d").frames[0]
    assert torch.allclose(found.means, gaussians.means, atol=1e-6)
    assert float(degrees_apart(found.quats, gaussians.quats).max()) < 0.3
    assert torch.allclose(found.scales, gaussians.scales, atol=1e-5)
    assert torch.allclose(found.opacities, gaussians.opacities, atol=1e-4)
    assert torch.allclose(found.colors, gaussians.colors.clamp_min(0), atol=1e-3)


@pytest.mark.parametrize(("channels", "kind"), [(3, "image/jpeg"), (4, "image/webp")])
def test_pictures_of_the_video_in_step(channels: int, kind: str):
    from PIL import Image

    film = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 8, 8, channels).clone()
    film[..., 3:] = 1
    file = io.BytesIO()
    header = write_stream(file, moving_sample(50, 3), film=film)
    file.seek(0)
    pictures = read_stream(file).pictures
    assert header["picture_type"] == kind
    shades = [Image.open(io.BytesIO(picture)).convert("RGB").getpixel((4, 4))[0] / 255 for picture in pictures]
    assert shades == pytest.approx([0.0, 0.4, 0.8], abs=0.02)  # a looping clip: thirds of a film of six


def test_unfit_scenes_are_refused(tmp_path: Path):
    scene = moving_sample(50, 2)
    broken = replace(scene.gaussians, means=scene.gaussians.means * float("nan"))
    with pytest.raises(InputError, match="means"):
        write_stream(tmp_path / "x.a4d", Scene4D(broken))
    with pytest.raises(InputError, match="frames"):
        write_stream(tmp_path / "x.a4d", scene, 0)
    with pytest.raises(InputError, match="fewer frames"):
        write_stream(tmp_path / "x.a4d", scene, 1 << 22)
    assert not list(tmp_path.iterdir())


def test_damaged_files_give_one_line(tmp_path: Path, packed: bytes):
    head = 12 + struct.unpack("<I", packed[8:12])[0]
    cases = {
        "not a play stream": b"PK\x03\x04" + packed[4:],
        "version 9": packed[:7] + b"\x09" + packed[8:],
        "header of": packed[:8] + struct.pack("<I", MAX_HEADER + 1) + packed[12:],
        "header is damaged": packed[:12] + b"{" * (head - 12) + packed[head:],
        "more than": with_header(packed, count=1 << 40),
        "too short": with_header(packed, count=1 << 23),
        "cut short": packed[:-40],
        "damaged play": with_header(packed, layout=[["pose", 4, 16]]),
        "no numbers": with_header(packed, box={"low": [0, 0, float("inf")], "high": [1, 1, 1]}),
        "float division": with_header(packed, scales={"low": 0, "step": 0}),
        "wrong length": with_header(packed, count=501),
    }
    for message, data in cases.items():
        (tmp_path / "x.a4d").write_bytes(data)
        with pytest.raises(InputError, match=message) as caught:
            read_stream(tmp_path / "x.a4d")
        assert "\n" not in str(caught.value)
        assert "x.a4d" in str(caught.value)
    with pytest.raises(InputError, match="no such"):
        read_stream(tmp_path / "missing.a4d")


def test_random_damage_never_does_worse(packed: bytes):
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(150):
        data = bytearray(packed)
        for place in torch.randint(0, len(data), (3,), generator=generator).tolist():
            data[place] ^= 1 << int(torch.randint(0, 8, (1,), generator=generator))
        try:
            read_stream(io.BytesIO(bytes(data)))
        except InputError:
            refused += 1
    assert refused > 100  # deflate's checksum finds nearly all
