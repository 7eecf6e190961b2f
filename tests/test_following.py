"""Motion by tracking alone: what is followed, what is refused, and that fits start with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_pla4d import TINY
from torch import Tensor

from anchor4d.core.align.flow import lucas_kanade
from anchor4d.core.cameras import FrontCamera
from anchor4d.core.deformation import ControlNodes, HexPlane
from anchor4d.core.deformation.arap import RigidGraph
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import from_points
from anchor4d.core.methods import pla4d
from anchor4d.core.methods.following import Following, carried_over, follow
from anchor4d.core.methods.registry import METHODS, Choice
from anchor4d.core.priors.motion import MotionPrior
from anchor4d.core.runs.sample import write_sample
from anchor4d.core.runs.session import Settings, run_in_folder
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.views import render_frames
from anchor4d.core.video import DrivingVideo, continued

FRONT = FrontCamera(fovy=40.0, distance=2.0, width=96, height=96)


def rotated(angle: float) -> np.ndarray:
    """About z, degrees."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def block(count: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Nodes on a grid 1 x 0.5 x 0.25, and the pairs of neighbours."""
    x, y, z = np.meshgrid(np.linspace(-0.5, 0.5, count), np.linspace(-0.25, 0.25, 5), [-0.1, 0.1], indexing="ij")
    nodes = np.stack([x, y, z], -1).reshape(-1, 3)
    apart = np.linalg.norm(nodes[:, None] - nodes[None], axis=-1)
    i, j = np.nonzero(np.triu(apart < 0.21, 1))
    return nodes, np.stack([i, j], 1)


def test_a_rigid_motion_costs_nothing_and_is_found_from_some_nodes() -> None:
    nodes, pairs = block()
    graph, turn = RigidGraph(nodes, pairs), rotated(30)
    moved = nodes @ turn.T + np.array([0.2, -0.1, 0.3])
    assert np.allclose(graph.rotations(moved[None])[0], turn, atol=1e-12)
    pull = np.zeros((1, len(nodes)))
    pull[0, ::4] = 10.0
    found = graph.solve(nodes[None], moved[None], pull + 1e-9, pull + 1e-9, 100)[0]
    assert np.abs(found - moved).max() < 1e-3


def test_frames_are_solved_each_for_itself() -> None:
    nodes, pairs = block(5)
    graph, generator = RigidGraph(nodes, pairs), np.random.default_rng(0)
    start, goal = (nodes + generator.normal(0, 0.05, (3, *nodes.shape)) for _ in range(2))
    pull, ahead = generator.uniform(0.1, 2, (2, 3, len(nodes)))
    together = graph.solve(start, goal, pull, ahead, 5)
    alone = [graph.solve(start[t : t + 1], goal[t : t + 1], pull[t : t + 1], ahead[t : t + 1], 5)[0] for t in range(3)]
    assert np.allclose(together, np.stack(alone), atol=1e-12)


def cloud(size: int, cells: int) -> Tensor:
    """Smooth random colours, (size, size, 3)."""
    rough = torch.rand(1, 3, cells, cells, generator=torch.Generator().manual_seed(0))
    return F.interpolate(rough, (size, size), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 1)


@pytest.mark.parametrize("move", [(3.0, -2.0), (9.0, 5.0)])
def test_our_own_flow_finds_how_a_picture_moved(move: tuple[float, float]) -> None:
    size, picture = 96, cloud(96, 20)
    at = torch.arange(size) + 0.5
    x, y = (at - move[0]) * 2 / size - 1, (at[:, None] - move[1]) * 2 / size - 1
    grid = torch.stack(torch.broadcast_tensors(x[None], y), -1)[None]
    second = F.grid_sample(picture.permute(2, 0, 1)[None], grid, padding_mode="border", align_corners=False)
    found = lucas_kanade(picture, second[0].permute(1, 2, 0))
    assert (found - torch.tensor(move))[16:-16, 16:-16].norm(dim=-1).mean() < 0.1


