"""Point tracks of a driving video by dense optical flow from frame to frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import InputError
from ..identity import fingerprint
from ..packages import problem
from ..signals import PointTracks
from ..video import DrivingVideo

#: Where a picture's pixels (x, y) have moved to in another, (H, W, 2): of two pictures (H, W, 3) in [0, 1].
Flow = Callable[[Tensor, Tensor], Tensor]

#: Points along a side of the crop, and pixels by which a step forward and back may miss.
SPACING, MISS = 48, 1.0


def dis_flow() -> Flow:
    """OpenCV's dense inverse search (Kroeger et al. 2016) at its finest preset.

    Raises:
        InputError: without OpenCV.
    """
    if reason := problem("cv2"):
        raise InputError(f"flow dis: takes OpenCV (cv2), which {reason}; run: pip install opencv-python-headless")
    import cv2

    found: Any = cv2
    search = found.DISOpticalFlow_create(found.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(first: Tensor, second: Tensor) -> Tensor:
        grey = [(picture.mean(-1) * 255).round().clamp(0, 255).numpy().astype(np.uint8) for picture in (first, second)]
        return torch.from_numpy(search.calc(*grey, None))

    return flow


#: Of the pyramid: its smallest pictures' side, rounds at each level, the window's side, and how much texture a step takes (in
#: squared grey levels of [0, 1]): below it pixels move as their neighbourhood at the coarser level does.
COARSEST, ROUNDS, WINDOW, TEXTURE = 12, 6, 7, 1e-4


@torch.no_grad()
def lucas_kanade(first: Tensor, second: Tensor) -> Tensor:  # (H, W, 3), (H, W, 3) -> (H, W, 2)
    """Dense flow by PyTorch alone: least squares over windows, from coarse pictures to fine (Lucas and Kanade 1981)."""
    levels = [torch.stack([first, second]).permute(0, 3, 1, 2).float()]
    while min(levels[-1].shape[-2:]) >= 2 * COARSEST:
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True, count_include_pad=False))
    flow = levels[-1].new_zeros(1, 2, *levels[-1].shape[-2:])
    for level in reversed(levels):
        height, width = level.shape[-2:]
        if flow.shape[-2:] != (height, width):
            flow = 2 * F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        here, there = level[:1], level[1:]
        edged = F.pad(here, (1, 1, 1, 1), mode="replicate")
        dx, dy = (edged[..., 1:-1, 2:] - edged[..., 1:-1, :-2]) / 2, (edged[..., 2:, 1:-1] - edged[..., :-2, 1:-1]) / 2
        xx, xy, yy = (_window((a * b).mean(1, keepdim=True)) for a, b in ((dx, dx), (dx, dy), (dy, dy)))
        xx, yy = xx + TEXTURE, yy + TEXTURE
        rows, columns = (torch.arange(n, device=level.device) + 0.5 for n in (height, width))
        for _ in range(ROUNDS):
            x, y = (columns + flow[:, 0]) * (2 / width) - 1, (rows[:, None] + flow[:, 1]) * (2 / height) - 1
            warped = F.grid_sample(there, torch.stack([x, y], -1), padding_mode="border", align_corners=False)
            missed = here - warped
            bx, by = (_window((d * missed).mean(1, keepdim=True)) for d in (dx, dy))
            step = torch.cat([yy * bx - xy * by, xx * by - xy * bx], 1) / (xx * yy - xy * xy)
            flow = _window(flow + step.clamp(-1, 1), 3)
    return flow[0].permute(1, 2, 0)


def _window(values: Tensor, side: int = WINDOW) -> Tensor:
    return F.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)


@torch.no_grad()
def tracks_by_flow(video: DrivingVideo, flow: Flow, name: str = "dis", frame: int = 0) -> PointTracks:
    """Points spread over the object in a frame, followed both ways through the clip by flow between neighbouring frames.

    A track ends where the flow back misses its way by more than :data:`MISS` pixels, or where it leaves the mask.

    Args:
        flow: of two neighbours, by the video's own pixels.
        frame: where the points are spread.
    """
    pictures, masks = video.composited(0.5).cpu(), video.masks.cpu()
    count, size = len(video), video.resolution
    step = max(size / SPACING, 1.0)
    at = torch.arange(step / 2, size, step)
    y, x = torch.meshgrid(at, at, indexing="ij")
    start = torch.stack([x, y], -1).reshape(-1, 2)
    start = start[masks[frame][start[:, 1].long(), start[:, 0].long()] > 0.9]
    points, visible = start.expand(count, -1, -1).clone(), torch.zeros(count, len(start), dtype=torch.bool)
    visible[frame] = True
    for way in (1, -1):
        t = frame
        while 0 <= t + way < count:
            ahead, back = flow(pictures[t], pictures[t + way]), flow(pictures[t + way], pictures[t])
            moved = points[t] + _sampled(ahead, points[t])
            missed = (moved + _sampled(back, moved) - points[t]).norm(dim=-1)
            inside = _sampled(masks[t + way][..., None], moved)[:, 0] > 0.9
            points[t + way], visible[t + way] = moved, visible[t] & (missed < MISS) & inside
            t += way
    crop = video.crop
    whole = points * (crop.size / size) + torch.tensor([crop.x, crop.y])
    source = f"flow {name} of {video.source or 'the video'}"
    return PointTracks(whole, visible, source, fingerprint(name, frame, video))


def _sampled(image: Tensor, points: Tensor) -> Tensor:  # (H, W, C), (N, 2) pixels -> (N, C)
    height, width = image.shape[:2]
    grid = points / points.new_tensor([width, height]) * 2 - 1
    found = F.grid_sample(
        image.movedim(-1, 0)[None].float(), grid[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0, :, 0].T
