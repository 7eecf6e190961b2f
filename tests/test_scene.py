"""Scenes: saving, loading, refusing."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes, DeformationField, DeformationMLP, HexPlane
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians, random_gaussians
from anchor4d.core.scene.scene import Scene4D, frame_times

COUNT, FRAMES = 40, 5


@pytest.fixture
def gaussians() -> Gaussians:
    return random_gaussians(COUNT, torch.Generator().manual_seed(0))


def moving_field(name: str, gaussians: Gaussians) -> DeformationField:
    """A small field of each kind with random parameters."""
    torch.manual_seed(1)
    field: DeformationField
    if name == "control-nodes":
        field = ControlNodes.on_surface(gaussians, FRAMES, nodes=8, loop=True, opacity=True)
    elif name == "hexplane":
        field = HexPlane(resolution=4, time_resolution=4, channels=4, width=8, opacity=True)
    else:
        field = DeformationMLP(depth=3, width=16, skip=1)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return field


@pytest.mark.parametrize("name", ["control-nodes", "hexplane", "mlp"])
def test_a_saved_scene_comes_back_whole(tmp_path: Path, gaussians: Gaussians, name: str) -> None:
    scene = Scene4D(
        gaussians,
        moving_field(name, gaussians),
        frames=FRAMES,
        fps=7.5,
        loop=True,
        front=FrontCamera(fovy=31.5, distance=2.25, width=320, height=240, cx=151.25, cy=None, elevation=3.0),
        crop=Crop(3, 4, 200, 320, 240),
        meta={"method": "pla4d", "losses": {"front": [1.0, 0.5]}},
    )
    scene.save(tmp_path / "scene.safetensors")
    loaded = Scene4D.load(tmp_path / "scene.safetensors")
    assert (loaded.frames, loaded.fps, loaded.loop) == (FRAMES, 7.5, True)
    assert (loaded.front, loaded.crop, loaded.meta) == (scene.front, scene.crop, scene.meta)
    for key, tensor in scene.gaussians.tensors().items():
        assert torch.equal(tensor, loaded.gaussians.tensors()[key])
    assert loaded.field is not None
    assert scene.field is not None
    assert loaded.field.config() == scene.field.config()
    times = torch.tensor([0.0, 0.3, 1.0])
    for key, tensor in scene.at(times).tensors().items():
        assert torch.equal(tensor, loaded.at(times).tensors()[key])
    # Training can go on: the same parameters are optimised.
    assert [g.name for g in loaded.field.parameter_groups()] == [g.name for g in scene.field.parameter_groups()]


def test_a_still_scene_without_a_camera_comes_back(tmp_path: Path, gaussians: Gaussians) -> None:
    Scene4D(gaussians).save(tmp_path / "still.safetensors")
    loaded = Scene4D.load(tmp_path / "still.safetensors")
    assert (loaded.field, loaded.front, loaded.crop, loaded.frames) == (None, None, None, 1)
    assert torch.equal(loaded.at(0.5).means, gaussians.means)


def test_equal_scenes_make_equal_files_that_anyone_may_read(tmp_path: Path, gaussians: Gaussians) -> None:
    scene = Scene4D(gaussians, moving_field("control-nodes", gaussians), frames=FRAMES)
    for name in ("a", "b"):
        scene.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_scene_that_cannot_be_saved_leaves_nothing(tmp_path: Path, gaussians: Gaussians) -> None:
    with pytest.raises(TypeError):
        Scene4D(gaussians, meta={"not": object()}).save(tmp_path / "scene.safetensors")
    assert list(tmp_path.iterdir()) == []


def saved(tmp_path: Path, gaussians: Gaussians) -> Path:
    path = tmp_path / "scene.safetensors"
    Scene4D(gaussians, moving_field("control-nodes", gaussians), frames=FRAMES).save(path)
    return path


def rewritten(path: Path, **changes: object) -> None:
    """The same tensors under a changed header; None removes an entry."""
    tensors = load_file(path)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["anchor4d"]
    new = {k: v for k, v in (json.loads(header) | changes).items() if v is not None}
    save_file(tensors, path, metadata={"anchor4d": json.dumps(new)})


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_scene_cut_short_is_refused(tmp_path: Path, gaussians: Gaussians, share: float) -> None:
    path = saved(tmp_path, gaussians)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"scene\.safetensors: not a readable scene file"):
        Scene4D.load(path)


def test_foreign_files_are_refused(tmp_path: Path, gaussians: Gaussians) -> None:
    with pytest.raises(InputError, match=r"gone\.safetensors: no such file"):
        Scene4D.load(tmp_path / "gone.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("not a scene, but long enough to look like a header")
    with pytest.raises(InputError, match="not a readable scene file"):
        Scene4D.load(text)
    weights = tmp_path / "weights.safetensors"
    save_file({"layer.weight": torch.zeros(3)}, weights)
    with pytest.raises(InputError, match="but not an Anchor4D scene"):
        Scene4D.load(weights)


def test_a_newer_scene_is_refused(tmp_path: Path, gaussians: Gaussians) -> None:
    path = saved(tmp_path, gaussians)
    rewritten(path, version=99)
    with pytest.raises(InputError, match=r"99 is newer than this program reads .* update Anchor4D"):
        Scene4D.load(path)


@pytest.mark.parametrize(
    "changes",
    [{"frames": None}, {"field": {"type": "telepathy"}}, {"field": {"type": "mlp"}}, {"front": {"fov": 3}}, {"fps": "fast"}],
)
def test_a_scene_that_lacks_a_part_is_refused(tmp_path: Path, gaussians: Gaussians, changes: dict[str, object]) -> None:
    path = saved(tmp_path, gaussians)
    rewritten(path, **changes)
    with pytest.raises(InputError, match="lacks or garbles a part"):
        Scene4D.load(path)


def test_frame_times_of_open_and_closed_clips() -> None:
    assert frame_times(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert frame_times(4, loop=True).tolist() == [0, 0.25, 0.5, 0.75]
    assert frame_times(1).tolist() == [0]


def test_baking_samples_the_clip(gaussians: Gaussians) -> None:
    scene = Scene4D(gaussians, moving_field("control-nodes", gaussians), frames=FRAMES)
    baked = scene.bake()
    assert len(baked) == FRAMES
    assert torch.equal(baked[2].means, scene.at(0.5).means)
    assert len(scene.bake(9)) == 9
    still = replace(scene, field=None)
    assert torch.equal(still.at(torch.tensor([0.0, 1.0])).means[1], gaussians.means)


def test_a_scene_moved_to_a_device_leaves_the_given_one(gaussians: Gaussians) -> None:
    scene = Scene4D(gaussians, moving_field("hexplane", gaussians), frames=FRAMES)
    moved = scene.to("meta")
    assert moved.gaussians.device.type == "meta"
    assert scene.at(0.5).means.device.type == "cpu"
    assert scene.to("cpu").field is scene.field
