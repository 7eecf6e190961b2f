"""Objects given as Gaussians: read, placed, drawn, aligned and fitted as meshes are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anchor4d.core.align import Target, align_camera, robust_search
from anchor4d.core.cameras import Crop, FrontCamera, orbit
from anchor4d.core.files import InputError
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import Gaussians, from_points, half_turn
from anchor4d.core.io import write_ply, write_splats
from anchor4d.core.io.meshes import write_glb
from anchor4d.core.io.objects import load_object
from anchor4d.core.io.video import load_video
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import stages
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.mesh import MeshMatch
from anchor4d.core.objectives.rigidity import Rigidity
from anchor4d.core.render import rasterize
from anchor4d.core.runs.sample import sample_meshes, write_sample
from anchor4d.core.runs.session import Settings, run, run_in_folder
from anchor4d.core.scene.object3d import SplatObject, bounding_points, render_object
from anchor4d.core.scene.views import render_frames
from anchor4d.core.schedules import constant
from anchor4d.core.video import DrivingVideo

SIZE = 128
#: As the sample's, at this size.
FRONT = FrontCamera(fovy=38.0, distance=2.35, width=SIZE, height=SIZE, cx=60.5, cy=66.75)


@pytest.fixture(scope="module")
def character() -> Mesh:
    return sample_meshes(1)[0]


@pytest.fixture(scope="module")
def sampled(character: Mesh) -> SplatObject:
    """Gaussians laid on the sample's mesh."""
    return SplatObject.of(stages.gaussians_on_mesh(character, 6000)[0], "sampled")


@pytest.fixture(scope="module")
def fitted(character: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's mesh as a splat file such as another program makes: Gaussians that look like it from everywhere."""
    config = stages.StaticConfig(
        8000,
        Schedule(steps=60, resolutions=((1.0, 256),)),
        (MeshMatch(weight=constant(1e4), views=2, mask=0.3, perceptual=0.0),),
    )
    front = FrontCamera(fovy=40.0, distance=2.0, width=SIZE, height=SIZE)
    path = tmp_path_factory.mktemp("splats") / "character.ply"
    write_ply(path, stages.fit_static(filmed(character, front), character, front, config).gaussians)
    return path


def filmed(mesh: Mesh, front: FrontCamera) -> DrivingVideo:
    crop = Crop(0, 0, front.width, front.width, front.height)
    picture = render_object(mesh, front.cropped(crop, front.width), supersample=4)
    color = picture.color / picture.alpha[..., None].clamp_min(1e-6)
    return DrivingVideo(frames=color.clamp(0, 1), masks=picture.alpha, fps=12.0, crop=crop, source="synthetic")


def box(points: Tensor) -> Tensor:
    return torch.stack([points.amin(0), points.amax(0)])


# Reading


def test_a_splat_file_is_told_from_a_mesh_file(character: Mesh, sampled: SplatObject, tmp_path: Path) -> None:
    import trimesh

    write_ply(tmp_path / "splats.ply", sampled.gaussians)
    trimesh.Trimesh(character.vertices.numpy(), character.faces.numpy(), process=False).export(tmp_path / "mesh.ply")
    write_glb(tmp_path / "mesh.glb", character)
    splats = load_object(tmp_path / "splats.ply")
    assert isinstance(splats, SplatObject)
    assert splats.name == str(tmp_path / "splats.ply")
    # The file's frame has +Y down; ours is back.
    torch.testing.assert_close(splats.gaussians.means, sampled.gaussians.means)
    torch.testing.assert_close(splats.gaussians.colors, sampled.gaussians.colors)
    for name in ("mesh.ply", "mesh.glb"):
        assert isinstance(load_object(tmp_path / name), Mesh)
    for name in ("a.compressed.ply", "a.spz", "a.splat"):
        write_splats(tmp_path / name, sampled.gaussians)
        packed = load_object(tmp_path / name)
        assert isinstance(packed, SplatObject)
        torch.testing.assert_close(box(packed.gaussians.means), box(sampled.gaussians.means), rtol=0, atol=1e-3)


def test_the_hosts_splats_are_read(sampled: SplatObject) -> None:
    turned = half_turn(sampled.gaussians)
    read = SplatObject.from_arrays(
        turned.means, turned.scales, turned.quats, turned.opacities[:, None], torch.cat([turned.sh] * 4, 1), "splat"
    )
    torch.testing.assert_close(read.gaussians.means, sampled.gaussians.means)
    torch.testing.assert_close(read.gaussians.scales, sampled.gaussians.scales)
    torch.testing.assert_close(read.gaussians.opacities, sampled.gaussians.opacities)
    here, there = (rasterize(item.gaussians, orbit([30.0], 10.0, 2.0, 40.0, 64, 64)).color for item in (read, sampled))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="not numbers"):
        SplatObject.from_arrays(turned.means / 0, turned.scales, turned.quats, turned.opacities, turned.sh)