def textured(count: int = 3000) -> Scene4D:
    """A coloured slab whose upper half can bend, seen from the front."""
    generator = torch.Generator().manual_seed(1)
    points = (torch.rand(count, 3, generator=generator) - 0.5) * torch.tensor([0.3, 1.0, 0.2])
    waves = torch.stack([(37 * points[:, 0]).sin(), (29 * points[:, 1]).sin(), (23 * points.sum(-1)).cos()], -1)
    gaussians = from_points(points, 0.5 + 0.45 * waves, scales=torch.full((count, 3), 0.014), opacity=0.95)
    return Scene4D(gaussians, frames=5, front=FRONT)


def bent(scene: Scene4D) -> Scene4D:
    """The slab with its upper half turning by 10 degrees a frame about its middle, towards the picture's left."""
    field = ControlNodes.on_surface(scene.gaussians, scene.frames, nodes=120)
    rest = field.node_positions.double().numpy()
    positions, turns = [], []
    for t in range(scene.frames):
        share = np.clip(rest[:, 1] / 0.1, 0, 1)
        each = np.stack([rotated(10.0 * t * s) for s in share])
        positions.append((each @ rest[..., None])[..., 0])
        turns.append(each)
    field.set_motion(torch.from_numpy(np.stack(positions)), torch.from_numpy(np.stack(turns)))
    return replace(scene, field=field)


def filmed(scene: Scene4D, size: int = 96) -> DrivingVideo:
    from anchor4d.core.cameras import Crop

    crop = Crop(0, 0, size, size, size)
    rgba = render_frames(scene, FRONT.cropped(crop, size))[0]
    return DrivingVideo(continued(rgba[..., :3], rgba[..., 3]), rgba[..., 3], 12.0, crop)


@pytest.fixture(scope="module")
def slab() -> tuple[Scene4D, Scene4D, DrivingVideo]:
    still = textured()
    truth = bent(still)
    return still, truth, filmed(truth)


def missed(scene: Scene4D, truth: Scene4D) -> list[float]:
    """Root mean square distance of the Gaussians' centres at each frame."""
    return [
        float((scene.at(float(t)).means - truth.at(float(t)).means).detach().square().sum(-1).mean().sqrt()) for t in truth.taus
    ]


def test_nodes_go_where_the_video_shows(slab: tuple[Scene4D, Scene4D, DrivingVideo]) -> None:
    still, truth, video = slab
    field = ControlNodes.on_surface(still.gaussians, still.frames, nodes=150)
    seen: list[tuple[int, int]] = []

    def progress(stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        seen.append((step, steps))
        assert preview().shape == (96, 192, 3)

    follow(video, still, [FRONT], field, Following(), flow=lucas_kanade, progress=progress)
    found = missed(replace(still, field=field), truth)
    frozen = missed(still, truth)
    assert found[0] < 1e-6  # the first frame is the object as it is
    assert found[-1] < 0.25 * frozen[-1]  # of 14 % of the slab, 40 degrees
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5] and {steps for _, steps in seen} == {5}


def test_with_the_prior_the_picture_is_followed_as_well(slab: tuple[Scene4D, Scene4D, DrivingVideo]) -> None:
    still, truth, video = slab
    field = ControlNodes.on_surface(still.gaussians, still.frames, nodes=150)
    follow(video, still, [FRONT], field, Following(MotionPrior()), flow=lucas_kanade)
    found = replace(still, field=field.requires_grad_(False))
    assert missed(found, truth)[0] < 1e-4
    across = (found.at(1.0).means - truth.at(1.0).means)[:, :2].detach().square().sum(-1).mean().sqrt()
    assert across < 0.25 * missed(still, truth)[-1]


def test_a_frame_whose_mask_is_empty_is_passed_over(slab: tuple[Scene4D, Scene4D, DrivingVideo]) -> None:
    still, _, video = slab
    masks = video.masks.clone()
    masks[2] = 0
    field = ControlNodes.on_surface(still.gaussians, still.frames, nodes=60)
    follow(replace(video, masks=masks), still, [FRONT], field, Following(), flow=lucas_kanade)
    assert all(bool(p.isfinite().all()) for p in field.parameters())


