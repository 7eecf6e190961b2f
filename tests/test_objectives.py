"""Objectives: each is zero where it should be, and pulls where it should."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes, DeformationField, DeformationMLP
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians, from_points, random_gaussians
from anchor4d.core.methods.stages import gaussians_on_mesh
from anchor4d.core.metrics.perceptual import SSIMDistance, perceptual_distance
from anchor4d.core.objectives.base import FitStep, check_objectives
from anchor4d.core.objectives.first_frame import FirstFrame
from anchor4d.core.objectives.front import ReferenceViewLoss, image_loss
from anchor4d.core.objectives.mesh import MeshMatch
from anchor4d.core.objectives.rigidity import Rigidity, Smoothness, edge_strain
from anchor4d.core.priors import models
from anchor4d.core.render import rasterize
from anchor4d.core.runs.sample import sample_meshes
from anchor4d.core.scene.scene import frame_times
from anchor4d.core.schedules import constant, linear
from anchor4d.core.video import DrivingVideo

FRAMES, SIZE = 4, 24
FRONT = FrontCamera(fovy=40.0, distance=2.0, width=SIZE, height=SIZE)
CROP = Crop(0, 0, SIZE, SIZE, SIZE)


@pytest.fixture
def gaussians() -> Gaussians:
    made = random_gaussians(80, torch.Generator().manual_seed(0))
    colors = torch.rand(80, 3, generator=torch.Generator().manual_seed(1))
    return from_points(0.6 * made.means, colors, opacity=0.6)


def video_of(gaussians: Gaussians) -> DrivingVideo:
    """A clip in which the Gaussians stand still."""
    render = rasterize(gaussians, FRONT.cropped(CROP, SIZE))
    colors = render.color / render.alpha[..., None].clamp_min(1e-6)
    return DrivingVideo(colors.expand(FRAMES, -1, -1, -1), render.alpha.expand(FRAMES, -1, -1), 12.0, CROP)


def step_of(gaussians: Gaussians, field: DeformationField | None = None, **changes: object) -> FitStep:
    frames = torch.arange(FRAMES if field is not None else 1)
    step = FitStep(
        index=3,
        total=11,
        canonical=gaussians,
        still=gaussians,
        field=field,
        frames=frames,
        taus=frame_times(FRAMES)[frames],
        driving=video_of(gaussians),
        times=frame_times(FRAMES),
        fronts=[FRONT],
        resolution=SIZE,
        background=torch.tensor([0.9, 0.2, 0.4]),
        generator=torch.Generator().manual_seed(5),
    )
    return replace(step, **changes)  # pyright: ignore[reportArgumentType]


def nodes_of(gaussians: Gaussians) -> ControlNodes:
    return ControlNodes.on_surface(gaussians, FRAMES, nodes=12)


# Weights


def test_weights_run_from_start_to_end_and_name_themselves() -> None:
    weight = linear(0.98, 0.02, 1e4)
    assert (weight(0.0), weight(1.0)) == (pytest.approx(9800), pytest.approx(200))
    assert weight(0.5) == pytest.approx(5000)
    assert constant(3.0)(0.7) == 3.0
    # Checkpoints are matched by this text, so it must be the same in every process.
    assert repr(ReferenceViewLoss(weight=weight)) == repr(ReferenceViewLoss(weight=linear(0.98, 0.02, 1e4)))
    assert " at 0x" not in repr(ReferenceViewLoss(weight=weight))


# Pictures


def test_image_loss_is_closed_form() -> None:
    color, target = torch.full((2, 1, 8, 8, 3), 0.5), torch.full((2, 1, 8, 8, 3), 0.3)
    alpha, mask = torch.full((2, 1, 8, 8), 0.9), torch.full((2, 1, 8, 8), 0.6)
    single = image_loss(color, alpha, target, mask, weight=10.0, mask_weight=0.5)
    assert float(single) == pytest.approx(10 * (0.2**2 + 0.5 * 0.3**2), rel=1e-5)
    # A constant difference is the same on every level, which count 1, 2, 4.
    levels = image_loss(color, alpha, target, mask, weight=10.0, mask_weight=0.5, levels=3)
    assert float(levels) == pytest.approx(7 * float(single), rel=1e-5)


def test_coarse_levels_pull_across_a_gap() -> None:
    target = torch.zeros(1, 32, 32, 3)
    target[:, 8:16, 16:20] = 1
    empty = torch.zeros(1, 32, 32)

    def loss(x: int, levels: int) -> float:
        color = torch.zeros(1, 32, 32, 3)
        color[:, 8:16, x : x + 4] = 1
        return float(image_loss(color, empty, target, empty, weight=1.0, levels=levels))

    assert loss(4, 1) == pytest.approx(loss(20, 1))  # the fine picture does not see that 20 is nearer
    assert loss(20, 4) < 0.95 * loss(4, 4)


def test_front_match_is_zero_on_the_video_itself_and_pulls_otherwise(gaussians: Gaussians) -> None:
    objective = ReferenceViewLoss(weight=constant(1.0), mask=1.0, perceptual=0.0, levels=2)
    field = nodes_of(gaussians)
    assert objective(step_of(gaussians, field)).item() < 1e-6
    with torch.no_grad():
        field.translations[1:, :, 0] = 0.05
    loss = objective(step_of(gaussians, field))
    loss.backward()
    gradient = field.translations.grad
    assert gradient is not None
    assert loss.item() > 1e-4
    assert (gradient[1:, :, 0].sum(1) > 0).all()  # back to where they came from
    assert (gradient[0] == 0).all()


def test_mesh_match_compares_depth_and_normals() -> None:
    mesh = sample_meshes(1)[0]
    good, _ = gaussians_on_mesh(mesh, 3000)
    deep = replace(good, means=good.means * 1.2)
    turned = replace(good, quats=torch.randn(len(good), 4, generator=torch.Generator().manual_seed(0)))

    def extra(part: str, seen: Gaussians) -> float:
        """The part's share of the loss, which draws the same cameras each time."""
        plain = MeshMatch(weight=constant(1.0), views=2, perceptual=0.0)
        step = {"meshes": [mesh], "resolution": 96}
        return float(replace(plain, **{part: 1.0})(step_of(seen, **step))) - float(plain(step_of(seen, **step)))

    assert 0 < extra("depth", good) < 0.2 * extra("depth", deep)
    assert 0 < extra("normals", good) < 0.5 * extra("normals", turned)