def test_what_cannot_be_an_object_is_refused(sampled: SplatObject, tmp_path: Path) -> None:
    for name in ("gone.ply", "gone.spz", "gone.sog"):
        with pytest.raises(InputError, match=f"{name}: no such"):
            load_object(tmp_path / name)
    (tmp_path / "packed.ply").write_bytes(
        b"ply\nformat binary_little_endian 1.0\nelement chunk 1\nproperty float min_x\nelement vertex 1\n"
        b"property uint packed_position\nend_header\n" + bytes(8)
    )
    with pytest.raises(InputError, match="compressed ply of a kind that is not known, save it uncompressed"):
        load_object(tmp_path / "packed.ply")
    clear = replace(sampled.gaussians, opacity_logits=torch.full((6000,), -9.0))
    with pytest.raises(InputError, match="all its Gaussians are transparent"):
        SplatObject.of(clear, "clear")
    one = sampled.gaussians.select(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="coincide"):
        SplatObject.of(replace(one, log_scales=torch.full((3, 3), -1e30)), "one").normalized()


def test_colours_that_depend_on_the_view_are_reduced(sampled: SplatObject) -> None:
    sh = torch.cat([sampled.gaussians.sh, torch.ones(6000, 3, 3)], 1)
    assert SplatObject.of(replace(sampled.gaussians, sh=sh)).gaussians.sh.shape == (6000, 1, 3)


# Placing


def test_placed_as_the_mesh_is(character: Mesh, sampled: SplatObject) -> None:
    assert (box(bounding_points(sampled)) - box(bounding_points(character))).abs().max() < 5e-3
    matrix = torch.diag(torch.tensor([0.2, 0.2, 0.2, 1.0]))
    matrix[:3, 3] = torch.tensor([-3.0, 1.0, 0.4])
    moved = sampled.turned(37.0).transformed(matrix)
    again, undo = moved.normalized()
    assert float((box(again.bounding)[1] - box(again.bounding)[0]).max()) == pytest.approx(1, abs=1e-4)
    assert box(again.bounding).sum(0).abs().max() < 1e-4
    torch.testing.assert_close(moved.vertices @ undo[:3, :3].T + undo[:3, 3], again.vertices)
    same = character.turned(37.0).normalized()[0]
    assert (box(again.bounding) - box(bounding_points(same))).abs().max() < 5e-3


def test_floaters_and_fog_do_not_count(sampled: SplatObject) -> None:
    generator = torch.Generator().manual_seed(0)
    floaters = from_points(6 * torch.randn(12, 3, generator=generator) + 4, torch.rand(12, 3), scales=torch.full((12, 3), 0.02))
    floaters = replace(floaters, opacity_logits=torch.full((12,), 3.0))
    fog = from_points(2 * torch.rand(500, 3, generator=generator) - 1, torch.rand(500, 3), opacity=0.02)
    dirty = SplatObject.of(Gaussians.cat([sampled.gaussians, floaters, fog]))
    torch.testing.assert_close(box(dirty.bounding), box(sampled.bounding), atol=1e-5, rtol=0)
    assert int(dirty.solid.sum()) == 6000


def test_turning_the_object_is_turning_the_camera_back(sampled: SplatObject) -> None:
    here = render_object(sampled.turned(90.0), orbit([90.0], 0.0, 2.0, 40.0, 64, 64))
    there = render_object(sampled, orbit([0.0], 0.0, 2.0, 40.0, 64, 64))
    assert (here.color - there.color).abs().max() < 0.02


# Drawing


def test_drawn_as_the_mesh_is(character: Mesh, sampled: SplatObject) -> None:
    cameras = orbit([0.0, 120.0], 15.0, 2.0, 40.0, 96, 96)
    white = torch.ones(3)
    mine, truth = render_object(sampled, cameras, white, supersample=3), render_object(character, cameras, white, supersample=3)
    inside, covered = truth.alpha > 0.5, mine.alpha > 0.5
    assert float((inside & covered).sum() / (inside | covered).sum()) > 0.9
    assert float((mine.color - truth.color)[inside].abs().mean()) < 0.08
    assert float((mine.depth - truth.depth)[inside & covered].abs().mean()) < 0.02
    plain = rasterize(sampled.gaussians, cameras, white)
    torch.testing.assert_close(render_object(sampled, cameras, white, supersample=1).color, plain.color, atol=1e-5, rtol=0)


def test_thinned_to_a_number_that_covers_as_much(sampled: SplatObject) -> None:
    few = sampled.thinned(1500, seed=3)
    assert len(few) == 1500
    torch.testing.assert_close(few.means, sampled.thinned(1500, seed=3).means)
    assert not torch.equal(few.means, sampled.thinned(1500, seed=4).means)
    cameras = orbit([0.0, 90.0], 0.0, 2.0, 40.0, 96, 96)
    area = rasterize(sampled.gaussians, cameras).alpha.sum()
    assert float(rasterize(few, cameras).alpha.sum() / area) == pytest.approx(1, abs=0.08)
    assert sampled.thinned(9000).means is sampled.gaussians.means
    # As some programs store flat and fully opaque ones.
    hard = replace(sampled.gaussians, log_scales=torch.full((6000, 3), -1e30), opacity_logits=torch.full((6000,), 1e30))
    start = SplatObject(hard, sampled.solid).thinned(9000)
    assert start.scales.min() > 0 and start.opacities.max() < 1


