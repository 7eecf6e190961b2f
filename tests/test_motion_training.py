"""What the motion prior is trained on: generated objects, clips of models, and random cameras with the errors of tracking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from anchor4d.core.io.gltf import Glb, Gltf
from anchor4d.core.priors.motion import MotionPrior, MotionTransformer
from anchor4d.training import motion_clips, motion_prior, moving_objects
from anchor4d.training.motion_prior import Bank, build_bank, draw, loss_of


@pytest.fixture(scope="module")
def bank() -> Bank:
    return build_bank(None, 6, 2, torch.device("cpu"), 1.0)


@pytest.mark.parametrize("kind", list(moving_objects.KINDS))
def test_every_kind_of_object_moves_and_holds_together(kind: str) -> None:
    def made() -> moving_objects.Moving:
        builder = moving_objects.Builder(np.random.default_rng(5))
        moving_objects.KINDS[kind](builder)
        return builder.finished(kind)

    one = made()
    assert one.points.shape == (moving_objects.POINTS, 3) and one.matrices.shape[0] == moving_objects.FRAMES
    assert np.allclose(one.weights.sum(-1), 1) and np.isfinite(one.matrices).all()
    places = motion_prior.moved(one.weights, one.matrices, one.points)
    size = np.ptp(places[0], axis=0).max()
    assert 0.2 < size < 3
    assert 0.02 < np.linalg.norm(places - places[:1], axis=-1).max() / size < 3
    assert np.array_equal(made().matrices, one.matrices)


def test_a_seed_is_an_object() -> None:
    a, b, c = (moving_objects.generate(seed) for seed in (3, 3, 4))
    assert a.kind == b.kind and np.array_equal(a.points, b.points)
    assert not np.array_equal(a.points, c.points)


def test_seeds_that_are_held_out_are_never_trained_on(bank: Bank) -> None:
    assert int(bank.held.sum()) == 2 and len(bank.held) == 8


def test_cameras_see_the_object_move(bank: Bank) -> None:
    b = draw(bank, torch.arange(8), 7, 64, torch.Generator().manual_seed(0), noisy=False)
    assert b.truth.shape == (8, 7, 64, 3)
    assert not bool(b.truth[:, 0].any()) and not bool(b.times[:, 0].any())
    assert torch.equal(b.offsets, b.truth[..., :2] * b.seen[..., None])
    assert torch.equal(b.seen, b.visible.float()) and 0.02 < float(b.seen.mean()) < 0.9
    # The longest side at rest is 1: no point is further from the middle than half the diagonal of a cube.
    assert float(b.rest[..., 2].abs().max()) < 0.87
    assert bool((b.distance >= 1.2).all()) and bool((b.distance <= 3.0).all())


def test_tracking_errs_where_it_should(bank: Bank) -> None:
    clean, noisy = (draw(bank, torch.arange(8), 7, 64, torch.Generator().manual_seed(0), noisy=n) for n in (False, True))
    assert torch.equal(clean.truth, noisy.truth) and not bool(noisy.offsets[:, 0].any())
    both = (clean.seen * noisy.seen)[:, 1:]
    error = (noisy.offsets - clean.offsets)[:, 1:].norm(dim=-1)[both > 0]
    assert 0.001 < float(error.mean()) < 0.05
    assert 0.5 < float((clean.seen == noisy.seen).float().mean()) < 1


def test_a_network_learns_from_it(bank: Bank) -> None:
    torch.manual_seed(0)
    network = MotionTransformer(32, 1)
    adam = torch.optim.Adam(network.parameters(), 3e-3)
    batch = draw(bank, torch.arange(8), 5, 48, torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        adam.zero_grad()
        loss = loss_of(network, batch)
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1


def test_animated_models_are_read_as_they_move(tmp_path: Path) -> None:
    """A triangle on a node that is shifted by 1 along x in a second."""
    glb = Glb()
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    position = glb.array(corners, bounds=True)
    times, values = (
        glb.array(np.array([0.0, 1.0], np.float32)[:, None]),
        glb.array(np.array([[0, 0, 0], [1, 0, 0]], np.float32)),
    )
    glb.add("meshes", {"primitives": [{"attributes": {"POSITION": position}}]})
    glb.add("nodes", {"mesh": 0})
    glb.add("scenes", {"nodes": [0]})
    sampler, channel = {"input": times, "output": values}, {"sampler": 0, "target": {"node": 0, "path": "translation"}}
    glb.add("animations", {"samplers": [sampler], "channels": [channel]})
    glb.write(tmp_path / "model.glb")
    gltf = Gltf(tmp_path / "model.glb")
    model = motion_clips.read_model(gltf, np.random.default_rng(0))
    assert len(model.bones) == 1 and np.allclose(model.points[:, 2], 0) and bool((model.points.sum(-1) < 1 + 1e-6).all())
    matrices = motion_clips.clip_matrices(gltf, gltf.all("animations")[0], model.bones)
    assert matrices.shape == (21, 1, 3, 4)
    assert np.allclose(matrices[10, 0, :, 3], [0.5, 0, 0]) and np.allclose(matrices[:, 0, :, :3], np.eye(3))


def test_the_bundled_prior_knows_depth_of_what_it_never_saw() -> None:
    """Of objects with seeds that are held out, without errors of tracking: the share of their squared motion in depth."""
    held = build_bank(None, 0, 24, torch.device("cpu"), 1.0)
    b = draw(held, torch.arange(24), 10, 128, torch.Generator().manual_seed(0), noisy=False)
    network = MotionPrior().network
    with torch.no_grad():
        moved, doubt = network(b.rest, b.offsets, b.seen, b.times, b.distance)
    error, truth = (moved - b.truth)[:, 1:, :, 2], b.truth[:, 1:, :, 2]
    assert float(1 - error.square().sum() / truth.square().sum()) > 0.4
    sure = doubt[:, 1:, :, 1] < doubt[:, 1:, :, 1].median()
    assert float(error[sure].abs().mean()) < 0.5 * float(error[~sure].abs().mean()), "its doubt says where it errs"
