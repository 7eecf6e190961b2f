"""Triangle meshes: the colours of their surface, sampling.

Colours are what an unlit viewer shows: sRGB. Texture, vertex colour and base colour factor multiply in linear light, as glTF
defines it; vertex colours and factors are stored sRGB-encoded here, like every other colour of the program.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .files import InputError
from .identity import canonical
from .pictures import PictureBudget, decode_texture, encode_picture
from .progress import pulse
from .skin import JointTree, Skin

log = logging.getLogger(__name__)

#: Faces looked at at a time.
_CHUNK = 1 << 20
#: Turns that bring an axis of a file to +Y. Rows are the file's directions that become our X, Y (up) and Z (front).
UP_AXES = {
    "y": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "-y": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "z": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "-z": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "x": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "-x": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
}


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh, all parts joined, in the world frame (+Y up).

    Args:
        vertices: positions.
        faces: vertex indices.
        normals: unit vertex normals; a zero row means "use the face's". None where the file had none.
        uvs: texture coordinates with v DOWN from the texture's top row: row = v * height. They repeat outside [0, 1].
        vertex_colors: RGBA, sRGB-encoded, straight alpha; interpolated in linear light.
        textures: sRGB RGBA pictures, straight alpha, any sizes.
        face_texture: index into ``textures``, -1 where the face has none.
        face_color: base colour factor RGBA, sRGB-encoded.
        face_alpha_cutoff: surface points of smaller alpha are holes; 0 ignores alpha.
        name: for messages.
        skin: the rig that the mesh came with, or None.
    """

    vertices: Tensor  # (V, 3) float32
    faces: Tensor  # (F, 3) int64
    normals: Tensor | None = None  # (V, 3)
    uvs: Tensor | None = None  # (V, 2)
    vertex_colors: Tensor | None = None  # (V, 4)
    textures: tuple[Tensor, ...] = ()  # (h, w, 4)
    face_texture: Tensor = None  # type: ignore[assignment]  # (F,) int64; texture 0 where there is one
    face_color: Tensor = None  # type: ignore[assignment]  # (F, 4); white
    face_alpha_cutoff: Tensor = None  # type: ignore[assignment]  # (F,); 0
    name: str = "mesh"
    skin: Skin | None = None

    def __post_init__(self) -> None:
        count, device = len(self.faces), self.vertices.device
        if self.face_texture is None:
            index = 0 if self.textures and self.uvs is not None else -1
            object.__setattr__(self, "face_texture", torch.full((count,), index, dtype=torch.int64, device=device))
        if self.face_color is None:
            object.__setattr__(self, "face_color", torch.ones(count, 4, device=device))
        if self.face_alpha_cutoff is None:
            object.__setattr__(self, "face_alpha_cutoff", torch.zeros(count, device=device))
        vertices = len(self.vertices)
        shapes = {
            "vertices": (vertices, 3), "faces": (count, 3), "normals": (vertices, 3), "uvs": (vertices, 2),
            "vertex_colors": (vertices, 4), "face_texture": (count,), "face_color": (count, 4), "face_alpha_cutoff": (count,),
        }  # fmt: skip
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"mesh: {name} has shape {tuple(value.shape)}, expected {shape}")
        if self.skin is not None and len(self.skin.joints) != vertices:
            raise ValueError(f"mesh: a skin of {len(self.skin.joints)} vertices, not {vertices}")

    @property
    def has_color(self) -> bool:
        """Whether the surface carries colour: a texture, vertex colours, or factors other than one grey."""
        if bool((self.face_texture >= 0).any()) or self.vertex_colors is not None:
            return True
        rgb = self.face_color[:, :3]
        return bool((rgb - rgb[:1, :1]).abs().max() > 0.5 / 255) if len(rgb) else False

    def to(self, device: torch.device | str) -> Mesh:
        """The mesh with its tensors on ``device``."""
        moved = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        skin = None if self.skin is None else self.skin.to(device)
        return replace(self, **moved, textures=tuple(t.to(device) for t in self.textures), skin=skin)

    def transformed(self, matrix: Tensor) -> Mesh:  # (4, 4)
        """Moved by an affine map; a mirroring one also turns the faces' winding."""
        matrix = matrix.to(self.vertices)
        linear = matrix[:3, :3]
        normals = self.normals
        if normals is not None:
            turned = normals @ torch.linalg.inv(linear)  # inverse transpose, applied to rows
            normals = torch.nn.functional.normalize(turned, dim=-1)
        mirrored = bool(torch.linalg.det(linear) < 0)
        return replace(
            self,
            vertices=self.vertices @ linear.T + matrix[:3, 3],
            normals=normals,
            faces=self.faces.flip(-1) if mirrored else self.faces,
            skin=None if self.skin is None else self.skin.transformed(matrix),
        )

    def normalized(self) -> tuple[Mesh, Tensor]:
        """The mesh centred on the origin with longest bounding-box side 1, and the matrix ``(4, 4)`` that did it.

        Raises:
            InputError: for a mesh of no extent.
        """
        matrix = centring(self.vertices[self.faces.reshape(-1)], self.name)
        return self.transformed(matrix.float()), matrix.to(self.vertices)

    def turned(self, degrees_about_y: float) -> Mesh:
        """Turned about +Y, counter-clockwise seen from above: at +90 what faced +Z faces +X."""
        return self.transformed(turn_about_y(degrees_about_y))

    def face_normals(self) -> Tensor:  # (F, 3)
        """Unit normals by the faces' winding (counter-clockwise seen from outside)."""
        a, b, c = self.vertices[self.faces].unbind(1)
        return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)


