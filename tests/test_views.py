from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from anchor4d.core.cameras import Cameras, FrontCamera, orbit, quaternion_to_matrix
from anchor4d.core.deformation import DeformationField
from anchor4d.core.gaussians import Gaussians, from_points
from anchor4d.core.render import rasterize
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.sequence import scene_from_gaussians
from anchor4d.core.scene.views import (
    depth_film,
    film_cameras,
    object_cameras,
    render_film,
    render_frames,
    render_maps,
    renders,
    scene_cameras,
    straight_alpha,
    surface_normals,
    turning_cameras,
)

FRONT = FrontCamera(fovy=40.0, distance=2.5, width=48, height=40)


class Sliding(DeformationField):
    """Moves everything along +X by tau / 2."""

    name = "sliding"

    def forward(self, gaussians: Gaussians, tau: torch.Tensor) -> Gaussians:
        moved = gaussians.map(lambda t: t.expand(len(tau), *t.shape))
        return replace(moved, means=moved.means + tau[:, None, None] * torch.tensor([0.5, 0.0, 0.0]))


def ball(flat: bool, radius: float = 0.5, count: int = 1500) -> Gaussians:
    """A closed sphere of Gaussians, thin across the surface or round."""
    i = torch.arange(count) + 0.5
    y, turn = 1 - 2 * i / count, i * math.pi * (3 - 5**0.5)
    ring = (1 - y * y).sqrt()
    normals = torch.stack([ring * turn.cos(), y, ring * turn.sin()], -1)
    # The rotation that takes +Z to the normal, as a half turn about the vector halfway.
    half = torch.nn.functional.normalize(normals + torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    quats = torch.cat([torch.zeros(count, 1), half], -1)
    width = radius * 2.4 / count**0.5
    scales = torch.tensor([width, width, 0.1 * width if flat else width]).expand(count, 3)
    return from_points(radius * normals, normals * 0.5 + 0.5, scales=scales, quats=quats, opacity=0.97)


def test_frames_drawn_several_at_once_are_those_drawn_one_by_one() -> None:
    scene = Scene4D(ball(False, count=200), Sliding(), frames=11, front=FRONT)
    cameras = FRONT.cameras([0.0, 70.0])
    pictures = render_frames(scene, cameras)
    assert pictures.shape == (2, 11, 40, 48, 4)
    for index in (0, 7, 8, 10):
        alone = straight_alpha(rasterize(scene.at(index / 10), cameras))
        torch.testing.assert_close(pictures[:, index], alone, rtol=0, atol=1e-5)


def test_a_film_streams_and_repeats_the_clip_along_a_path() -> None:
    scene = Scene4D(ball(False, count=200), Sliding(), frames=4, front=FRONT)
    cameras, taus = turning_cameras(scene, 32, turns=3)
    done: list[int] = []
    film = render_film(scene, cameras[:, 0], progress=lambda step, steps: done.append(step))
    first = next(film)
    assert done == [1]
    frames = torch.stack([first, *film])
    assert done == list(range(1, 13))
    torch.testing.assert_close(frames, render_frames(scene, cameras, taus)[0], rtol=0, atol=1e-5)
    over = next(render_film(scene, cameras[:1, 0], taus[:1], background=torch.tensor([1.0, 0, 0])))
    alpha = first[..., 3:]
    torch.testing.assert_close(over, first[..., :3] * alpha + (1 - alpha) * torch.tensor([1.0, 0, 0]), rtol=0, atol=1e-5)
    assert len(list(render_film(scene, FRONT.cameras(0.0)))) == 4
    with pytest.raises(ValueError, match="12 frames, but 5 times"):
        next(renders(scene, cameras, taus[:5]))


def test_a_film_of_a_scene_that_is_still_being_fitted_asks_for_no_gradients() -> None:
    gaussians = ball(False, count=50).map(lambda t: t.requires_grad_())
    assert not next(render_film(Scene4D(gaussians, front=FRONT), FRONT.cameras(0.0))).requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("flat", [True, False])
def test_normals_and_depth_of_a_ball(flat: bool) -> None:
    scene = Scene4D(ball(flat), Sliding(), frames=3, front=FRONT)
    camera = orbit([0.0, 130.0], 25.0, 2.5, 30.0, 72, 72)
    (depth, normals), *_ = render_maps(scene, camera)
    assert depth.shape == (2, 72, 72)
    assert normals.shape == (2, 72, 72, 3)
    focal = float(camera.K[0, 1, 1])
    rows, columns = torch.meshgrid(torch.arange(72) + 0.5, torch.arange(72) + 0.5, indexing="ij")
    rays = torch.stack([(columns - 36) / focal, -(rows - 36) / focal, -torch.ones(72, 72)], -1)  # OpenGL
    # Where the ray meets the sphere of radius 0.5 at 2.5 in front of the camera.
    middle = -2.5 * rays[..., 2] / rays.square().sum(-1)
    inside = 0.25 - (6.25 - middle.square() * rays.square().sum(-1))
    length = middle - (inside.clamp_min(0) / rays.square().sum(-1)).sqrt()
    surface = rays * length[..., None]
    expected = (surface - torch.tensor([0.0, 0.0, -2.5])) / 0.5
    core = inside > 0.06  # not the rim
    for view in range(2):
        assert (normals[view] * expected).sum(-1)[core].min() > math.cos(math.radians(15))
        assert (normals[view] * expected).sum(-1)[core].mean() > math.cos(math.radians(5))
        # The nearest of the Gaussians that meet in a pixel leads: up to two of their widths (0.03).
        error = (depth[view] + surface[..., 2]).abs()
        assert error[core].max() < 0.06
        assert error[core].mean() < 0.02
        assert normals[view, 0, 0].tolist() == [0, 0, 0]
        assert depth[view, 0, 0] == 0


def test_normals_turn_with_the_gaussians() -> None:
    for flat in (True, False):
        gaussians = ball(flat, count=400)
        world = (quaternion_to_matrix(gaussians.quats) @ surface_normals(gaussians)[..., None])[..., 0]
        outward = torch.nn.functional.normalize(gaussians.means, dim=-1)
        assert (world * outward).sum(-1).abs().min() > 0.97


def test_what_shines_through_from_behind_hardly_counts_in_depth() -> None:
    front = from_points(torch.tensor([[0.0, 0.0, 0.5]]), torch.ones(1, 3), scales=torch.full((1, 3), 0.3), opacity=0.8)
    back = from_points(torch.tensor([[0.0, 0.0, -0.5]]), torch.ones(1, 3), scales=torch.full((1, 3), 0.3), opacity=0.99)
    scene, camera = Scene4D(Gaussians.cat([front, back])), orbit(0.0, 0.0, 2.0, 40.0, 33, 33)
    depth = next(render_maps(scene, camera))[0][0, 16, 16]
    mean = next(renders(scene, camera)).expected_depth[0, 16, 16]
    assert mean > 1.65
    assert depth == pytest.approx(1.5, abs=0.03)


def test_depth_film_has_one_scale_and_keeps_the_background_black() -> None:
    depth = torch.tensor([[[2.0, 4.0, 0.0]], [[4.0, 8.0, 0.0]]])
    film = depth_film(depth, (depth > 0).float())
    # Inverse depth, from the farthest at 0.1 to the nearest at 1, but for half a percent.
    torch.testing.assert_close(film, torch.tensor([[[1.0, 0.4, 0.0]], [[0.4, 0.1, 0.0]]]), rtol=0, atol=5e-3)
    assert depth_film(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)).max() == 0


