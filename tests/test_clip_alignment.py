"""A focal length for each frame (variant pla4d-v4)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from anchor4d.core.align.clip import focal_per_frame, robust_smooth
from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import pla4d
from anchor4d.core.objectives.mesh import MeshMatch
from anchor4d.core.render.mesh import render_mesh
from anchor4d.core.video import DrivingVideo


def box() -> Mesh:
    corners = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.35, 0.35) for z in (-0.25, 0.25)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    colors = torch.cat([(corners + 0.5).clamp(0, 1), torch.ones(8, 1)], -1)
    return Mesh(vertices=corners, faces=faces, vertex_colors=colors)


def zooming_video(mesh: Mesh, fovys: list[float]) -> DrivingVideo:
    crop = Crop(0, 0, 64, 64, 64)
    frames, masks = [], []
    for fovy in fovys:
        view = render_mesh(mesh, FrontCamera(fovy, 2.0, 64, 64).cameras())
        masks.append(view.alpha[0])
        frames.append(view.color[0] / view.alpha[0, ..., None].clamp_min(1e-6))
    return DrivingVideo(torch.stack(frames), torch.stack(masks), 12.0, crop, "zoom")


def test_a_zoom_is_found_frame_by_frame() -> None:
    fovys = [45.0 + 0.5 * t for t in range(6)]
    fronts, curve = focal_per_frame(zooming_video(box(), fovys), [box()], FrontCamera(fovys[0], 2.0, 64, 64), resolution=64)
    assert [front.fovy for front in fronts] == pytest.approx(fovys, abs=0.15)
    assert curve.y.tolist() == pytest.approx([front.fovy for front in fronts])


def test_each_frame_may_have_its_own_mesh() -> None:
    small = box().transformed(torch.diag(torch.tensor([0.95, 0.95, 0.95, 1.0])))
    video = zooming_video(box(), [45.0] * 4)
    fronts, _ = focal_per_frame(
        video, [box(), box(), small, small], FrontCamera(45.0, 2.0, 64, 64), resolution=64, smoothness=0.0
    )
    # A smaller mesh needs a longer lens to look the same; perspective makes it a little different from 0.95.
    ratio = math.tan(math.radians(fronts[3].fovy) / 2) / math.tan(math.radians(fronts[0].fovy) / 2)
    assert ratio == pytest.approx(0.95, abs=0.01)


def test_smoothing_keeps_a_trend_and_drops_an_outlier() -> None:
    truth = 1 + 0.01 * np.arange(9)
    seen = truth.copy()
    seen[4] += 0.3
    np.testing.assert_allclose(robust_smooth(seen, 4.0), truth, atol=0.01)


def test_the_variant_adds_mesh_losses_to_the_motion() -> None:
    plain = pla4d.preset("draft")
    variant = pla4d.v4(plain)
    assert any(isinstance(o, MeshMatch) for o in variant.motion.objectives)
    assert not any(isinstance(o, MeshMatch) for o in plain.motion.objectives)
