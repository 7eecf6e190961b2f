"""An object from a picture's outline: closed, faces outwards, shows the picture, and does not repeat it on its back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from anchor4d.core.cameras import orbit
from anchor4d.core.files import InputError
from anchor4d.core.generate.inflate import NEARER, inflate, nearer_end
from anchor4d.core.mesh import Mesh
from anchor4d.core.render.mesh import render_mesh

SIZE = 160
BLUE, RED = torch.tensor([0.1, 0.3, 0.9]), torch.tensor([0.9, 0.1, 0.1])


def disc(radius: float = 60.0, at: tuple[float, float] = (80.0, 80.0)) -> torch.Tensor:
    """A blue disc with two red eyes, straight RGBA."""
    y, x = torch.meshgrid(*[torch.arange(SIZE) + 0.5] * 2, indexing="ij")
    alpha = (radius + 0.5 - torch.hypot(x - at[0], y - at[1])).clamp(0, 1)
    eyes = sum((torch.hypot(x - at[0] - dx, y - at[1] + 15) < 12 for dx in (-20, 20)), torch.zeros_like(x).bool())
    return torch.cat([torch.where(eyes[..., None], RED, BLUE), alpha[..., None]], -1)


def horse(mirrored: bool = False) -> torch.Tensor:
    """A body on two legs with a raised head at the right."""
    picture = torch.zeros(SIZE, SIZE, 4)
    picture[70:100, 20:130, 3] = 1
    picture[30:80, 115:140, 3] = 1
    picture[95:130, 30:40, 3] = picture[95:130, 110:120, 3] = 1
    picture[..., :3] = BLUE
    return picture.flip(1) if mirrored else picture


def edges(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Welded edges with their direction: each must occur once each way in a closed surface."""
    _, weld = np.unique(np.round(mesh.vertices.numpy() * 1e6).astype(np.int64), axis=0, return_inverse=True)
    faces = weld.reshape(-1)[mesh.faces.numpy()]
    directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    return np.unique(directed, axis=0, return_counts=True)


@pytest.mark.parametrize("picture", [disc(), horse()], ids=["disc", "horse"])
def test_the_surface_is_closed_and_faces_outwards(picture: torch.Tensor) -> None:
    mesh = inflate(picture, cells=64)
    pairs, counts = edges(mesh)
    assert (counts == 1).all()
    assert {tuple(p) for p in pairs.tolist()} == {tuple(p[::-1]) for p in pairs.tolist()}
    a, b, c = mesh.vertices[mesh.faces].double().unbind(1)
    assert float((a * torch.linalg.cross(b, c)).sum()) > 0


def test_a_disc_becomes_a_ball() -> None:
    mesh = inflate(disc(), depth=1.0, distance=50.0)
    side = (mesh.vertices.amax(0) - mesh.vertices.amin(0)).tolist()
    assert side == pytest.approx([1, 1, 1], abs=0.02)
    assert mesh.vertices.norm(dim=-1).numpy() == pytest.approx(0.5, abs=0.012)


@pytest.mark.parametrize("picture", [disc(), disc(40, (60, 90)), horse()], ids=["disc", "small", "horse"])
def test_its_front_is_the_picture(picture: torch.Tensor) -> None:
    mesh = inflate(picture)
    inside = picture[..., 3] > 0.5
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    longest = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
    fovy = 2 * math.degrees(math.atan(SIZE / longest / 2 / 2.0))
    size = mesh.vertices.amax(0) - mesh.vertices.amin(0)
    assert float(size.max()) == pytest.approx(1, abs=0.25)
    # The camera's axis goes through the object's middle, wherever the outline's lies in the picture.
    free = orbit(0.0, 0.0, 2.0, fovy, SIZE, SIZE)
    drawn = render_mesh(mesh, free, supersample=3)
    mean = [float(((drawn.alpha[0] * torch.arange(SIZE).view(s)).sum()) / drawn.alpha.sum()) for s in ((1, -1), (-1, 1))]
    true = [float((picture[..., 3] * torch.arange(SIZE).view(s)).sum() / picture[..., 3].sum()) for s in ((1, -1), (-1, 1))]
    shift = [round(t - m) for t, m in zip(true, mean)]
    alpha = drawn.alpha[0].roll(shift, (1, 0))
    color = drawn.color[0].roll(shift, (1, 0))
    assert float(((alpha > 0.5) & inside).sum() / ((alpha > 0.5) | inside).sum()) > 0.96
    difference = (color - picture[..., :3] * picture[..., 3:]).square().mean()
    assert float(-10 * torch.log10(difference)) > 22


def test_the_back_continues_the_outline_and_repeats_no_eyes() -> None:
    mesh = inflate(disc())
    behind = render_mesh(mesh, orbit(180.0, 0.0, 2.0, 40.0, 96, 96), torch.ones(3))
    seen = behind.color[0][behind.alpha[0] > 0.99]
    assert float((seen - BLUE).abs().max()) < 0.1


def test_the_same_picture_gives_the_same_mesh() -> None:
    a, b = inflate(horse()), inflate(horse())
    assert torch.equal(a.vertices, b.vertices) and torch.equal(a.faces, b.faces) and torch.equal(a.textures[0], b.textures[0])


def test_a_raised_end_of_something_long_comes_nearer() -> None:
    masks = [(picture[..., 3] > 0.5).numpy() for picture in (horse(), horse(True), disc(), horse().transpose(0, 1))]
    assert [nearer_end(mask) for mask in masks] == pytest.approx([NEARER, -NEARER, 0, 0])
    mesh = inflate(horse())
    x, z = mesh.vertices[:, 0], mesh.vertices[:, 2]
    assert float(z[x > 0.3].mean() - z[x < -0.3].mean()) > 0.3
    assert float(inflate(horse(), nearer="neither").vertices[:, 2].mean()) == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_inflated() -> None:
    with pytest.raises(InputError, match="mask is empty"):
        inflate(torch.zeros(32, 32, 4), name="x.png")
    with pytest.raises(InputError, match="depth 9"):
        inflate(disc(), depth=9.0)