def test_scenes_of_other_programs_are_framed_wherever_they_lie() -> None:
    unit = Scene4D(ball(False, count=300))
    far = Scene4D(replace(ball(False, 3.0, 300), means=ball(False, 3.0, 300).means + torch.tensor([9.0, -4.0, 2.0])))
    for cameras in (object_cameras, lambda scene, size, azimuth: scene_cameras(scene, azimuth, size=size)):
        ours, theirs = (render_frames(scene, cameras(scene, 48, 40.0), torch.zeros(1))[0, 0, ..., 3] for scene in (unit, far))
        assert ours.sum() > 100
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.12)
    placed = Scene4D(far.gaussians, front=FRONT)
    assert torch.equal(object_cameras(placed, 48).world_to_camera, FRONT.centred(48).world_to_camera)


def test_films_show_the_object_whole_and_large_enough() -> None:
    def shares(scene: Scene4D) -> tuple[Cameras, list[float]]:
        cameras = film_cameras(scene, [0.0, 90.0])
        taus = torch.zeros(1) if scene.field is None else torch.tensor([0.0, 0.5, 1.0])
        alpha = render_frames(scene, cameras, taus)[..., 3] > 0.5
        seen = alpha.any(1)  # over the clip
        assert not (seen[:, 0] | seen[:, -1]).any() and not (seen[:, :, 0] | seen[:, :, -1]).any()
        assert (cameras.width, cameras.height) == (60, 48)
        sides = [torch.stack([s.any(0).sum() / 60, s.any(1).sum() / 48]).max().item() for s in seen]
        return cameras, sides

    near = FrontCamera(40.0, 2.0, 60, 48)
    cameras, sides = shares(Scene4D(ball(False, count=600), front=near))
    assert torch.equal(cameras.K, near.cameras([0.0, 90.0]).K), "the driving video's framing will do"
    cameras, sides = shares(Scene4D(ball(False, count=600), front=FrontCamera(40.0, 9.0, 60, 48)))
    assert all(0.75 < side < 0.95 for side in sides), sides
    assert torch.equal(cameras.world_to_camera, FrontCamera(40.0, 9.0, 60, 48).cameras([0.0, 90.0]).world_to_camera)
    # Cut by the picture in the driving video: drawn smaller.
    _, sides = shares(Scene4D(ball(False, count=600), front=FrontCamera(25.0, 1.6, 60, 48)))
    assert all(0.75 < side < 0.95 for side in sides), sides
    # Walking out of its place: the whole way is shown.
    small = ball(False, 0.2, 300)
    ways = [replace(small, means=small.means + torch.tensor([x, 0.0, 0.0])) for x in (0.0, 0.4, 0.8)]
    _, sides = shares(replace(scene_from_gaussians(ways), front=near))
    assert sides[0] > 0.75 and sides[1] < sides[0]
