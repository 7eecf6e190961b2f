"""The motion of a rig that an object came with, from what was tracked of its surface.

Parents first, each joint takes the turn about its place that its points' motion asks for (weighted rigid fits, Kabsch 1976);
then all turns at once, and the root's shift, are fitted to the surface as linear blend skinning moves it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.spatial import KDTree
from torch import Tensor

from ..cameras import nearest_rotation, quaternion_multiply, quaternion_to_matrix
from ..mesh import Mesh, sample_surface
from ..skin import Skin
from .control_nodes import rotation_vector_to_quaternion
from .skeleton import Motion, Skeleton, blended, matrices_to_quaternions, motions_of

#: Points that are spread over a surface to look up the shares where one lies.
_SPREAD = 40_000
#: A joint that fewer points than this follow, shares summed, keeps to its parent.
FEWEST = 2.0
#: What a point counts that the video does not see at a frame.
UNSEEN = 0.2
#: How strongly a joint keeps to its parent, in parts of what its own points weigh.
_KEEP = 0.02
_STEPS = 120


def shares_on_surface(mesh: Mesh, points: Tensor) -> Tensor:  # (M, 3) -> (M, J)
    """By which shares points on a rigged mesh follow its joints.

    Raises:
        ValueError: for a mesh without a rig.
    """
    mesh = mesh.to("cpu")
    if mesh.skin is None:
        raise ValueError("rig: the mesh has none")
    count = len(mesh.faces)
    spread = sample_surface(mesh, _SPREAD, torch.Generator().manual_seed(0))
    corners = torch.cat([mesh.faces, mesh.faces, mesh.faces, mesh.faces[spread.face]])
    barycentric = torch.cat([*(torch.eye(3)[k].expand(count, 3) for k in range(3)), spread.barycentric])
    places = (mesh.vertices[corners] * barycentric[..., None]).sum(1)
    nearest = torch.from_numpy(KDTree(places.double().numpy()).query(points.detach().cpu().double().numpy())[1])
    return mesh.skin.shares(corners[nearest], barycentric[nearest])


def skeleton_of(skin: Skin, shares: Tensor) -> Skeleton:  # (M, J)
    """A rig's joints at rest: all turn freely, the root alone is shifted.

    Where hardly a point follows the root, what hangs from it is shifted too: the body, and feet that inverse kinematics moves.
    """
    skin = skin.to("cpu")
    bare = float(shares[:, 0].sum()) < FEWEST
    slides = tuple(parent < 0 or (bare and parent == 0) for parent in skin.parents)
    return Skeleton(skin.parents, skin.places, torch.zeros(len(skin), 3), slides, skin.names)


@torch.no_grad()
def rig_motion(
    skin: Skin,
    shares: Tensor,  # (M, J)
    rest: Tensor,  # (M, 3)
    positions: Tensor,  # (T, M, 3)
    quats: Tensor,  # (T, M, 4) wxyz
    seen: Tensor | None = None,  # (T, M) bool
) -> Motion:
    """The turns of a rig's joints that move points on its surface as they were tracked, on the CPU.

    Joints that fewer than :data:`FEWEST` points follow keep to their parents; their points follow those.

    Args:
        shares: by which the points follow the joints.
        rest, positions, quats: of the points, at each frame, and how the surface turns there.
        seen: by the video; others count less. None = all.
    """
    shares = shares.detach().cpu().float()
    skeleton = skeleton_of(skin, shares)
    shares = _gathered(skeleton, shares)
    rest, positions, quats = (x.detach().cpu().float() for x in (rest, positions, quats))
    count = torch.ones(positions.shape[:2]) if seen is None else torch.where(seen.cpu(), 1.0, UNSEEN)  # (T, M)
    turns, shifts = _fitted(skeleton, shares, rest, positions, quats, count)
    turns, shifts = _refined(skeleton, shares, rest, positions, count, turns, shifts)
    away = _skinned(skeleton, shares, rest, turns, shifts) - positions
    size = float((rest.amax(0) - rest.amin(0)).max())
    error = float(away.square().sum(-1).mean().sqrt()) / size
    return Motion(skeleton, turns, shifts, shares.argmax(-1), error, shares)


def _gathered(skeleton: Skeleton, shares: Tensor) -> Tensor:  # (M, J)
    """Shares without those of joints that few points follow: they go to the parents, leaves first."""
    shares = torch.where(shares < 1e-2, 0.0, shares)
    for joint in reversed(range(1, len(skeleton))):
        if float(shares[:, joint].sum()) < FEWEST and not skeleton.slides[joint]:
            shares[:, skeleton.parents[joint]] += shares[:, joint]
            shares[:, joint] = 0
    return shares / shares.sum(-1, keepdim=True)


def _fitted(
    skeleton: Skeleton, shares: Tensor, rest: Tensor, positions: Tensor, quats: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:  # -> (T, J, 4), (T, J, 3)
    """Turns and shifts, joint by joint."""
    places, frames = skeleton.places.double(), len(positions)
    points, moved = rest.double(), positions.double()
    surface = quaternion_to_matrix(F.normalize(quats, dim=-1)).double()  # (T, M, 3, 3)
    ball = (0.05 * float((points.amax(0) - points.amin(0)).max())) ** 2 / 3
    still = torch.eye(3, dtype=torch.float64).expand(frames, 3, 3)
    world: list[Tensor] = []  # (T, 3, 3)
    at: list[Tensor] = []  # (T, 3)
    turns, shifts = [], []
    for joint, parent in enumerate(skeleton.parents):
        near = world[parent] if parent >= 0 else still
        offset = places[joint] - (places[parent] if parent >= 0 else 0)
        there = (at[parent] if parent >= 0 else 0) + (near @ offset[:, None])[..., 0]
        own = shares[:, joint].double() ** 2  # of points between joints, the nearer joint's count
        if parent < 0 and float(own.sum()) < FEWEST:
            own = torch.ones_like(own)
        rotation, place = near, there
        if float(own.sum()) > 0:
            weights, pivot, target = own * count, places[joint].expand(frames, 3), there
            if skeleton.slides[joint]:
                total = weights.sum(-1, keepdim=True)
                pivot, target = (weights @ points) / total, (weights[..., None] * moved).sum(1) / total
            away, centred = moved - target[:, None], points - pivot[:, None]
            products = away[..., :, None] * centred[..., None, :] + ball * surface
            reach = (own * (centred.square().sum(-1).mean(0) + 3 * ball)).sum()
            covariance = (weights[..., None, None] * products).sum(1) + _KEEP * reach * near
            rotation = nearest_rotation(covariance)
            if skeleton.slides[joint]:
                place = target + (rotation @ (places[joint] - pivot)[..., None])[..., 0]
        world.append(rotation)
        at.append(place)
        turns.append(near.mT @ rotation)
        shifts.append((near.mT @ (place - there)[..., None])[..., 0])
    return matrices_to_quaternions(torch.stack(turns, 1)).float(), torch.stack(shifts, 1).float()


@torch.enable_grad()
def _refined(
    skeleton: Skeleton, shares: Tensor, rest: Tensor, positions: Tensor, count: Tensor, turns: Tensor, shifts: Tensor
) -> tuple[Tensor, Tensor]:
    """All turns and shifts at once, for the least squares of the skinned points."""
    size = float((rest.amax(0) - rest.amin(0)).max())
    turn, shift = torch.zeros(*turns.shape[:2], 3, requires_grad=True), torch.zeros_like(shifts, requires_grad=True)
    followed = (shares > 0).any(0)
    followed[0] = True
    slides = torch.tensor(skeleton.slides)[:, None]

    def present() -> tuple[Tensor, Tensor]:
        more = rotation_vector_to_quaternion(torch.where(followed[:, None], turn, 0.0))
        return quaternion_multiply(turns, more), shifts + torch.where(slides, size * shift, 0.0)

    adam = torch.optim.Adam([{"params": [turn], "lr": 2e-2}, {"params": [shift], "lr": 2e-3}])
    fall = torch.optim.lr_scheduler.ExponentialLR(adam, 0.05 ** (1 / _STEPS))
    for _ in range(_STEPS):
        now, moved = present()
        away = (_skinned(skeleton, shares, rest, now, moved) - positions) / size
        bent = (1 - now[..., 0].square()).sum(-1).mean()  # squared sines of half the turns against the parents
        adam.zero_grad()
        ((count[..., None] * away.square()).sum() / count.sum() * 1e3 + 1e-3 * bent).backward()
        adam.step()
        fall.step()
    now, moved = present()
    return F.normalize(now, dim=-1).detach(), moved.detach()


def _skinned(skeleton: Skeleton, shares: Tensor, rest: Tensor, turns: Tensor, shifts: Tensor) -> Tensor:  # -> (T, M, 3)
    """Points where linear blend skinning takes them."""
    return blended(motions_of(*skeleton.pose(turns, shifts), skeleton.places), shares, rest)
