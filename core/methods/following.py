"""Motion by tracking alone: control nodes that go where optical flow of the driving video takes what they carry.

Frame by frame, the object's visible points are followed by flow, checked forward and backward and by the mask, and the nodes
move with them as rigidly as they can (:mod:`..deformation.arap`); points that end up beside the object's outline are drawn back
to it. Then the motion prior is asked for depth and for what is unseen, and all frames are solved once more with its answer.
Nothing is rendered and no gradient is taken: seconds, on any machine. What it gives is a preview, and where a fit starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, map_coordinates, minimum_filter
from scipy.sparse import csr_matrix
from torch import Tensor

from ..align.flow import Flow, dis_flow, lucas_kanade
from ..cameras import FrontCamera
from ..deformation import DeformationField
from ..deformation.arap import RigidGraph
from ..deformation.control_nodes import ControlNodes
from ..fit.loop import tracking_order
from ..packages import problem
from ..priors.motion import MotionPrior
from ..progress import Progress
from ..render import rasterize
from ..scene.scene import Scene4D
from ..video import DrivingVideo

log = logging.getLogger(__name__)

STAGE = "follow by flow"
#: Pixels by which flow there and back may miss, and the same as a share of its length.
MISS, MISS_SHARE = 1.0, 0.1
#: Pixels from its point on the surface at which a track is begun anew, and at which it counts half.
SLIP, DOUBT = 12.0, 8.0
#: Pulls on a node, relative to that of one edge: of what it carries along the picture, of its outline (relative to that), of
#: its depth so far, of its neighbours in time.
PULL, OUTLINE, STAY, CALM = 4.0, 0.5, 0.005, 0.1
#: Pulls of a motion prior without doubt, in the picture and in depth, and the doubt that halves them, in lengths of the object.
UNSEEN, AHEAD, TRUST = 0.1, 0.1, 0.3
#: Share of what a node carries that must be tracked for the node to count as seen.
SEEN = 0.3
#: Share of the last move that the next frame starts with; rounds of goals, each with so many of rotations and positions.
MOMENTUM, GOALS, GOALS_AT_ONCE, ROUNDS = 0.8, 4, 3, 4
#: Side of a cell of the depth buffer, pixels, and how far behind its nearest point others are still seen, world units.
CELL, BEHIND = 4, 0.05
#: The most points that are followed: some of the Gaussians, which all move with the nodes.
POINTS = 8000
#: Gaussians that carry a node where a field only knows where they go.
CARRIERS = 8


@dataclass(frozen=True)
class Following:
    """How a motion is found by tracking.

    Args:
        prior: tells depth and unseen parts; None: both follow from rigidity alone.
    """

    prior: MotionPrior | None = None


@torch.no_grad()
def follow(
    video: DrivingVideo,
    scene: Scene4D,
    fronts: Sequence[FrontCamera],
    field: ControlNodes,
    how: Following,
    *,
    flow: Flow | None = None,
    backend: str = "auto",
    progress: Progress | None = None,
) -> None:
    """Sets the poses of a field's nodes at every frame to what the video shows.

    Args:
        video: driving video, of as many frames as the scene has.
        scene: the object that the field moves, as the first frame shows it.
        fronts: the camera of all frames, or one of each.
        field: with a key a frame; changed.
        flow: of two pictures; None: OpenCV's where it is installed, else :func:`~..align.flow.lucas_kanade`.
        progress: called at each frame; it may raise to interrupt.
    """
    if flow is None:
        flow = lucas_kanade if problem("cv2") else dis_flow()
    video = video.to("cpu")
    body, clip = _Body(scene, fronts, video, field), _Clip(video, flow)
    frames, steps = len(video), len(video) + (how.prior is not None)
    positions = np.repeat(body.graph.rest[None], frames, 0)
    turns = np.tile(np.eye(3), (*positions.shape[:2], 1, 1))
    tracks = np.zeros((frames, len(body.points), 2))
    tracked = np.zeros(tracks.shape[:2], dtype=bool)
    pixels, seen = body.seen(0, positions[0], turns[0])
    tracks[0], tracked[0] = pixels, seen & (clip.inside(0, pixels) > 0.5)

    def drawn(frame: int) -> Callable[[], Tensor]:
        def picture() -> Tensor:
            body.write(positions, turns)
            moved = field(scene.gaussians, scene.taus[frame : frame + 1].to(scene.gaussians.device))
            cameras = fronts[frame % len(fronts)].cropped(video.crop, min(video.resolution, 192)).to(scene.gaussians.device)
            shown = rasterize(moved, cameras, torch.ones(3, device=cameras.K.device), backend=backend).color[0, 0]
            return torch.cat([video.resized(len(shown)).composited()[frame], shown.clamp(0, 1).cpu()], 1)

        return picture

    for done, (t, source, before) in enumerate(tracking_order(frames, scene.loop), 1):
        pixels, seen = body.seen(source, positions[source], turns[source])
        going_on = tracked[source] & (np.linalg.norm(tracks[source] - pixels, axis=1) < SLIP)
        start = np.where(going_on[:, None], tracks[source], pixels)
        tracks[t], good = clip.step(source, t, start)
        tracked[t] = good & seen
        pose = positions[source] + MOMENTUM * (positions[source] - positions[before])
        for _ in range(GOALS):
            goal, pull = body.goal(t, pose, body.graph.rotations(pose[None])[0], tracks[t], tracked[t], clip)
            near = body.before(t, pose)
            pose = body.graph.solve(near[None], goal[None], pull[None], np.full_like(pull, STAY)[None], ROUNDS)[0]
            pose = body.world(t, pose)
        positions[t], turns[t] = pose, body.graph.rotations(pose[None])[0]
        if progress is not None:
            progress(STAGE, done, steps, {}, drawn(t))
    if how.prior is not None:
        positions = _together(body, clip, how.prior, fronts[0].distance, scene.loop, positions, tracks, tracked)
        turns = body.graph.rotations(positions)
    if progress is not None:
        progress(STAGE, steps, steps, {}, drawn(frames - 1))
    body.write(positions, turns)


@torch.no_grad()
def carried_over(start: Scene4D, field: DeformationField, scene: Scene4D) -> bool:
    """Gives a field at rest the motion of a moving scene of the same object; whether it takes one.

    Args:
        start: its frames may be others.
        field: of ``scene``; changed where it has control nodes.
    """
    if not isinstance(field, ControlNodes):
        log.warning("motion: a %s field does not start with a motion, so it starts at rest; choose control-nodes", field.name)
        return False
    at = start.to("cpu")
    assert at.field is not None
    rest, taus = field.node_positions.cpu(), scene.taus
    carrier = at.field.carrier(at.gaussians, rest, at.surface)
    if carrier is not None:
        moved = carrier(taus)
    else:
        near = torch.cdist(rest, at.gaussians.means).topk(min(CARRIERS, len(at.gaussians)), largest=False).indices
        moved = rest + torch.stack([(at.at(float(tau)).means - at.gaussians.means)[near].mean(1) for tau in taus])
    graph = RigidGraph(rest.double().numpy(), field.pairs.cpu().numpy())
    field.set_motion(moved, torch.from_numpy(graph.rotations(moved.double().numpy())))
    return True


def _together(
    body: _Body, clip: _Clip, prior: MotionPrior, distance: float, loop: bool,
    positions: np.ndarray, tracks: np.ndarray, tracked: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """All frames once more, with what the motion prior expects of depth and of unseen nodes."""
    times, size = range(len(positions)), float(np.ptp(body.graph.rest, axis=0).max())

    def as_asked(at: np.ndarray) -> np.ndarray:  # in the motion prior's coordinates
        return np.concatenate([distance * at[..., :2] / at[..., 2:], at[..., 2:] - distance], -1) / size

    rest = as_asked(body.before(0, body.graph.rest))
    there = as_asked(np.stack([body.before(t, positions[t]) for t in times]))
    seen = np.stack([body.gathered(row.astype(np.float64)) for row in tracked]) / body.carried > SEEN
    asked = [torch.from_numpy(x).float().to(body.field.pairs.device) for x in (rest, there[..., :2] - rest[:, :2], seen)]
    moved, doubt = (x.cpu().double().numpy() for x in prior(asked[0], asked[1], asked[2], distance / size))
    expected, sure = (rest + moved) * size, 1 / (1 + (doubt / TRUST) ** 2)
    for _ in range(GOALS_AT_ONCE):
        turns = body.graph.rotations(positions)
        found = [body.goal(t, positions[t], turns[t], tracks[t], tracked[t], clip) for t in times]
        goal, pull = (np.stack(x) for x in zip(*found, strict=True))
        ahead = np.full_like(pull, STAY)
        unseen, depth = UNSEEN * sure[..., 0] * ~seen, AHEAD * sure[..., 1]
        between = (np.roll(positions, 1, 0) + np.roll(positions, -1, 0)) / 2
        if not loop:
            between[-1] = positions[-1]
        near, between = (np.stack([body.before(t, x[t]) for t in times]) for x in (positions, between))
        parts = (expected[..., :2] / distance * near[..., 2:], unseen), (between[..., :2], np.full_like(pull, CALM))
        goal[..., :2], pull = _mean((goal[..., :2], pull), *parts)
        deep = (expected[..., 2:] + distance, depth), (between[..., 2:], np.full_like(pull, CALM))
        goal[..., 2:], ahead = _mean((goal[..., 2:], ahead), *deep)
        goal[0], pull[0], ahead[0] = body.before(0, body.graph.rest), 1e4, 1e4
        near = body.graph.solve(near, goal, pull, ahead, ROUNDS)
        positions = np.stack([body.world(t, near[t]) for t in times])
    return positions


def _mean(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The goal and the pull (T, M) that several goals (T, M, C) with their pulls come to."""
    total = sum((pull for _, pull in parts), np.zeros(1))
    return sum((goal * pull[..., None] for goal, pull in parts), np.zeros(1)) / total[..., None], total