def centring(points: Tensor, name: str) -> Tensor:  # (N, 3) -> (4, 4) float64
    """The matrix that centres points on the origin and makes their bounding box's longest side 1.

    Raises:
        InputError: for points of no extent, or one beyond single precision.
    """
    points = points.cpu().double()
    low, high = points.amin(0), points.amax(0)
    side = float((high - low).max())
    if not side > 0:
        raise InputError(f"{name}: all its points coincide, choose an object with an extent")
    if not 1e-18 < side < 1e18:
        raise InputError(f"{name}: is {side:.3g} across, beyond what can be drawn; scale it, or remove stray points")
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] /= side
    matrix[:3, 3] = -(low + high) / 2 / side
    return matrix


def turn_about_y(degrees: float) -> Tensor:  # (4, 4)
    """A turn about +Y, counter-clockwise seen from above."""
    a = math.radians(degrees)
    matrix = torch.eye(4)
    matrix[0, 0] = matrix[2, 2] = math.cos(a)
    matrix[0, 2], matrix[2, 0] = math.sin(a), -math.sin(a)
    return matrix


def up_matrix(up: str) -> Tensor:  # (4, 4)
    """The turn that brings an axis of a file to +Y.

    Raises:
        InputError: for what is no axis.
    """
    if up not in UP_AXES:
        raise InputError(f"up axis {up!r}: choose one of {', '.join(UP_AXES)}")
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.tensor(UP_AXES[up], dtype=torch.float32)
    return matrix


# --- colours of the surface -------------------------------------------------------------------------------------------


