"""Where the motion is a guess: shares of what is seen, known by the motion prior, and neither."""

from __future__ import annotations

import pytest
import torch

from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes, DeformationMLP
from anchor4d.core.methods.caution import GUESS, Certainty, certainty, certainty_line
from anchor4d.core.methods.stages import gaussians_on_mesh
from anchor4d.core.priors.motion import MotionPrior
from anchor4d.core.runs.page import certainty_table
from anchor4d.core.runs.sample import sample_meshes
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.video import DrivingVideo

SIZE, FRAMES = 64, 3
FRONT = FrontCamera(fovy=36.0, distance=2.0, width=SIZE, height=SIZE)
CROP = Crop(0, 0, SIZE, SIZE, SIZE)


def test_shares_add_up_by_region() -> None:
    rest = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [-1, 1, 0], [1, 1, 0]])  # y down: the first two are at the top
    seen = torch.tensor([[True, True, False, False], [True, False, False, False]])
    doubt = torch.full((2, 4, 2), 2 * GUESS)
    doubt[:, 2] = GUESS / 2  # the prior knows the third
    doubt[:, 0, 1] = GUESS / 2  # and the depth of the first
    found = Certainty(rest, rest.expand(2, -1, -1), seen, doubt).report()
    assert (found["seen"], found["prior"], found["guess"]) == (0.375, 0.25, 0.375)
    assert found["depth"] == pytest.approx(2 / 3, abs=1e-3)
    regions = {region["region"]: region for region in found["regions"]}
    assert regions.keys() == {"top left", "top right", "bottom left", "bottom right"}
    assert regions["top left"]["seen"] == 1 and regions["top right"]["guess"] == 0.5
    assert regions["bottom left"]["prior"] == 1 and regions["bottom right"]["guess"] == 1
    assert sum(region["of"] for region in regions.values()) == 1
    line = certainty_line(found)
    assert "38% a guess" in line and "bottom right" in line
    assert "bottom right" in "".join(certainty_table(found)) and certainty_table(None) == []
    # Where nothing was moved in depth, nothing of it is said to be known.
    flat = found | {"flat": True}
    assert "nothing moves in depth" in certainty_line(flat) and "depth is known" not in certainty_line(flat)
    assert "nothing was moved" in "".join(certainty_table(flat)) and "nothing was moved" not in "".join(certainty_table(found))


def test_unseen_motion_without_a_prior_is_a_guess() -> None:
    seen = torch.tensor([[True, False]])
    found = Certainty(torch.rand(2, 3), torch.rand(1, 2, 3), seen).shares()
    assert found == {"seen": 0.5, "prior": 0.0, "guess": 0.5, "depth": 0.0}


def test_a_scene_is_asked_about() -> None:
    mesh = sample_meshes(1)[0]
    skin = gaussians_on_mesh(mesh, 1500)[0]
    field = ControlNodes.on_surface(skin, FRAMES, mesh=mesh, nodes=60)
    scene = Scene4D(skin, field, frames=FRAMES)
    video = DrivingVideo(torch.zeros(FRAMES, SIZE, SIZE, 3), torch.ones(FRAMES, SIZE, SIZE), 8.0, CROP)
    found = certainty(scene, video, [FRONT], MotionPrior())
    assert found is not None and found.doubt is not None and found.doubt.shape == (FRAMES, 60, 2)
    assert torch.allclose(found.moved, found.rest.expand(FRAMES, -1, -1), atol=1e-5)
    # Of a still object the nearer half is seen, the far side is not.
    near = found.rest[:, 2] < found.rest[:, 2].median()
    shares = found.shares(near), found.shares(~near)
    assert shares[0]["seen"] > 0.7 > 0.4 > shares[1]["seen"]
    bare = certainty(scene, video, [FRONT], None)
    assert bare is not None and bare.doubt is None
    mlp = Scene4D(skin, DeformationMLP(), frames=FRAMES)
    assert certainty(mlp, video, [FRONT], None) is None