class _Body:
    """The object before its cameras: nodes and the points that they carry, in the world's frame, float64."""

    def __init__(self, scene: Scene4D, fronts: Sequence[FrontCamera], video: DrivingVideo, field: ControlNodes) -> None:
        cameras = [front.cropped(video.crop, video.resolution) for front in fronts]
        self.poses = [each.world_to_camera[0].double().numpy() for each in cameras]
        self.K = [each.K[0].double().numpy() for each in cameras]
        self.field, self.side = field, video.resolution
        self.graph = RigidGraph(field.node_positions.cpu().double().numpy(), field.pairs.cpu().numpy())
        every = slice(None, None, -(-len(scene.gaussians) // POINTS))
        self.points = scene.gaussians.means[every].cpu().double().numpy()
        index, weight = field.bind_index[every].cpu().numpy(), field.bind_weight[every].cpu().double().numpy()
        rows = np.repeat(np.arange(len(index)), index.shape[1])
        self.bound = csr_matrix((weight.ravel(), (rows, index.ravel())), shape=(len(index), len(self.graph.rest)))
        self.carried = np.maximum(self.gathered(np.ones(len(index))), 1e-9)

    @cached_property
    def _to_nodes(self) -> csr_matrix:
        return self.bound.T.tocsr()

    def gathered(self, values: np.ndarray) -> np.ndarray:  # (N, ...) -> (M, ...)
        """Sums over what each node carries."""
        return self._to_nodes @ values

    def moved(self, positions: np.ndarray, turns: np.ndarray) -> np.ndarray:  # (M, 3), (M, 3, 3) -> (N, 3)
        """Where the points are when the nodes are there."""
        offsets = positions - (turns @ self.graph.rest[..., None])[..., 0]
        blend = self.bound @ np.concatenate([turns.reshape(-1, 9), offsets], 1)
        return (blend[:, :9].reshape(-1, 3, 3) @ self.points[..., None])[..., 0] + blend[:, 9:]

    def before(self, frame: int, places: np.ndarray) -> np.ndarray:  # (N, 3) -> (N, 3)
        """World positions in the frame of a frame's camera."""
        pose = self.poses[frame % len(self.poses)]
        return places @ pose[:3, :3].T + pose[:3, 3]

    def world(self, frame: int, places: np.ndarray) -> np.ndarray:  # (N, 3) -> (N, 3)
        """:meth:`before` undone."""
        pose = self.poses[frame % len(self.poses)]
        return (places - pose[:3, 3]) @ pose[:3, :3]

    def projected(self, frame: int, near: np.ndarray) -> np.ndarray:  # (N, 3) -> (N, 2)
        """Pixels of the crop, of places before a frame's camera."""
        K = self.K[frame % len(self.K)]
        return near[:, :2] / np.maximum(near[:, 2:], 1e-3) * K.diagonal()[:2] + K[:2, 2]

    def seen(self, frame: int, positions: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the points are in the picture (N, 2), and which are not behind others (N,), by a coarse depth buffer."""
        points = self.before(frame, self.moved(positions, turns))
        pixels, count = self.projected(frame, points), -(-self.side // CELL)
        cell = np.floor(pixels / CELL).astype(np.int64)
        inside = ((cell >= 0) & (cell < count)).all(1)
        place = np.clip(cell, 0, count - 1) @ np.array([1, count])
        nearest = np.full(count * count, np.inf)
        np.minimum.at(nearest, place[inside], points[inside, 2])
        nearest = minimum_filter(nearest.reshape(count, count), 3).ravel()
        return pixels, inside & (points[:, 2] < nearest[place] + BEHIND)

    def goal(
        self, frame: int, positions: np.ndarray, turns: np.ndarray, track: np.ndarray, tracked: np.ndarray, clip: _Clip
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where tracks and the outline draw the nodes before the camera (M, 3), at their depth, and how strongly (M,)."""
        pixels = self.projected(frame, self.before(frame, self.moved(positions, turns)))
        off = np.where(tracked[:, None], track - pixels, 0.0)
        pull = tracked / (1 + (off**2).sum(1) / DOUBT**2)
        back, outside = clip.back_to_outline(frame, pixels)
        drawn = OUTLINE * outside
        total = self.gathered(pull + drawn)
        off = self.gathered(pull[:, None] * off + drawn[:, None] * back) / np.maximum(total, 1e-9)[:, None]
        goal = self.before(frame, positions)
        goal[:, :2] += off / self.K[frame % len(self.K)].diagonal()[:2] * goal[:, 2:]
        return goal, STAY + PULL * total / self.carried

    def write(self, positions: np.ndarray, turns: np.ndarray) -> None:  # (T, M, 3), (T, M, 3, 3)
        """To the field."""
        self.field.set_motion(torch.from_numpy(positions), torch.from_numpy(turns))


class _Clip:
    """The driving video, its flow and its outlines."""

    def __init__(self, video: DrivingVideo, flow: Flow) -> None:
        self.pictures, self.masks, self.flow = video.composited(0.5), video.masks.numpy(), flow
        self.outlines: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def inside(self, frame: int, pixels: np.ndarray) -> np.ndarray:  # (N, 2) -> (N,)
        return _sampled(self.masks[frame], pixels)

    def step(self, source: int, target: int, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points of one frame (N, 2) are in another, and which of them are sure (N,): found back, and on the object."""
        pictures = self.pictures[source], self.pictures[target]
        ahead, back = self.flow(*pictures).numpy(), self.flow(*reversed(pictures)).numpy()
        move = _sampled(ahead, start)
        end = start + move
        missed = np.linalg.norm(move + _sampled(back, end), axis=1)
        sure = missed < np.maximum(MISS, MISS_SHARE * np.linalg.norm(move, axis=1))
        return end, sure & (self.inside(source, start) > 0.5) & (self.inside(target, end) > 0.5)

    def back_to_outline(self, frame: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The way from points (N, 2) to the object's mask, and which of them lie beside it (N,)."""
        if frame not in self.outlines:
            outside = self.masks[frame] <= 0.5
            if outside.all():
                self.outlines[frame] = np.zeros(outside.shape), np.zeros((2, *outside.shape))
            else:
                self.outlines[frame] = distance_transform_edt(outside, return_indices=True)  # pyright: ignore[reportArgumentType]
        distance, nearest = self.outlines[frame]
        column, row = np.clip(np.floor(pixels), 0, len(distance) - 1).astype(np.int64).T
        back = np.stack([nearest[1, row, column], nearest[0, row, column]], -1) + 0.5 - pixels
        return back, distance[row, column] > 0.5


def _sampled(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:  # (H, W[, C]), (N, 2) -> (N[, C])
    where = pixels[:, ::-1].T - 0.5
    if image.ndim == 2:
        return map_coordinates(image, where, order=1, mode="nearest")
    return np.stack([map_coordinates(image[..., c], where, order=1, mode="nearest") for c in range(image.shape[-1])], -1)
