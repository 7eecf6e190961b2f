"""Colours for a mesh that has none: the frame projected on what it sees, the rest filled along the surface."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..files import InputError
from ..mesh import Mesh
from ..progress import pulse
from ..render.mesh import render_mesh

MOST_FACES = 300_000


def color_from_frame(
    mesh: Mesh,
    frame: Tensor,  # (S, S, 3) straight colour
    mask: Tensor,  # (S, S) alpha
    camera: Cameras,  # (1,) of S x S pixels
    *,
    border: int = 2,
) -> Mesh:
    """Vertex colours from one frame.

    The mesh is welded, and subdivided until an edge spans about one pixel. A vertex that the camera sees takes the frame's
    colour there, weighted by how squarely it faces the camera; pixels within ``border`` of the mask's edge or of a jump in
    depth are not trusted. Everything else is filled by the smoothest colours over the surface that continue the seen ones (a
    sparse Laplacian system), and parts without any seen vertex take the nearest seen colour.

    Args:
        frame: of the picture that ``camera`` draws.

    Raises:
        InputError: where the camera sees nothing of the mesh inside the mask.
    """
    from scipy.ndimage import binary_erosion, map_coordinates, maximum_filter, minimum_filter
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import splu
    from scipy.spatial import KDTree

    depth_of_origin = float(camera.world_to_camera[0, 2, 3])
    pixel = depth_of_origin / float(camera.K[0, 1, 1])  # world size of a pixel at the object
    vertices, faces = _weld(mesh.vertices.double().numpy(), mesh.faces.numpy())
    vertices, faces = _subdivide(vertices, faces, 1.2 * pixel)
    fine = Mesh(
        vertices=torch.from_numpy(vertices).float(),
        faces=torch.from_numpy(faces),
        normals=None,
        uvs=None,
        vertex_colors=None,
        textures=(),
        face_texture=torch.full((len(faces),), -1, dtype=torch.long),
        face_color=torch.ones(len(faces), 4),
        face_alpha_cutoff=torch.zeros(len(faces)),
        name=mesh.name,
    )

    render = render_mesh(fine, camera, supersample=1)
    depth = render.depth[0].double().numpy()
    near, far = minimum_filter(np.where(depth > 0, depth, np.inf), 3), maximum_filter(depth, 3)
    trusted = (far - near < 0.05) & binary_erosion((mask.numpy() > 0.9) & (depth > 0), iterations=border).astype(bool)

    view = camera.world_to_camera[0].double().numpy()
    at = vertices @ view[:3, :3].T + view[:3, 3]
    K = camera.K[0].double().numpy()
    column, row = K[0, 0] * at[:, 0] / at[:, 2] + K[0, 2] - 0.5, K[1, 1] * at[:, 1] / at[:, 2] + K[1, 2] - 0.5
    j, i = (np.clip(np.rint(v).astype(int), 0, len(depth) - 1) for v in (column, row))
    away = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    normal = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normal, faces[:, corner], away)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-20
    eye = camera.positions[0].double().numpy() - vertices
    # Either winding: meshes from elsewhere are not always consistent, and the depth test already excludes the far side.
    facing = np.abs((normal * eye).sum(1)) / np.linalg.norm(eye, axis=1)
    seen = trusted[i, j] & (np.abs(at[:, 2] - depth[i, j]) < 0.02) & (facing > 0.15)
    if not seen.any():
        raise InputError(f"{mesh.name or 'mesh'}: the frame's foreground does not meet the mesh, align the camera first")

    premultiplied = (frame * mask[..., None]).numpy()
    alpha = map_coordinates(mask.numpy(), [row[seen], column[seen]], order=1, mode="nearest")
    sampled = (
        np.stack(
            [map_coordinates(premultiplied[..., k], [row[seen], column[seen]], order=1, mode="nearest") for k in range(3)], -1
        )
        / np.maximum(alpha, 1e-3)[:, None]
    )
    data = np.zeros((len(vertices), 3))
    weight = np.full(len(vertices), 1e-5)
    data[~seen] = sampled[KDTree(vertices[seen]).query(vertices[~seen])[1]]
    data[seen], weight[seen] = sampled, 300 * facing[seen] ** 2

    pulse()
    edges = np.unique(np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
    stiffness = pixel / (np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1) + 0.1 * pixel)
    adjacency = coo_matrix((stiffness, (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2)
    adjacency = adjacency + adjacency.T
    system = diags(np.asarray(adjacency.sum(1)).ravel() + weight) - adjacency
    pulse()
    colors = splu(system.tocsc()).solve(weight[:, None] * data)
    rgba = np.concatenate([colors.clip(0, 1), np.ones((len(vertices), 1))], 1)
    return replace(fine, vertex_colors=torch.from_numpy(rgba).float())


def _weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One vertex a place, no faces without area: parts and texture seams grow together."""
    _, first, where = np.unique(np.round(vertices * 1e5).astype(np.int64), axis=0, return_index=True, return_inverse=True)
    faces = where.reshape(-1)[faces]
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return vertices[first], faces[whole]


def _subdivide(vertices: np.ndarray, faces: np.ndarray, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges above ``longest`` halved, alike in both their faces, until none is left or :data:`MOST_FACES` is near."""
    while len(faces) * 4 <= MOST_FACES:
        pulse()
        corners = np.sort(faces[:, [1, 2, 2, 0, 0, 1]].reshape(-1, 2), axis=1)  # edge k lies opposite corner k
        edges, which = np.unique(corners, axis=0, return_inverse=True)
        which = which.reshape(-1, 3)
        long = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1) > longest
        if not long.any():
            break
        middle = np.full(len(edges), -1)
        middle[long] = len(vertices) + np.arange(long.sum())
        vertices = np.concatenate([vertices, vertices[edges[long]].mean(1)])
        middles, count = middle[which], long[which].sum(1)
        made = [faces[count == 0]]
        # One split edge: turned so that it lies opposite corner 0. Two: so that the whole edge does.
        for n, lead in ((1, long[which].argmax(1)), (2, long[which].argmin(1))):
            part = count == n
            turn = (lead[part, None] + np.arange(3)) % 3
            (a, b, c), (ma, mb, mc) = np.take_along_axis(faces[part], turn, 1).T, np.take_along_axis(middles[part], turn, 1).T
            if n == 1:
                made += [np.stack([a, b, ma], 1), np.stack([a, ma, c], 1)]
            else:
                made += [np.stack([a, mc, mb], 1), np.stack([mc, b, mb], 1), np.stack([b, c, mb], 1)]
        (a, b, c), (ma, mb, mc) = faces[count == 3].T, middles[count == 3].T
        made += [np.stack(f, 1) for f in ((a, mc, mb), (mc, b, ma), (mb, ma, c), (ma, mb, mc))]
        faces = np.concatenate(made)
    return vertices, faces