def test_mesh_match_is_small_on_gaussians_of_the_mesh_and_needs_one() -> None:
    mesh = sample_meshes(1)[0]
    good, _ = gaussians_on_mesh(mesh, 3000)
    objective = MeshMatch(weight=constant(1.0), views=2, mask=1.0, perceptual=0.0)
    near = float(objective(step_of(good, meshes=[mesh], resolution=96)))
    far = float(objective(step_of(good.map(lambda t: t[:300]), meshes=[mesh], resolution=96)))
    assert near < 0.04
    assert far > 2 * near
    with pytest.raises(InputError, match="motion: objective 'mesh' needs the object's mesh or Gaussians"):
        check_objectives("motion", [objective], video=video_of(good), field=None, meshes=[])


def test_mesh_match_compares_each_frame_with_its_own_mesh() -> None:
    meshes = sample_meshes(FRAMES)
    gaussians, _ = gaussians_on_mesh(meshes[0], 2000)
    field = nodes_of(gaussians)
    objective = MeshMatch(weight=constant(1.0), views=3, mask=1.0, perceptual=0.0)
    still = objective(step_of(gaussians, field, meshes=[meshes[0]] * FRAMES, resolution=96)).item()
    moving = objective(step_of(gaussians, field, meshes=meshes, resolution=96)).item()
    assert moving > 1.2 * still


def test_the_first_frame_must_stay_the_static_object(gaussians: Gaussians) -> None:
    torch.manual_seed(0)
    field = DeformationMLP(depth=2, width=16, skip=0)
    objective = FirstFrame(weight=constant(1.0), views=2)
    assert objective(step_of(gaussians, field)).item() < 1e-10
    with torch.no_grad():
        field.heads["means"].bias.fill_(0.1)
    assert objective(step_of(gaussians, field)).item() > 1e-3


# Perceptual distance


def test_ssim_distance_orders_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = F.interpolate(torch.rand(1, 3, 8, 8, generator=generator), 32, mode="bilinear").movedim(1, -1)
    slight = picture + 0.02 * torch.randn(picture.shape, generator=generator)
    strong = torch.rand(picture.shape, generator=generator)
    distance = SSIMDistance()
    assert float(distance(picture, picture)) == pytest.approx(0, abs=1e-5)
    assert 0 < float(distance(slight, picture)) < float(distance(strong, picture)) < 2


