"""A moving scene without a fit: the demo's creature as Gaussians that follow its mesh. For benchmarks and tests."""

from __future__ import annotations

import torch

from ..core.cameras import matrix_to_quaternion
from ..core.deformation.frames import FrameField
from ..core.gaussians import SH_C0, Gaussians
from ..core.mesh import sample_surface
from ..core.runs.sample import CAMERA, sample_meshes
from ..core.scene.scene import Scene4D


def moving_sample(count: int = 3000, frames: int = 16, *, changing: str = "motion") -> Scene4D:
    """Flat Gaussians on the creature's faces that walk and wave with it.

    Args:
        changing: "motion" moves and turns them; "shape" changes scales and opacities too; "color" also the colours.
    """
    meshes = sample_meshes(frames)
    samples = sample_surface(meshes[0], count, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    sizes = 0.012 * (3000 / count) ** 0.5 * (0.6 + 0.8 * torch.rand(count, 3, generator=generator))
    sizes[:, 2] *= 0.15
    opacity = 2 + torch.randn(count, generator=generator)
    sets = []
    for t, mesh in enumerate(meshes):
        a, b, c = mesh.vertices[mesh.faces[samples.face]].unbind(1)
        along = torch.nn.functional.normalize(b - a, dim=-1)
        normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
        frame = torch.stack([along, torch.linalg.cross(normal, along), normal], -1)
        wave = torch.sin(torch.arange(count) * 0.01 + 2 * torch.pi * t / frames)
        shape, color = changing in ("shape", "color"), changing == "color"
        sets.append(
            Gaussians(
                means=(torch.stack([a, b, c], 1) * samples.barycentric[..., None]).sum(1),
                quats=matrix_to_quaternion(frame),
                log_scales=sizes.log() + 0.3 * shape * wave[:, None] * torch.tensor([1.0, -1.0, 0.5]),
                opacity_logits=opacity + shape * wave,
                sh=((samples.colors * 1.1 - 0.03 + 0.2 * color * wave[:, None] - 0.5) / SH_C0)[:, None],
            )
        )
    return Scene4D(sets[0], FrameField.of(sets, loop=True), frames, 12.0, True, CAMERA)
