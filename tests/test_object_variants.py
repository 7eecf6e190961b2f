"""One textured object as other programs write it: fitted, it is the same scene, or the user is warned."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gltf_files import GltfFile
from PIL import Image

from anchor4d.core.files import InputError
from anchor4d.core.fit.loop import Schedule
from anchor4d.core.io.objects import load_object
from anchor4d.core.io.video import load_video
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import stages
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.mesh import MeshMatch
from anchor4d.core.objectives.rigidity import Rigidity
from anchor4d.core.render import rasterize
from anchor4d.core.render.mesh import render_mesh
from anchor4d.core.runs.sample import CAMERA, sample_meshes, write_sample
from anchor4d.core.runs.session import Run, Settings, run
from anchor4d.core.schedules import constant
from anchor4d.core.video import DrivingVideo

SIZE, FRAMES = 64, 3


def written(mesh: Mesh, path: Path, variant: str) -> Path:
    """The mesh as a GLB: "plain" floats; "quantised" as 16-bit integers below a node that scales them back
    (KHR_mesh_quantization); "unmaterial" with texture coordinates and no material; "z up" with +Z up and its front at -Y."""
    assert mesh.uvs is not None
    points, uvs = mesh.vertices.numpy().astype("<f4"), mesh.uvs.numpy().astype("<f4")
    file, node = GltfFile(), dict[str, Any]()
    if variant == "z up":
        points = np.ascontiguousarray(points[:, [0, 2, 1]] * np.array([1, -1, 1], "<f4"))
    if variant == "quantised":
        file.header |= {name: ["KHR_mesh_quantization"] for name in ("extensionsUsed", "extensionsRequired")}
        side = float(np.abs(points).max())
        packed = np.zeros((len(points), 4), "<i2")  # rows of a vertex buffer are multiples of four bytes
        packed[:, :3] = (points / side * 32767).round()
        view = file.view(packed.tobytes(), byteStride=8, target=34962)
        position = file.add("accessors", bufferView=view, componentType=5122, normalized=True, count=len(points), type="VEC3")
        texcoord = file.accessor((uvs * 65535).round().clip(0, 65535).astype("<u2"), normalized=True)
        node = {"scale": [side] * 3}
    else:
        position, texcoord = file.accessor(points), file.accessor(uvs)
    primitive: dict[str, Any] = {
        "attributes": {"POSITION": position, "TEXCOORD_0": texcoord},
        "indices": file.accessor(mesh.faces.numpy().reshape(-1).astype("<u4")),
    }
    if variant != "unmaterial":
        picture = io.BytesIO()
        Image.fromarray((mesh.textures[0][..., :3] * 255).round().byte().numpy()).save(picture, "PNG")
        primitive["material"] = file.material(file.texture(picture.getvalue()), metallicFactor=0.0)
    file.node([primitive], **node)
    return file.write(path)


def tiny() -> stages.MethodConfig:
    front = ReferenceViewLoss(weight=constant(1.0), perceptual=0.0)
    match = MeshMatch(weight=constant(1.0), views=1, perceptual=0.0)
    return stages.MethodConfig(
        name="tiny",
        camera="focal",
        resolution=SIZE,
        static=stages.StaticConfig(2000, Schedule(steps=20, resolutions=((1.0, SIZE),)), (front, match)),
        motion=stages.MotionConfig(
            field="control-nodes",
            fields={"control-nodes": {"nodes": 20}},
            schedule=Schedule(steps=10, resolutions=((1.0, 48),)),
            objectives=(front, match, Rigidity(weight=constant(1.0))),
        ),
    )


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> DrivingVideo:
    return load_video(write_sample(tmp_path_factory.mktemp("variants") / "case", FRAMES, SIZE) / "front", resolution=SIZE)


def fitted(film: DrivingVideo, path: Path, up: str = "y") -> Run:
    return run(film, load_object(path, up), Settings(yaw=0.0, device="cpu", prior="none"), config=tiny())


@torch.no_grad()
def score(done: Run, truth: Mesh) -> float:
    """PSNR in dB of four views of the first frame on white, three of them unseen in the film."""
    assert done.alignment is not None
    azimuths = torch.tensor([0.0, 75.0, 165.0, -75.0])
    wanted = render_mesh(truth, CAMERA.cameras(azimuths).resized(SIZE, SIZE), torch.ones(3), supersample=2).color
    cameras = done.alignment.front.cameras(azimuths).resized(SIZE, SIZE)
    got = rasterize(done.scene.at(0.0), cameras, torch.ones(3)).color
    return -10 * math.log10(float((got - wanted).square().mean()))


@pytest.fixture(scope="module")
def plain(film: DrivingVideo, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fitted(film, written(sample_meshes(1)[0], tmp_path_factory.mktemp("plain") / "a.glb", "plain"))


def test_quantised_and_z_up_objects_give_the_scene_of_the_plain_one(plain: Run, film: DrivingVideo, tmp_path: Path) -> None:
    mesh = sample_meshes(1)[0]
    usual = score(plain, mesh)
    assert usual > 18 and plain.report["verdict"]["word"] == "good"
    for variant, up in (("quantised", "y"), ("z up", "z")):
        done = fitted(film, written(mesh, tmp_path / "a.glb", variant), up)
        assert score(done, mesh) == pytest.approx(usual, abs=0.3), variant
        assert done.report["verdict"]["word"] == "good", variant


def test_an_object_that_is_not_upright_is_warned_of(
    film: DrivingVideo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(sample_meshes(1)[0], tmp_path / "a.glb", "z up")
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match="--up"):
        run(film, load_object(path), Settings(yaw=0.0, device="cpu", prior="none"), config=tiny(), strict=True)


def test_an_object_without_a_material_is_warned_of(
    plain: Run, film: DrivingVideo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mesh = sample_meshes(1)[0]
    with caplog.at_level(logging.WARNING):
        done = fitted(film, written(mesh, tmp_path / "a.glb", "unmaterial"))
    assert done.report["object"]["coloured"] is False
    assert "has no colours" in caplog.text
    assert score(done, mesh) > score(plain, mesh) - 1.5  # the sides that the frame does not see continue its colours
