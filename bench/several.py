"""Several objects of one clip: two that cross once, fitted apart, composed, and scored from the front and from the sides.

    python -m anchor4d.bench.several [--out DIR] [--size 128] [--frames 12] [--preset draft] [--masks labels|each]

The demo's creature walks to the right; behind it a robot of boxes, somewhat larger, walks to the left. Both stand on one
ground. The pictures from the sides show both, in their true places; no fit sees them.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.cameras import FrontCamera, orbit_poses
from ..core.deformation.wrappers import Parts
from ..core.io import write_film, write_frames
from ..core.io.meshes import write_glb
from ..core.mesh import Mesh, sample_surface
from ..core.metrics import psnr
from ..core.render.mesh import render_mesh
from ..core.runs.sample import FPS, sample_meshes
from ..core.runs.session import Settings
from ..core.runs.several import Placing, run_objects
from ..core.scene.scene import Scene4D
from ..core.scene.views import render_frames

#: The clip's camera: level, before both; and the sides that are compared, degrees.
FOVY, DISTANCE = 36.0, 2.9
SIDES = (-60.0, -25.0, 25.0, 60.0, 120.0)


@dataclass(frozen=True)
class Crossing:
    """The clip and its truth.

    Args:
        meshes: each object at every frame, in the world.
        film: straight-alpha RGBA from the camera.
        masks: of each object, as far as it is seen.
        front: the camera; its object is the world's origin.
    """

    meshes: tuple[list[Mesh], list[Mesh]]
    film: Tensor  # (T, S, S, 4)
    masks: Tensor  # (2, T, S, S)
    front: FrontCamera


def robot(phase: float) -> Mesh:
    """A robot of boxes, its longest side about 1, feet at y = 0, at a phase in [0, 1) of its walk."""
    swing = 0.5 * math.sin(2 * math.pi * phase)
    parts = [  # centre, half size, colour, pivot, turn about X
        ((0.0, 0.62, 0.0), (0.17, 0.19, 0.11), (0.25, 0.45, 0.8), None, 0.0),
        ((0.0, 0.62, 0.115), (0.1, 0.1, 0.02), (0.95, 0.8, 0.2), None, 0.0),
        ((0.0, 0.62, -0.13), (0.12, 0.13, 0.03), (0.8, 0.25, 0.2), None, 0.0),
        ((0.0, 0.9, 0.0), (0.12, 0.09, 0.1), (0.8, 0.82, 0.85), None, 0.0),
        ((-0.05, 0.92, 0.1), (0.025, 0.025, 0.012), (0.1, 0.1, 0.15), None, 0.0),
        ((0.05, 0.92, 0.1), (0.025, 0.025, 0.012), (0.1, 0.1, 0.15), None, 0.0),
        ((-0.23, 0.62, 0.0), (0.045, 0.19, 0.05), (0.85, 0.5, 0.2), (0.78, 0.0), swing),
        ((0.23, 0.62, 0.0), (0.045, 0.19, 0.05), (0.85, 0.5, 0.2), (0.78, 0.0), -swing),
        ((-0.09, 0.22, 0.0), (0.06, 0.22, 0.07), (0.35, 0.36, 0.4), (0.44, 0.0), -swing),
        ((0.09, 0.22, 0.0), (0.06, 0.22, 0.07), (0.35, 0.36, 0.4), (0.44, 0.0), swing),
    ]
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    box = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    vertices, faces, colors = [], [], []
    for k, (centre, half, color, pivot, turn) in enumerate(parts):
        points = corners * half + centre
        if pivot is not None:
            y, z = points[:, 1] - pivot[0], points[:, 2] - pivot[1]
            points[:, 1] = pivot[0] + math.cos(turn) * y - math.sin(turn) * z
            points[:, 2] = pivot[1] + math.sin(turn) * y + math.cos(turn) * z
        vertices.append(points)
        faces.append(box + 8 * k)
        shade = 1 - 0.25 * np.repeat(np.arange(6), 2)[:, None] / 5
        colors.append(np.concatenate([np.array(color) * shade, np.ones((12, 1))], 1))
    return Mesh(
        vertices=torch.from_numpy(np.concatenate(vertices)).float(),
        faces=torch.from_numpy(np.concatenate(faces)),
        face_color=torch.from_numpy(np.concatenate(colors)).float(),
        name="robot",
    )


def crossing(frames: int = 12, size: int = 128) -> Crossing:
    """The clip: the creature passes before the robot once."""
    first, second = [], []
    ground = -0.45
    for t, mesh in enumerate(sample_meshes(frames)):
        along = t / (frames - 1)
        first.append(mesh.transformed(_moved(-0.5 + along, ground + 0.4, 0.4, 0.8)))
        second.append(robot(2 * along).transformed(_moved(0.6 - 1.2 * along, ground, -0.6, 1.0)))
    front = FrontCamera(FOVY, DISTANCE, size, size, px=size / 2, py=size / 2)
    film, masks = [], []
    for a, b in zip(first, second):
        film.append(straight(render_mesh(joined(a, b), front.cameras(), supersample=3)))
        # Each object's share of a pixel: drawn alone in white, with the other in black before or behind it.
        shares = [
            render_mesh(joined(painted(a, float(k == 0)), painted(b, float(k == 1))), front.cameras(), supersample=3)
            for k in (0, 1)
        ]
        masks.append(torch.stack([share.color[0, ..., 0] for share in shares]))
    return Crossing((first, second), torch.cat(film), torch.stack(masks, 1).clamp(0, 1), front)


def straight(render: object) -> Tensor:  # (C, H, W, 4)
    """Straight-alpha RGBA of a mesh's render."""
    color, alpha = render.color, render.alpha[..., None]  # pyright: ignore[reportAttributeAccessIssue]
    return torch.cat([color / alpha.clamp_min(1e-6), alpha], -1).clamp(0, 1)


