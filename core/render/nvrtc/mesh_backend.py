"""Meshes on the graphics card: our own kernels (``mesh.cu``) through the run-time compiler; no picture crosses the bus."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...cameras import Cameras, orbit
from ...mesh import Mesh, decoded, texture_atlas
from . import compiler
from .backend import tested

SOURCE = "mesh.cu"
_SAMPLES = 1 << 25  # drawn at once; a sample's key has 8 bytes
_THREADS = 256  # a block, as in the source
_FEWEST, _BLOCKS = 8, 2048  # faces a block where they are few, and blocks that keep a large card busy
_surfaces: WeakKeyDictionary[Mesh, list[Tensor | None]] = WeakKeyDictionary()


def available(device: torch.device | str) -> bool:
    """Whether the kernels compile, run and compute what they should on a device."""
    return not why_not(torch.device(device))


def why_not(device: torch.device) -> str:
    """The reason why this backend cannot draw on a device, or nothing."""
    if device.type != "cuda":
        return compiler.why_not(device)
    return compiler.why_not(device) or _self_test(torch.cuda.current_device() if device.index is None else device.index)


def render(
    mesh: Mesh,
    cameras: Cameras,  # (C)
    background: Tensor | None,  # (C, 3)
    supersample: int,
    mipmaps: bool,
    near: float,
    face_texels: Callable[[Mesh], Tensor],  # area in texels that each face's edges span, (F,)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # (C, H, W, 3), (C, H, W), (C, H, W), (C, H, W, 3)
    """Colour over the background (or premultiplied), alpha, depth and normal, as :class:`MeshRender` has them."""
    device = mesh.vertices.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return render(mesh, cameras, background, supersample, mipmaps, near, face_texels)
    module = compiler.load(SOURCE, device)
    count, height, width = len(cameras), cameras.height, cameras.width
    vertices, surface = mesh.vertices.float().contiguous(), _surface(mesh, face_texels)
    *surface, cutoffs = surface
    depth_levels = texture_atlas(mesh.textures).table.shape[1]
    rows, columns = height * supersample, width * supersample
    color, normal = torch.empty(2, count, height, width, 3, dtype=torch.float32, device=device)
    alpha, depth = torch.empty(2, count, height, width, dtype=torch.float32, device=device)
    poses, K = cameras.world_to_camera.contiguous(), cameras.K.contiguous()
    step = max(min(_SAMPLES // (rows * columns), count), 1)
    screen = torch.empty(step, len(vertices), 4, dtype=torch.float32, device=device)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        views = part.stop - start
        keys = torch.zeros(views, rows, columns, dtype=torch.int64, device=device)
        lens = poses[part], K[part], supersample
        module.launch("project_vertices", (-(-len(vertices) // 256), views), (256,), (vertices, len(vertices), *lens, screen))
        own = min(_THREADS, max(_FEWEST, len(mesh.faces) * views // _BLOCKS))
        shape = (near, len(vertices), len(mesh.faces), columns, rows, own, screen, keys)
        blocks = (-(-len(mesh.faces) // own), views)
        module.launch("fill", blocks, (_THREADS,), (vertices, *surface, depth_levels, cutoffs, mipmaps, *lens, *shape))
        behind = None if background is None else background[part].contiguous()
        pictures = (color[part], alpha[part], depth[part], normal[part])
        shading = (vertices, *surface, depth_levels, mipmaps, *lens, width, height, keys, behind, *pictures)
        module.launch("shade", (-(-height * width // 256), views), (256,), shading)
    return color, alpha, depth, normal


def _surface(mesh: Mesh, face_texels: Callable[[Mesh], Tensor]) -> list[Tensor | None]:
    """What the kernels read of a mesh beside its vertices, made once: see Surface in the source, and the cutoffs."""
    found = _surfaces.get(mesh)
    if found is None:
        atlas = texture_atlas(mesh.textures)
        device = mesh.vertices.device
        tensors = (
            mesh.faces.int(),
            mesh.normals,
            mesh.uvs,
            None if mesh.vertex_colors is None else decoded(mesh.vertex_colors),
            decoded(mesh.face_color),
            mesh.face_texture.int(),
            face_texels(mesh),
            atlas.texels.to(device),
            atlas.table.to(device),
            atlas.levels.to(device),
            mesh.face_alpha_cutoff,
        )
        found = [None if x is None else x.detach().contiguous() for x in tensors]
        found = [x.float() if x is not None and x.is_floating_point() else x for x in found]
        _surfaces[mesh] = found
    return list(found)


@cache
def _self_test(index: int) -> str:
    return tested(SOURCE, torch.device("cuda", index), self_test)


@torch.no_grad()
def self_test(device: torch.device) -> str:
    """Compare pictures of a few textured faces with the PyTorch reference: what differs, or nothing."""
    from ..mesh import render_mesh

    generator = torch.Generator().manual_seed(0)

    def scene(where: torch.device) -> tuple[Mesh, Cameras]:
        generator.manual_seed(0)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        centres = (uniform(60, 1, 3) - 0.5) * 0.8
        mesh = Mesh(
            (centres + (uniform(60, 3, 3) - 0.5) * 0.4).reshape(-1, 3).to(where),
            torch.arange(180, device=where).reshape(-1, 3),
            uvs=uniform(180, 2).to(where),
            vertex_colors=uniform(180, 4).to(where),
            textures=(uniform(7, 5, 4).to(where),),
            face_texture=torch.randint(-1, 1, (60,), generator=generator).to(where),
        )
        return mesh, orbit([20.0, 200.0], [10.0, -40.0], 1.6, 40.0, 24, 20).to(where)

    mesh, cameras = scene(torch.device("cpu"))
    expected = render_mesh(mesh, cameras, mipmaps=False, backend="torch")
    mesh, cameras = scene(device)
    found = render(mesh, cameras, None, 2, False, 0.01, lambda mesh: torch.zeros(60, device=device))
    for name, x in zip(("color", "alpha", "depth", "normal"), found, strict=True):
        error = float((x.cpu() - getattr(expected, name)).abs().mean())
        if not error < 1e-4:
            return f"the mesh kernels fail their self-test here ({name} is off by {error:.1e})"
    return ""