def srgb_to_linear(x: Tensor) -> Tensor:
    """The sRGB decoding curve, elementwise."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(x: Tensor) -> Tensor:
    """The sRGB encoding curve, elementwise."""
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def decoded(rgba: Tensor) -> Tensor:  # (..., 4)
    """sRGB colours with alpha in linear light."""
    return torch.cat([srgb_to_linear(rgba[..., :3]), rgba[..., 3:]], -1)


def encoded(rgba: Tensor) -> Tensor:  # (..., 4)
    """Linear colours with alpha as sRGB."""
    return torch.cat([linear_to_srgb(rgba[..., :3]), rgba[..., 3:]], -1)


@dataclass(frozen=True)
class TextureAtlas:
    """All textures with their halved levels in one flat buffer: what one gather, or one kernel, can sample.

    Args:
        texels: all levels of all textures, row-major, one after the other; RGB in linear light, so that filters average light.
        table: start, height and width of each level; unused levels repeat the last one.
        levels: number of levels of each texture.
    """

    texels: Tensor  # (P, 4) float32
    table: Tensor  # (T, L, 3) int64
    levels: Tensor  # (T,) int64


_atlases = WeakTensorKeyDictionary()


def texture_atlas(textures: Sequence[Tensor]) -> TextureAtlas:
    """The atlas of some textures, built once per set of tensors and kept as long as the first of them lives."""
    if not textures:
        return TextureAtlas(torch.zeros(1, 4), torch.tensor([[[0, 1, 1]]]), torch.ones(1, dtype=torch.int64))
    found = _atlases.get(textures[0])
    if found is not None and len(found[0]) == len(textures) - 1 and all(a is b for a, b in zip(found[0], textures[1:])):
        return found[1]
    chunks, rows, start = [], [], 0
    for texture in textures:
        level, table = decoded(texture.float()), []
        while True:
            height, width = level.shape[:2]
            table.append((start, height, width))
            chunks.append(level.reshape(-1, 4))
            start += height * width
            if height == width == 1:
                break
            size = (max(height // 2, 1), max(width // 2, 1))
            level = torch.nn.functional.interpolate(level.permute(2, 0, 1)[None], size=size, mode="area")[0].permute(1, 2, 0)
        rows.append(table)
    longest = max(map(len, rows))
    device = textures[0].device
    atlas = TextureAtlas(
        torch.cat(chunks),
        torch.tensor([r + [r[-1]] * (longest - len(r)) for r in rows], device=device),
        torch.tensor([len(r) for r in rows], device=device),
    )
    _atlases[textures[0]] = (tuple(textures[1:]), atlas)
    return atlas


def sample_atlas(
    atlas: TextureAtlas,
    texture: Tensor,  # (N,) int64
    uv: Tensor,  # (N, 2) v down
    level: Tensor | None = None,  # (N,) int64, clamped to what exists; 0 where None
) -> Tensor:  # (N, 4)
    """Bilinear samples with repeat, linear light; texel centres lie at (i + 0.5) / size."""
    level = torch.zeros_like(texture) if level is None else torch.minimum(level, atlas.levels[texture] - 1)
    start, height, width = atlas.table[texture, level].unbind(-1)
    x = (uv[:, 0] - uv[:, 0].floor()) * width - 0.5
    y = (uv[:, 1] - uv[:, 1].floor()) * height - 0.5
    x0, y0 = x.floor(), y.floor()
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    x0, y0 = x0.long() % width, y0.long() % height
    x1, y1 = (x0 + 1) % width, (y0 + 1) % height
    texels = atlas.texels
    top = torch.lerp(texels[start + y0 * width + x0], texels[start + y0 * width + x1], fx)
    bottom = torch.lerp(texels[start + y1 * width + x0], texels[start + y1 * width + x1], fx)
    return torch.lerp(top, bottom, fy)


def surface_light(
    mesh: Mesh,
    face: Tensor,  # (N,) int64
    barycentric: Tensor,  # (N, 3)
    level: Tensor | None = None,  # (N,) texture level, 0 where None
) -> Tensor:  # (N, 4) linear RGB, straight alpha
    """Unlit colour of surface points in linear light: texture times factor times vertex colour (glTF 2.0, 3.9.2)."""
    corners = mesh.faces[face]
    color = decoded(mesh.face_color[face])
    if mesh.vertex_colors is not None:
        color = color * (decoded(mesh.vertex_colors[corners]) * barycentric[..., None]).sum(1)
    texture = mesh.face_texture[face]
    which = (texture >= 0).nonzero()[:, 0]
    if mesh.uvs is not None and len(which):
        uv = (mesh.uvs[corners[which]] * barycentric[which, :, None]).sum(1)
        level = None if level is None else level[which]
        color[which] = color[which] * sample_atlas(texture_atlas(mesh.textures), texture[which], uv, level)
    return color


def surface_color(mesh: Mesh, face: Tensor, barycentric: Tensor) -> Tensor:  # (N,), (N, 3) -> (N, 4)
    """sRGB colour with straight alpha of surface points."""
    return encoded(surface_light(mesh, face, barycentric))


def surface_normal(mesh: Mesh, face: Tensor, barycentric: Tensor) -> Tensor:  # (N,), (N, 3) -> (N, 3)
    """Unit normals of surface points: interpolated vertex normals on the winding's side, else the face's own."""
    flat = mesh.face_normals()[face]
    if mesh.normals is None:
        return flat
    smooth = (mesh.normals[mesh.faces[face]] * barycentric[..., None]).sum(1)
    length = smooth.norm(dim=-1, keepdim=True)
    smooth = torch.where((smooth * flat).sum(-1, keepdim=True) < 0, -smooth, smooth)
    return torch.where(length > 1e-6, smooth / length.clamp_min(1e-6), flat)


# --- sampling -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SurfaceSamples:
    """Points of a mesh's surface with what is known there."""

    points: Tensor  # (N, 3)
    normals: Tensor  # (N, 3) unit
    colors: Tensor  # (N, 3) sRGB
    face: Tensor  # (N,) int64
    barycentric: Tensor  # (N, 3)