def joined(a: Mesh, b: Mesh) -> Mesh:
    """Two meshes as one; textures are the first one's."""
    count = len(a.vertices)
    uvs = None if a.uvs is None else torch.cat([a.uvs, torch.zeros(len(b.vertices), 2)])
    return Mesh(
        vertices=torch.cat([a.vertices, b.vertices]),
        faces=torch.cat([a.faces, b.faces + count]),
        uvs=uvs,
        textures=a.textures,
        face_texture=torch.cat([a.face_texture, b.face_texture]),
        face_color=torch.cat([a.face_color, b.face_color]),
        face_alpha_cutoff=torch.cat([a.face_alpha_cutoff, b.face_alpha_cutoff]),
    )


def painted(mesh: Mesh, grey: float) -> Mesh:
    """A mesh in one grey."""
    color = torch.tensor([grey, grey, grey, 1.0]).expand(len(mesh.faces), 4)
    return Mesh(vertices=mesh.vertices, faces=mesh.faces, face_color=color.contiguous())


def _moved(x: float, y: float, z: float, scale: float) -> Tensor:
    matrix = torch.eye(4)
    matrix[:3, :3] *= scale
    matrix[:3, 3] = torch.tensor([x, y, z])
    return matrix


@dataclass(frozen=True)
class Score:
    """How near a composed scene is to the truth: PSNR on white of all frames, dB, from the front and from the sides.

    ``placed`` is how far the second object is from its true place beside the first, in the truth's longest side; ``sized`` its
    true size's error beside the first, as a factor.
    """

    front: float
    sides: float
    placed: float
    sized: float


@torch.no_grad()
def score(scene: Scene4D, truth: Crossing) -> Score:
    """Scores of a composed scene whose parts are the objects, in order.

    The scene's world is the truth's but for one scale and shift, which its camera fixes: both see the same picture. The unit is
    free, as a picture leaves it: the first object's size is made the truth's.
    """
    assert scene.front is not None
    size = truth.film.shape[1]
    own = render_frames(scene, scene.front.cameras().resized(size, size))[0]
    assert isinstance(scene.field, Parts)
    moved = scene.at(scene.taus)
    parts = moved.means.split(scene.field.counts, 1)
    # From the camera, in units in which the first object is as large as in truth.
    eye, true_eye = scene.front.cameras().positions[0], truth.front.cameras().positions[0]
    clouds = [part - eye for part in parts]
    # Points spread over the surface, as Gaussians are: vertices crowd where there is detail.
    meshes = [
        torch.stack([sample_surface(mesh, 3000, torch.Generator().manual_seed(0)).points for mesh in each]) - true_eye
        for each in truth.meshes
    ]
    tall = [(_tall(cloud), _tall(vertices)) for cloud, vertices in zip(clouds, meshes)]
    unit = tall[0][1] / tall[0][0]
    longest = max(float((m.amax((0, 1)) - m.amin((0, 1))).max()) for m in meshes)
    away = unit * (_middle(clouds[1]) - _middle(clouds[0])) - (_middle(meshes[1]) - _middle(meshes[0]))
    sides = []
    for azimuth in SIDES:
        poses = orbit_poses(torch.tensor([azimuth]), torch.zeros(1), torch.tensor([DISTANCE]))
        camera = replace(truth.front.cameras(), world_to_camera=poses)
        truths = torch.cat([straight(render_mesh(joined(a, b), camera, supersample=2)) for a, b in zip(*truth.meshes)])
        # The same camera in the scene's world: x = unit (y - eye) + true_eye.
        shift = poses[0, :3, :3] @ (true_eye - unit * eye) + poses[0, :3, 3]
        pose = poses.clone()
        pose[0, :3, 3] = shift / unit
        found = render_frames(scene, replace(camera, world_to_camera=pose))[0]
        sides.append(_psnr(found, truths))
    front = _psnr(own, truth.film)
    return Score(front, sum(sides) / len(sides), float(away.norm()) / longest, unit * tall[1][0] / tall[1][1])


