"""Generated objects: the same thing from a seed, from rays and from triangles."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from anchor4d.core.cameras import orbit
from anchor4d.core.render.mesh import render_mesh
from anchor4d.training.objects import (
    BOX,
    DECALS,
    ELLIPSOID,
    PAINT,
    PAINT_COLUMNS,
    PARTS,
    SOLIDS,
    Objects,
    generate,
    generate_many,
    meshes,
)
from anchor4d.training.render import render

SEEDS = range(10)


def _single(kind: int, radius: tuple[float, float, float], first: tuple[float, float, float]) -> Objects:
    """One solid at rest, one colour."""
    blank = generate_many([0]).map(torch.zeros_like)
    paint = torch.zeros(1, PARTS, PAINT_COLUMNS)
    paint[..., PAINT["first"]] = paint[..., PAINT["second"]] = torch.tensor(first)
    paint[..., PAINT["reach"]] = 1
    return Objects(
        **{f.name: getattr(blank, f.name) for f in fields(Objects)}
        | {
            "parent": torch.full((1, PARTS), PARTS),
            "turn": torch.eye(3).expand(1, PARTS, 3, 3),
            "axis": torch.tensor([0.0, 1, 0]).expand(1, PARTS, 3),
            "solid_taper": torch.zeros(1, SOLIDS),
            "solid_kind": torch.tensor([[kind] + [-1] * (SOLIDS - 1)]),
            "solid_radius": torch.tensor([[radius] + [(1.0, 1.0, 1.0)] * (SOLIDS - 1)]),
            "paint": paint,
            "decal_part": torch.full((1, DECALS), -1),
            "decal_radius": torch.ones(1, DECALS, 3),
        }
    )


def test_a_seed_gives_the_same_object() -> None:
    many = generate_many([3, 4, 3])
    for field in fields(Objects):
        value = getattr(many, field.name)
        assert torch.equal(value[0], value[2])
        assert torch.equal(value[0], getattr(generate(3), field.name))
    assert not torch.equal(many.paint[0], many.paint[1])


def test_objects_are_unit_sized_and_centred_at_the_start_and_their_motion_loops() -> None:
    for seed in SEEDS:
        first, middle, last = meshes(generate(seed), [0.0, 0.4, 1.0])
        low, high = first.vertices.amin(0), first.vertices.amax(0)
        # A tessellated ellipsoid lies inside of the true one by up to 1 %.
        assert float((high - low).max()) == pytest.approx(1, abs=0.012)
        assert float((high + low).abs().max()) < 0.012
        assert torch.allclose(first.vertices, last.vertices, atol=1e-5)
        assert first.faces is middle.faces
        assert first.textures is middle.textures
        assert float((middle.vertices - first.vertices).norm(dim=-1).max()) < 0.8
    moved = [float((a.vertices - b.vertices).norm(dim=-1).max()) for a, b in (meshes(generate(s), [0.0, 0.3]) for s in SEEDS)]
    assert sum(m > 0.02 for m in moved) > 0.75 * len(moved)


def test_rays_and_triangles_show_the_same_picture() -> None:
    objects = generate_many(SEEDS)
    count = len(objects)
    tau = torch.linspace(0, 0.9, count)
    cameras = orbit(torch.linspace(-170, 170, count), torch.linspace(-30, 60, count), 1.7, 49.1, 64, 64)
    picture, alpha = render(objects, tau, cameras, supersample=3)
    for k in range(count):
        mesh = meshes(objects[k], [float(tau[k])])[0]
        drawn = render_mesh(mesh, cameras[k : k + 1], torch.ones(3), supersample=3)
        assert float((drawn.alpha[0] - alpha[k]).abs().mean()) < 0.004
        assert float((drawn.color[0] - picture[k]).abs().mean()) < 0.006


def test_cameras_follow_the_project() -> None:
    red = _single(BOX, (0.1, 0.1, 0.1), (1.0, 0.0, 0.0))

    def centre_of(position: tuple[float, float, float], azimuth: float, elevation: float) -> tuple[float, float]:
        moved = Objects(
            **{f.name: getattr(red, f.name) for f in fields(Objects)}
            | {"offset": torch.tensor(position).expand(1, PARTS, 3).clone()}
        )
        picture, alpha = render(moved, torch.zeros(1), orbit(azimuth, elevation, 2.0, 49.1, 64, 64))
        assert float(picture[0, 0, 0].min()) == pytest.approx(1)  # white behind
        assert float((picture[0][alpha[0] == 1] - torch.tensor([1.0, 0, 0])).abs().max()) < 1e-6
        row, column = alpha[0].nonzero().float().mean(0).tolist()
        return column - 31.5, 31.5 - row  # right, up

    right, up = centre_of((0.3, 0, 0), 0, 0)
    assert right > 8 and abs(up) < 0.1
    right, up = centre_of((0, 0, 0.3), 90, 0)  # from +X, the front (+Z) is at the left
    assert right < -8 and abs(up) < 0.1
    right, up = centre_of((0, 0, 0.3), 0, 45)  # from above, the front lies lower
    assert abs(right) < 0.1 and up < -5


def test_an_ellipsoid_covers_what_geometry_says() -> None:
    ball = _single(ELLIPSOID, (0.5, 0.5, 0.5), (0.2, 0.4, 0.6))
    _, alpha = render(ball, torch.zeros(1), orbit(30.0, 20.0, 2.0, 49.1, 64, 64), supersample=4)
    focal = 32 / torch.tan(torch.deg2rad(torch.tensor(49.1)) / 2)
    radius = focal * 0.5 / (2.0**2 - 0.5**2) ** 0.5  # of the sphere's outline, pixels
    assert float(alpha.sum()) == pytest.approx(float(torch.pi * radius**2), rel=0.005)