# Alignment and fits


def test_splats_lead_to_the_camera_that_the_mesh_leads_to(character: Mesh, fitted: Path) -> None:
    video = filmed(character, FRONT)
    splats = load_object(fitted)
    placed, matrix = splats.normalized()
    found, _, _ = robust_search(placed, Target.of(video))
    scale = float(matrix[0, 0])  # the two objects' longest sides differ by this
    assert scale == pytest.approx(1, abs=0.02)
    assert found.extent == pytest.approx(scale * FRONT.extent, rel=3e-3)
    assert found.distance == pytest.approx(scale * FRONT.distance, rel=5e-2)
    assert (found.cx, found.cy) == (pytest.approx(FRONT.cx, abs=0.3), pytest.approx(FRONT.cy, abs=0.3))


def test_the_front_of_splats_is_found(character: Mesh, fitted: Path) -> None:
    turned = load_object(fitted).turned(70.0)
    aligned = align_camera(turned, filmed(character, FRONT))
    assert (aligned.yaw + 70.0 + 180) % 360 - 180 == pytest.approx(0, abs=1.5)
    assert isinstance(aligned.mesh, SplatObject)


def tiny() -> stages.MethodConfig:
    front = ReferenceViewLoss(weight=constant(1.0), perceptual=0.0)
    match = MeshMatch(weight=constant(1.0), views=1, perceptual=0.0)
    return stages.MethodConfig(
        name="tiny",
        camera="focal",
        resolution=64,
        static=stages.StaticConfig(2000, Schedule(steps=20, resolutions=((1.0, 64),)), (front, match)),
        motion=stages.MotionConfig(
            field="control-nodes",
            fields={"control-nodes": {"nodes": 20}},
            schedule=Schedule(steps=15, resolutions=((1.0, 48),)),
            objectives=(front, match, Rigidity(weight=constant(1.0))),
        ),
    )


def test_a_whole_run_from_splats_reaches_what_the_mesh_reaches(fitted: Path, tmp_path: Path) -> None:
    case = write_sample(tmp_path / "case", 3, 64)
    video = load_video(case / "front", resolution=64)
    settings = Settings(yaw=0.0, device="cpu", prior="none")
    scores = {}
    for name, path in (("mesh", case / "mesh.glb"), ("splats", fitted)):
        done = run(video, load_object(path), settings, config=tiny())
        seen = render_frames(done.scene, done.alignment.front.cropped(video.crop, video.resolution))[0]
        wanted = torch.cat([video.premultiplied, video.masks[..., None]], -1)
        got = torch.cat([seen[..., :3] * seen[..., 3:], seen[..., 3:]], -1)
        scores[name] = [-10 * math.log10(float((a - b).square().mean())) for a, b in zip(got, wanted)]
    assert scores["splats"][0] > scores["mesh"][0] - 0.5
    assert sum(scores["splats"]) / 3 > sum(scores["mesh"]) / 3 - 0.5


def test_from_file_to_file(fitted: Path, tmp_path: Path) -> None:
    case = write_sample(tmp_path / "case", 2, 48)
    config = tiny()
    config = replace(
        config,
        static=replace(config.static, gaussians=300, schedule=Schedule(steps=1, resolutions=((1.0, 32),))),
        motion=replace(config.motion, schedule=Schedule(steps=1, resolutions=((1.0, 32),))),
    )
    settings = Settings(yaw=0.0, device="cpu", prior="none")
    done = run_in_folder(case / "front", fitted, tmp_path / "out", settings, config=config)
    assert done is not None
    count = len(load_object(fitted).vertices)
    assert done.report["object"] == {"name": str(fitted), "gaussians": count, "coloured": True}
    assert done.report["gaussians"] == 300
    assert run_in_folder(case / "front", fitted, tmp_path / "out", settings, config=config, resume=True) is None


def test_given_splats_are_the_target_of_the_mesh_objective(sampled: SplatObject, character: Mesh) -> None:
    inputs = Inputs(video=filmed(character, FRONT), taus=torch.zeros(1), fronts=[FRONT], meshes=[sampled])
    # Normals and depth too, which a user may have asked for: Gaussians have no normals to compare.
    match = MeshMatch(weight=constant(1.0), views=2, perceptual=0.0, depth=1.0, normals=0.3)
    schedule = Schedule(steps=1, resolutions=((1.0, 48),))

    def loss(gaussians: Gaussians) -> float:
        state = run_fit("match", FitState(gaussians), (match,), schedule, inputs, train="gaussians")
        return state.losses["mesh"][0]

    assert loss(sampled.gaussians) < 1e-8
    assert loss(replace(sampled.gaussians, sh=torch.zeros_like(sampled.gaussians.sh))) > 5e-3
    assert loss(replace(sampled.gaussians, means=sampled.gaussians.means + 0.05)) > 5e-3