def _psnr(found: Tensor, truth: Tensor) -> float:  # (T, H, W, 4) straight, twice
    return float(psnr(on_white(found).numpy(), on_white(truth).numpy()).mean())


@torch.no_grad()
def _tall(points: Tensor) -> float:  # (T, N, 3)
    """Height of the first frame's points, a few strays left out."""
    y = points[0, :, 1].float()
    return float(y.quantile(0.995) - y.quantile(0.005))


def _middle(points: Tensor) -> Tensor:  # (T, N, 3) -> (T, 3)
    return (points.quantile(0.01, 1) + points.quantile(0.99, 1)) / 2


def on_white(rgba: Tensor) -> Tensor:  # (..., 4) straight -> (..., 3)
    """Pictures on white."""
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]


def write_crossing(folder: Path, truth: Crossing, masks: str = "labels") -> tuple[Path, list[Path], list[Path]]:
    """The clip's files: its film, its masks (of "labels" one folder, of "each" one an object), its meshes."""
    write_frames(folder / "clip", truth.film)
    if masks == "labels":
        colors = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        best, which = truth.masks.max(0)
        labels = torch.where(best > 0.5, which + 1, 0)
        write_frames(folder / "labels", torch.cat([colors[labels], torch.ones(*labels.shape, 1)], -1))
        tracks = [folder / "labels"]
    else:
        tracks = [folder / f"mask{k + 1}" for k in range(2)]
        for path, mask in zip(tracks, truth.masks):
            write_frames(path, torch.cat([mask[..., None].expand(*mask.shape, 3), torch.ones(*mask.shape, 1)], -1))
    models = []
    for name, meshes in zip(("creature", "robot"), truth.meshes):
        models.append(folder / f"{name}.glb")
        write_glb(models[-1], meshes[0])
    return folder / "clip", tracks, models


def main(argv: Sequence[str] | None = None) -> None:
    """Run the case and print its scores."""
    parser = argparse.ArgumentParser(description="Several objects of one clip, fitted apart and composed.")
    parser.add_argument("--out", type=Path, default=Path("anchor4d-several"))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--masks", choices=("labels", "each"), default="labels")
    parser.add_argument("--inflate", action="store_true", help="no meshes: the first frame's outlines")
    parser.add_argument("--ground", choices=("auto", "yes", "no"), default="auto")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    truth = crossing(args.frames, args.size)
    clip, tracks, models = write_crossing(args.out / "case", truth, args.masks)
    settings = Settings(preset=args.preset, device=args.device)
    objects = [None, None] if args.inflate else models
    run = run_objects(clip, args.out / "run", settings, masks=tracks, objects=objects, fps=FPS, placing=Placing(args.ground))
    assert run is not None
    found = score(run.scene, truth)
    print(f"front {found.front:.2f} dB, sides {found.sides:.2f} dB, placed {found.placed:.3f}, sized {found.sized:.3f}")
    write_film(args.out / "sides.webm", side_film(run.scene, truth), FPS)


def side_film(scene: Scene4D, truth: Crossing, azimuth: float = 60.0) -> np.ndarray:  # (T, S, 4 S, 3) uint8
    """Truth and scene from the front and from a side, beside each other."""
    size = truth.film.shape[1]
    assert scene.front is not None
    pose = orbit_poses(torch.tensor([azimuth]), torch.zeros(1), torch.tensor([DISTANCE]))
    camera = replace(truth.front.cameras(), world_to_camera=pose)
    truths = torch.cat([straight(render_mesh(joined(a, b), camera, supersample=2)) for a, b in zip(*truth.meshes)])
    own = render_frames(scene, scene.front.cameras([0.0, azimuth]).resized(size, size))
    row = torch.cat([on_white(truth.film), on_white(own[0]), on_white(truths), on_white(own[1])], 2)
    return (row.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


if __name__ == "__main__":
    main()