def test_a_field_takes_another_s_motion(slab: tuple[Scene4D, Scene4D, DrivingVideo]) -> None:
    still, truth, _ = slab
    fewer = replace(still, gaussians=still.gaussians.select(torch.arange(0, len(still.gaussians), 3)))
    field = ControlNodes.on_surface(fewer.gaussians, fewer.frames, nodes=80)
    assert carried_over(truth, field, fewer)
    wanted = replace(truth, gaussians=fewer.gaussians, field=truth.field.select(torch.arange(0, len(still.gaussians), 3)))  # pyright: ignore[reportOptionalMemberAccess]
    assert missed(replace(fewer, field=field), wanted)[-1] < 0.03
    assert not carried_over(truth, HexPlane.build(still), still)


def test_only_methods_that_have_it_take_the_preset() -> None:
    assert [name for name, method in METHODS.items() if "preview" in method.presets] == ["pla4d"]
    with pytest.raises(InputError, match="preset 'preview': of method pla4d, align4d has none; choose one of draft"):
        METHODS["align4d"].check(Choice("preview"))
    assert pla4d.preset("preview", without=("motion-prior",)).motion.following == Following()
    settings = Settings(preset="preview").resolved(has_object=True)
    assert (settings.prior, settings.models()) == ("none", {})


def test_a_fit_goes_on_from_its_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--resume with another preset starts with the preview's motion, resumes to the same, and is then finished."""
    case = write_sample(tmp_path / "case", 12, 96)
    for picture in sorted((case / "front").iterdir())[4:]:
        picture.unlink()
    small = replace(
        TINY,
        static=replace(TINY.static, density=None),
        motion=replace(TINY.motion, schedule=replace(TINY.motion.schedule, steps=4)),
    )
    monkeypatch.setitem(pla4d._OURS, "draft", lambda more: small)

    def fitted(preset: str, out: str, resume: bool = True, **more: object):
        settings = Settings(preset=preset, prior="none", yaw=0.0)
        return run_in_folder(case / "front", case / "mesh.glb", tmp_path / out, settings, resume=resume, **more)  # pyright: ignore[reportArgumentType]

    preview = fitted("preview", "a")
    assert preview is not None and preview.scene.field is not None
    assert set(preview.report["losses"]) == {"frame to 3D"} and preview.report["losses"]["frame to 3D"] == {}
    assert fitted("preview", "a") is None
    (tmp_path / "b").mkdir()
    for file in (tmp_path / "a").iterdir():
        (tmp_path / "b" / file.name).write_bytes(file.read_bytes())

    refined = fitted("draft", "a")
    assert refined is not None and "follow frame by frame" not in refined.report["losses"]
    assert fitted("draft", "a") is None  # finished

    class Stop(Exception):
        pass

    def stopping(stage: str, step: int, *rest: object) -> None:
        if stage == "3D to 4D" and step == 2:
            raise Stop

    with pytest.raises(Stop):
        fitted("draft", "b", progress=stopping)
    again = fitted("draft", "b")
    assert again is not None
    assert (tmp_path / "a" / "scene.safetensors").read_bytes() == (tmp_path / "b" / "scene.safetensors").read_bytes()
    plain = fitted("draft", "c")
    assert plain is not None and "follow frame by frame" in plain.report["losses"]


def test_a_camera_that_moves_does_not_move_the_object(slab: tuple[Scene4D, Scene4D, DrivingVideo]) -> None:
    still, _, video = slab
    fronts = [replace(FRONT, elevation=4.0 * t) for t in range(len(video))]
    rgba = torch.cat([render_frames(still, front.cropped(video.crop, 96), torch.zeros(1))[0] for front in fronts])
    film = replace(video, frames=continued(rgba[..., :3], rgba[..., 3]), masks=rgba[..., 3])
    moved = []
    for cameras in (fronts, fronts[:1]):
        field = ControlNodes.on_surface(still.gaussians, still.frames, nodes=100)
        follow(film, still, cameras, field, Following(), flow=lucas_kanade)
        moved.append(missed(replace(still, field=field), still)[-1])
    assert moved[0] < 0.02 and moved[0] < 0.4 * moved[1]