def sample_surface(mesh: Mesh, count: int, generator: torch.Generator) -> SurfaceSamples:
    """``count`` points spread evenly by area: one drawn in each of ``count`` equal intervals of the faces' summed area.

    Points where the texture's alpha cuts a hole are drawn again. The order follows the faces.

    Raises:
        InputError: for a mesh that is transparent, or has no area, everywhere.
    """
    a, b, c = mesh.vertices[mesh.faces].cpu().double().unbind(1)
    total = torch.linalg.cross(b - a, c - a).norm(dim=-1).cumsum(0)
    if not float(total[-1]) > 0:
        raise InputError(f"{mesh.name}: its faces have no area, choose another mesh")
    device, tries = mesh.vertices.device, count
    for _ in range(6):
        u = torch.rand(tries, 3, generator=generator, device=generator.device).cpu().double()
        at = (torch.arange(tries) + u[:, 0]) / tries * total[-1]
        face = torch.searchsorted(total, at, right=True).clamp_max(len(total) - 1).to(device)
        root = u[:, 1].sqrt()  # uniform in the triangle
        barycentric = torch.stack([1 - root, root * (1 - u[:, 2]), root * u[:, 2]], -1).float().to(device)
        color = surface_color(mesh, face, barycentric)
        solid = (color[:, 3] >= mesh.face_alpha_cutoff[face]).nonzero()[:, 0]
        if len(solid) >= count:
            chosen = solid[torch.arange(count, device=device) * len(solid) // count]
            face, barycentric = face[chosen], barycentric[chosen]
            points = (mesh.vertices[mesh.faces[face]] * barycentric[..., None]).sum(1)
            return SurfaceSamples(points, surface_normal(mesh, face, barycentric), color[chosen, :3], face, barycentric)
        tries = min(int(tries * 1.1 * count / max(len(solid), 1)) + 8, 64 * count)
    raise InputError(f"{mesh.name}: its texture's alpha leaves almost nothing of the surface, choose an opaque material")


def sample_evenly(mesh: Mesh, count: int, generator: torch.Generator) -> SurfaceSamples:
    """``count`` points of which no two of one side are near each other: dart throwing among four times as many.

    A point counts as away from another by how far their normals differ, too, so that the two sides of a thin part do not share
    one's points. The order follows the faces.
    """
    from scipy.sparse import coo_matrix
    from scipy.spatial import KDTree

    many = sample_surface(mesh, 4 * count, generator)
    a, b, c = mesh.vertices[mesh.faces].cpu().double().unbind(1)
    radius = 0.8 * math.sqrt(float(torch.linalg.cross(b - a, c - a).norm(dim=-1).sum()) / 2 / count)
    rank = torch.randperm(4 * count, generator=generator).numpy()
    places, normals = many.points.cpu().double().numpy(), many.normals.cpu().double().numpy()
    tree: Any = KDTree(places)

    def near(reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs within reach in space, and the squared differences of their places and of their normals."""
        pulse()
        pairs = tree.query_pairs(reach, output_type="ndarray")
        apart, turned = ((x[pairs[:, 0]] - x[pairs[:, 1]]) for x in (places, normals))
        return pairs, np.einsum("ij,ij->i", apart, apart), np.einsum("ij,ij->i", turned, turned)

    reach = 1.1 * radius  # radii that are tried seldom grow by more
    found = near(reach)

    def thrown(radius: float) -> np.ndarray:
        """Darts that land: in order of their rank, those that no earlier one lies within the radius of."""
        nonlocal reach, found
        pulse()
        if radius > reach:
            found = near(reach := radius)
        pairs, apart, turned = found
        pairs = pairs[apart + (0.6 * radius) ** 2 * turned <= radius**2]
        first, second = np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], pairs.T, pairs.T[::-1])
        before: Any = coo_matrix((np.ones(len(first)), (second, first)), shape=(len(rank), len(rank))).tocsr()
        landed, open_ = np.zeros(len(rank), bool), np.ones(len(rank), bool)
        while open_.any():
            pulse()
            now = open_ & ~((before @ open_.astype(float)) > 0)
            landed |= now
            open_ &= ~now & ~((before @ now.astype(float)) > 0)
        return np.flatnonzero(landed)

    chosen = thrown(radius)
    for _ in range(6):
        if count <= len(chosen) <= 1.02 * count:
            break
        radius *= math.sqrt(len(chosen) / count) * 0.995
        chosen = thrown(radius)
    if len(chosen) < count:
        rest = np.setdiff1d(np.arange(len(rank)), chosen)
        chosen = np.concatenate([chosen, rest[rank[rest].argsort()[: count - len(chosen)]]])
    kept = torch.from_numpy(np.sort(chosen[rank[chosen].argsort()[:count]])).to(many.points.device)
    return SurfaceSamples(**{f.name: getattr(many, f.name)[kept] for f in fields(many)})


# --- reading ------------------------------------------------------------------------------------------------------------


def rgba_array(color: Any) -> np.ndarray:  # (N, 3 or 4) of any type -> (N, 4) float
    color = np.asarray(color)
    if np.issubdtype(color.dtype, np.integer):
        color = color / np.iinfo(color.dtype).max
    if color.shape[-1] == 3:
        color = np.concatenate([color, np.ones_like(color[..., :1])], -1)
    return color


def encoded_array(rgba: Any) -> np.ndarray:
    """Linear RGBA as sRGB."""
    return encoded(torch.as_tensor(np.asarray(rgba, np.float64)).clamp(0, 1)).numpy()


def cleaned_mesh(
    arrays: dict[str, np.ndarray | None],
    faces: np.ndarray,  # (F, 3)
    face_texture: np.ndarray,  # (F,)
    face_color: np.ndarray,  # (F, 4)
    face_alpha_cutoff: np.ndarray,  # (F,)
    textures: tuple[Tensor, ...],
    name: str,
    follows: tuple[JointTree, np.ndarray, np.ndarray] | None = None,  # joints and weights (V, K)
) -> Mesh:
    """A mesh without degenerate faces and unused vertices.

    Raises:
        InputError: for indices out of range, values that are not finite numbers, no faces left.
    """
    vertices = arrays["vertices"]
    assert vertices is not None
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise InputError(f"{name}: a face refers to a vertex that does not exist, export it again")
    for key, what in (("vertices", "vertex positions"), ("uvs", "texture coordinates"), ("vertex_colors", "vertex colours")):
        values = arrays[key]
        if values is not None and not np.isfinite(values).all():
            raise InputError(f"{name}: some {what} are not numbers (NaN or infinite), repair the mesh")
    solid = np.concatenate([_has_area(vertices, faces[i : i + _CHUNK]) for i in range(0, max(len(faces), 1), _CHUNK)])
    if not solid.any():
        raise InputError(f"{name}: has no faces with an area, choose a surface mesh")
    faces = faces[solid]
    used = np.zeros(len(vertices), bool)
    used[faces] = True
    inverse = used.cumsum()[faces] - 1
    if arrays["normals"] is not None:
        length = np.linalg.norm(arrays["normals"], axis=-1, keepdims=True)
        arrays["normals"] = np.where(length > 1e-12, np.nan_to_num(arrays["normals"]) / np.maximum(length, 1e-12), 0)

    def tensor(values: np.ndarray | None) -> Tensor | None:
        # Copied: where memory does not begin at a multiple of 64 bytes, as PyTorch's does, MKL's products have other last bits.
        return None if values is None else torch.tensor(values[used], dtype=torch.float32)

    return Mesh(
        **{k: tensor(v) for k, v in arrays.items()},  # type: ignore[arg-type]
        faces=torch.from_numpy(inverse.reshape(-1, 3).astype(np.int64)),
        textures=textures,
        face_texture=torch.from_numpy(face_texture[solid].astype(np.int64)),
        face_color=torch.from_numpy(face_color[solid].astype(np.float32)),
        face_alpha_cutoff=torch.from_numpy(face_alpha_cutoff[solid].astype(np.float32)),
        name=name,
        skin=None if follows is None else follows[0].skin(follows[1][used], follows[2][used], name),
    )


def _has_area(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:  # (V, 3), (F, 3) -> (F,)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    with np.errstate(all="ignore"):  # beyond the range of numbers there is no area either
        area = np.abs(np.cross(b - a, c - a)).max(-1)
    return (area > 0) & np.isfinite(area)


def mesh_from_arrays(
    vertices: Tensor,  # (V, 3) or (B, V, 3)
    faces: Tensor,  # (F, 3) or (B, F, 3)
    *,
    uvs: Tensor | None = None,  # (..., V, 2) v down
    vertex_colors: Tensor | None = None,  # (..., V, 3 or 4) linear, as glTF's and the host's are
    texture: Tensor | None = None,  # (..., H, W, 3 or 4) sRGB
    normals: Tensor | None = None,  # (..., V, 3)
    vertex_counts: Tensor | None = None,  # (B,)
    face_counts: Tensor | None = None,  # (B,)
    index: int = 0,
    name: str = "mesh",
) -> Mesh:
    """One item of the host's MESH value, whose conventions are glTF's: v down, linear vertex colours, sRGB texture.

    Batches are padded to a common length; the counts give the real ones.

    Raises:
        InputError: for an index beyond the batch, no faces, values that are not numbers.
    """
    if vertices.dim() == 3 and index >= len(vertices):
        raise InputError(f"{name}: has {len(vertices)} items, choose an index below that, not {index}")

    def item(value: Tensor, counts: Tensor | None = None, dims: int = 2) -> np.ndarray:
        value = value.detach().cpu()
        if value.dim() > dims:
            value = value[min(index, len(value) - 1)]
        return (value if counts is None else value[: int(counts[index])]).numpy()

    points, corners = item(vertices, vertex_counts), item(faces, face_counts)
    if not len(points) or not len(corners):
        raise InputError(f"{name}: has no faces, choose a surface mesh")
    textures: tuple[Tensor, ...] = ()
    if uvs is not None and texture is not None:
        textures = (torch.from_numpy(rgba_array(item(texture, None, 3))).float().clamp(0, 1),)
    count = len(corners)
    return cleaned_mesh(
        {
            "vertices": points,
            "normals": None if normals is None else item(normals, vertex_counts),
            "uvs": None if uvs is None else item(uvs, vertex_counts),
            "vertex_colors": None if vertex_colors is None else encoded_array(rgba_array(item(vertex_colors, vertex_counts))),
        },
        corners.astype(np.int64),
        np.full(count, 0 if textures else -1),
        np.ones((count, 4)),
        np.zeros(count),
        textures,
        name,
    )


def mesh_to_arrays(mesh: Mesh) -> dict[str, Tensor]:
    """The host's MESH members, a batch of one: vertices, faces and, where there is colour, uvs and texture or vertex_colors.

    That type holds one texture and no factors. A mesh of several materials gets three vertices of its own for each face and the
    surface's colours at them (linear, RGBA).
    """
    single = len(mesh.textures) == 1 and mesh.uvs is not None and bool((mesh.face_texture == 0).all())
    if single and mesh.vertex_colors is None and bool((mesh.face_color[:, :3] == 1).all()):
        assert mesh.uvs is not None
        arrays = {"vertices": mesh.vertices, "faces": mesh.faces, "uvs": mesh.uvs, "texture": mesh.textures[0][..., :3]}
    elif mesh.has_color:
        count = len(mesh.faces)
        corner = torch.eye(3, device=mesh.faces.device).repeat(count, 1)
        face = torch.arange(count, device=mesh.faces.device)
        arrays = {
            "vertices": mesh.vertices[mesh.faces.reshape(-1)],
            "faces": torch.arange(3 * count, device=mesh.faces.device).reshape(-1, 3),
            "vertex_colors": surface_light(mesh, face.repeat_interleave(3), corner),
        }
    else:
        arrays = {"vertices": mesh.vertices, "faces": mesh.faces}
    return {k: v[None] for k, v in arrays.items()}


def mesh_to_tensors(mesh: Mesh) -> dict[str, Tensor]:
    """A mesh as plain tensors, for a file: materials once each, textures as the bytes of PNG or JPEG files."""
    keys = torch.cat([mesh.face_texture[:, None].float(), mesh.face_color, mesh.face_alpha_cutoff[:, None]], -1)
    materials, member = keys.unique(dim=0, return_inverse=True)
    tensors = {"vertices": mesh.vertices, "faces": mesh.faces.int(), "materials": materials}
    if len(materials) > 1:
        tensors["face_material"] = member.int()
    optional = {"normals": mesh.normals, "uvs": mesh.uvs, "vertex_colors": mesh.vertex_colors}
    tensors |= {key: value for key, value in optional.items() if value is not None}
    if (skin := mesh.skin) is not None:
        described = json.dumps({"names": skin.names, "parents": skin.parents}).encode()
        tensors |= {f"skin.{f.name}": v for f in fields(skin) if isinstance(v := getattr(skin, f.name), Tensor)}
        tensors |= {
            "skin.joints": skin.joints.to(torch.int16),
            "skin.tree": torch.frombuffer(bytearray(described), dtype=torch.uint8),
        }
    files = {f"texture{i}": encode_picture(texture) for i, texture in enumerate(mesh.textures)}
    return tensors | {key: torch.frombuffer(bytearray(data), dtype=torch.uint8) for key, data in files.items()}


def mesh_from_tensors(tensors: dict[str, Tensor], name: str = "mesh") -> Mesh:
    """What :func:`mesh_to_tensors` made, checked.

    Raises:
        ValueError, KeyError: for tensors that are no mesh.
        InputError: for textures that cannot be read, or are too large.
    """
    vertices, faces, materials = tensors["vertices"], tensors["faces"].long(), tensors["materials"]
    budget = PictureBudget()
    pictures = [bytes(tensors[f"texture{i}"].numpy()) for i in range(sum(key.startswith("texture") for key in tensors))]
    textures = tuple(decode_texture(budget.open(data, str(i), name), name) for i, data in enumerate(pictures))
    if not len(faces) or not len(materials) or materials.shape[1:] != (6,):
        raise ValueError("a mesh without faces or materials")
    which = tensors.get("face_material", torch.zeros(len(faces), dtype=torch.int32)).long()
    for index, count in ((faces, len(vertices)), (which, len(materials)), (materials[:, 0].long() + 1, len(textures) + 1)):
        if int(index.min()) < 0 or int(index.max()) >= count:
            raise ValueError("a mesh whose indices are out of range")
    colors = tensors.get("vertex_colors")
    if not all(bool(t.isfinite().all()) for t in (vertices, materials, tensors.get("uvs"), colors) if t is not None):
        raise ValueError("a mesh with values that are not numbers")
    material = materials[which]
    return Mesh(
        vertices,
        faces,
        normals=tensors.get("normals"),
        uvs=tensors.get("uvs"),
        vertex_colors=colors,
        textures=textures,
        face_texture=material[:, 0].long(),
        face_color=material[:, 1:5].contiguous(),
        face_alpha_cutoff=material[:, 5].contiguous(),
        name=name,
        skin=_skin_from_tensors({k.removeprefix("skin."): v for k, v in tensors.items() if k.startswith("skin.")}),
    )


def _skin_from_tensors(tensors: dict[str, Tensor]) -> Skin | None:
    if not tensors:
        return None
    tree = json.loads(bytes(tensors.pop("tree").numpy()))
    parents, names = tuple(map(int, tree["parents"])), tuple(map(str, tree["names"]))
    joints = tensors.pop("joints").long()
    if not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise ValueError("a skin with values that are not numbers")
    skin = Skin(parents, names, joints=joints, **{name: tensors[name] for name in ("places", "quats", "frame", "weights")})
    if bool((skin.quats.norm(dim=-1) < 0.5).any()):
        raise ValueError("a skin whose joints have no rotation")
    if joints.numel() and not 0 <= int(joints.min()) <= int(joints.max()) < len(skin):
        raise ValueError("a skin whose vertices follow joints that do not exist")
    if bool((skin.weights < 0).any()) or bool((skin.weights.sum(-1) - 1).abs().max() > 1e-3):
        raise ValueError("a skin of weights that are no shares")
    return skin


@canonical.register
def _(value: Mesh) -> Any:
    return {name: canonical(part) for name, part in vars(value).items() if isinstance(part, (Tensor, tuple, Skin))}


def __getattr__(name: str) -> Any:
    from .former import found

    return found("mesh", name)
