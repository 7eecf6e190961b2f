"""How sure the motion of each part is: what the video shows, what the motion prior knows, and what is a guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cameras import FrontCamera
from ..priors.motion import MotionPrior
from ..render import rasterize
from ..scene.scene import Scene4D
from ..video import DrivingVideo

#: Doubt of the motion prior, in lengths of the object, above which its answer is a guess.
GUESS = 0.03
#: Pixels of the picture that says what is seen, and how far behind its mean depth a point still counts as on the surface, in
#: lengths of the object.
_SIZE, _TOLERANCE = 128, 0.04
#: Regions of the object at rest, in the driving view.
_HEIGHTS, _SIDES = ("top", "middle", "bottom"), ("left", "right")


@dataclass(frozen=True)
class Certainty:
    """What is known of the motion of the field's handles (M) at the clip's frames (T).

    Args:
        rest: handles at rest before the driving camera, x right, y down, z away, (M, 3), world units.
        moved: at each frame, (T, M, 3).
        seen: by the driving camera, (T, M) bool.
        doubt: of the motion prior, in the picture and in depth, (T, M, 2), lengths of the object; None without a prior.
    """

    rest: Tensor
    moved: Tensor
    seen: Tensor
    doubt: Tensor | None = None

    def shares(self, chosen: Tensor | None = None) -> dict[str, float]:
        """Shares of handles and frames: ``seen`` by the driving view, unseen but known by the ``prior``, and a ``guess``.

        ``depth``: of those that are seen, the share whose motion in depth the prior knows.

        Args:
            chosen: handles that count, (M,) bool; None = all.
        """
        seen = self.seen if chosen is None else self.seen[:, chosen]
        sure = torch.zeros_like(seen)[..., None].expand(-1, -1, 2)
        if self.doubt is not None:
            sure = (self.doubt if chosen is None else self.doubt[:, chosen]) < GUESS
        prior = ~seen & sure.all(-1)
        depth = (seen & sure[..., 1]).sum() / seen.sum().clamp_min(1)
        share = {"seen": seen.float().mean(), "prior": prior.float().mean(), "guess": (~seen & ~prior).float().mean()}
        return {name: round(float(value), 4) for name, value in (share | {"depth": depth}).items()}

    def report(self) -> dict[str, Any]:
        """The shares of the whole and of each region, for report.json."""
        low, high = self.rest.aminmax(dim=0)
        place = ((self.rest - low) / (high - low).clamp_min(1e-9)).clamp(0, 1 - 1e-6)
        row, column = (place[:, 1] * 3).long(), (place[:, 0] * 2).long()
        regions = []
        for i, height in enumerate(_HEIGHTS):
            for j, side in enumerate(_SIDES):
                chosen = (row == i) & (column == j)
                if bool(chosen.any()):
                    whole = {"region": f"{height} {side}", "of": round(float(chosen.float().mean()), 4)}
                    regions.append(whole | self.shares(chosen))
        return {**self.shares(), "regions": regions}


def certainty_line(report: Mapping[str, Any]) -> str:
    """What a person should know of :meth:`Certainty.report`, in a line."""
    worst = max(report["regions"], key=lambda region: region["guess"] * region["of"])
    line = f"motion: {report['seen']:.0%} seen, {report['prior']:.0%} known by the motion prior, {report['guess']:.0%} a guess"
    most = f", most of it {worst['region']}" if report["guess"] > 0.1 else ""
    if report.get("flat"):
        return f"{line}{most}; nothing moves in depth"
    return f"{line}{most}; of what is seen, depth is known of {report['depth']:.0%}"


@torch.no_grad()
def certainty(
    scene: Scene4D, video: DrivingVideo, fronts: Sequence[FrontCamera], prior: MotionPrior | None, backend: str = "auto"
) -> Certainty | None:
    """How sure the motion of a fitted scene is; None for fields without handles.

    Args:
        video: on the scene's device.
        fronts: the driving camera, or one a frame.
        prior: that took part in the fit, or None.
    """
    handles = None if scene.field is None else scene.field.handles()
    if handles is None:
        return None
    assert scene.field is not None
    device, size = scene.gaussians.device, min(_SIZE, video.resolution)
    positions = scene.field.motion_of_handles(scene.taus.to(device))[0]
    extent = float((handles.positions.amax(0) - handles.positions.amin(0)).amax())
    each = [fronts[t if len(fronts) > 1 else 0].cropped(video.crop, size).to(positions) for t in range(scene.frames)]
    poses = torch.stack([camera.world_to_camera[0] for camera in each])
    moved = positions @ poses[:, :3, :3].mT + poses[:, None, :3, 3]
    rest = handles.positions @ poses[0, :3, :3].T + poses[0, :3, 3]
    seen = []
    for t, camera in enumerate(each):
        drawn = rasterize(scene.at(float(scene.taus[t])), camera, backend=backend)
        alpha, depth = drawn.alpha.reshape(size, size), drawn.expected_depth.reshape(size, size)
        z, K = moved[t, :, 2].clamp_min(1e-6), camera.K[0]
        column, row = ((moved[t, :, i] / z * K[i, i] + K[i, 2]).floor().long() for i in (0, 1))
        inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
        at = row.clamp(0, size - 1), column.clamp(0, size - 1)
        seen.append(inside & (alpha[at] > 0.5) & (z < depth[at] + _TOLERANCE * extent))
    if prior is None:
        return Certainty(rest, moved, torch.stack(seen))
    d = fronts[0].distance

    def pictured(x: Tensor) -> Tensor:  # as the prior has it
        z = x[..., 2:].clamp_min(0.05 * d)
        return torch.cat([d * x[..., :2] / z, z - d], -1) / extent

    origin, there = pictured(rest), pictured(moved)
    seen = torch.stack(seen)
    _, doubt = prior(origin, there[..., :2] - origin[:, :2], seen.float(), d / extent)
    return Certainty(rest, moved, seen, doubt)