def test_ssim_distance_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 20, 26, 3, generator=generator, dtype=torch.float64)
    b = 0.6 * a + 0.4 * b
    halves = [F.avg_pool2d(t.movedim(-1, 1), 2).movedim(1, -1) for t in (a, b)]
    expected = [
        metrics.structural_similarity(x, y, channel_axis=-1, data_range=1.0, use_sample_covariance=False)
        for pair in ((a, b), halves)
        for x, y in zip(*(t.numpy() for t in pair))
    ]
    assert float(SSIMDistance()(a, b)) == pytest.approx(1 - sum(expected) / 4, abs=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")
def test_ssim_distance_is_the_same_on_a_card() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 40, 52, 3, generator=generator)
    found = []
    for device in ("cpu", "cuda"):
        picture = a.to(device).requires_grad_(True)
        loss = SSIMDistance()(picture, b.to(device))
        found.append((loss.detach().cpu(), torch.autograd.grad(loss, picture)[0].cpu()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-8)


def test_ssim_stands_in_where_the_machine_has_no_backbone(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, gaussians: Gaussians
) -> None:
    monkeypatch.setattr(models, "models_folders", lambda: [tmp_path_factory.mktemp("empty")])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path_factory.mktemp("hub")))
    perceptual_distance.cache_clear()
    try:
        distance, name = perceptual_distance("auto")
        assert name == "ssim"
        assert isinstance(distance, SSIMDistance)
        with_term = ReferenceViewLoss(weight=constant(0.0), perceptual=1.0)
        other = video_of(replace(gaussians, sh=-gaussians.sh))
        assert float(with_term(step_of(gaussians, driving=other))) > 0.01
        assert float(with_term(step_of(gaussians))) < 1e-4
    finally:
        perceptual_distance.cache_clear()


# Motion


def test_rigid_motion_costs_nothing_and_stretching_does() -> None:
    generator = torch.Generator().manual_seed(0)
    rest = torch.rand(20, 3, generator=generator)
    pairs = torch.combinations(torch.arange(20))
    angle = 0.7
    quat = torch.tensor([math.cos(angle / 2), 0.0, math.sin(angle / 2), 0.0])
    turn = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]], dtype=torch.float32
    )
    strain, bend = edge_strain(rest, (rest @ turn.T + 0.3)[None], quat.expand(1, 20, 4), pairs)
    assert float(strain.max()) < 1e-10
    assert float(bend.max()) < 1e-10
    still = torch.tensor([1.0, 0, 0, 0]).expand(1, 20, 4)
    stretched, _ = edge_strain(rest, (1.1 * rest)[None], still, pairs)
    torch.testing.assert_close(stretched, torch.full_like(stretched, 0.01), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["control-nodes", "mlp"])
def test_rigidity_and_smoothness_hold_a_field_together(gaussians: Gaussians, name: str) -> None:
    torch.manual_seed(0)
    field = nodes_of(gaussians) if name == "control-nodes" else DeformationMLP(depth=2, width=32, skip=0)
    rigidity, smoothness = Rigidity(weight=constant(1.0)), Smoothness(weight=constant(1.0))
    for objective in (rigidity, smoothness):
        assert objective(step_of(gaussians, field)).item() < 1e-8
    with torch.no_grad():
        moving = field.translations if isinstance(field, ControlNodes) else field.heads["means"].weight
        moving.normal_(std=0.05)
    for objective in (rigidity, smoothness):
        loss = objective(step_of(gaussians, field))
        assert loss.item() > 1e-6
        loss.backward()
        assert moving.grad is not None
        assert float(moving.grad.abs().sum()) > 0
        moving.grad = None


def test_even_motion_is_smooth(gaussians: Gaussians) -> None:
    field = nodes_of(gaussians)
    with torch.no_grad():
        field.translations[..., 1] = 0.1 * torch.arange(FRAMES)[:, None]
    assert Smoothness(weight=constant(1.0))(step_of(gaussians, field)).item() < 1e-8
    # A clip that loops must come back: the jump from the last frame to the first counts.
    assert Smoothness(weight=constant(1.0))(step_of(gaussians, field, loop=True)).item() > 1e-3
