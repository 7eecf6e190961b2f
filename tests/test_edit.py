"""Editing scenes: timing, place, parts, colours."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anchor4d.core import harmonics
from anchor4d.core.cameras import FrontCamera, orbit, quaternion_to_matrix
from anchor4d.core.deformation import ControlNodes, DeformationField, DeformationMLP, FrameField, HexPlane, Parts
from anchor4d.core.deformation.wrappers import slerp
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import SH_C0, Gaussians, random_gaussians
from anchor4d.core.identity import fingerprint
from anchor4d.core.render import rasterize
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene import edit
from anchor4d.core.scene.edit import Placement
from anchor4d.core.scene.object3d import substance
from anchor4d.core.scene.scene import Scene4D, frame_times
from anchor4d.core.scene.sequence import scene_from_gaussians

COUNT, FRAMES = 60, 9
KINDS = ["control-nodes", "hexplane", "mlp", "frames"]
TIMES = torch.tensor([0.0, 0.13, 0.5, 0.77, 1.0])


def gaussians(seed: int = 0, degree: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    base = random_gaussians(COUNT, generator)
    return replace(
        base,
        quats=F.normalize(torch.randn(COUNT, 4, generator=generator), dim=-1),
        log_scales=-3 + 0.3 * torch.randn(COUNT, 3, generator=generator),
        opacity_logits=torch.randn(COUNT, generator=generator),
        sh=0.4 * torch.randn(COUNT, (degree + 1) ** 2, 3, generator=generator),
    )


def moving(kind: str, canonical: Gaussians, loop: bool = False) -> DeformationField:
    torch.manual_seed(1)
    field: DeformationField
    if kind == "control-nodes":
        field = ControlNodes.on_surface(canonical, FRAMES, nodes=8, loop=loop, opacity=True, anchored=False)
    elif kind == "hexplane":
        field = HexPlane(resolution=4, time_resolution=4, channels=4, width=8, opacity=True)
    elif kind == "mlp":
        field = DeformationMLP(depth=3, width=16, skip=1, position_bands=6)
    else:
        steps = torch.linspace(0, 1, FRAMES)
        shaken = [canonical.map(lambda x: x + s * torch.randn(x.shape) * 0.2) for s in steps]  # noqa: B023
        return FrameField.of(shaken, loop=loop)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return field


def scene(kind: str = "control-nodes", *, seed: int = 0, degree: int = 0, loop: bool = False) -> Scene4D:
    canonical = gaussians(seed, degree)
    front = FrontCamera(fovy=40.0, distance=2.5, width=64, height=48)
    return Scene4D(canonical, moving(kind, canonical, loop), FRAMES, 8.0, loop, front, meta={"method": "pla4d"})


def same(a: Gaussians, b: Gaussians, tolerance: float = 1e-5) -> None:
    """Equal up to the sign and length of quaternions."""
    for key, x in a.tensors().items():
        y = b.tensors()[key]
        if key == "quats":
            x, y = quaternion_to_matrix(x), quaternion_to_matrix(y)
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance, msg=lambda text: f"{key}: {text}")  # noqa: B023


EDITS = {
    "retime": lambda s: edit.retime(s, speed=0.5, curve="start and end slowly"),
    "trim": lambda s: edit.trim(s, 2, 6),
    "reverse": edit.reverse,
    "ping-pong": edit.ping_pong,
    "close loop": lambda s: edit.close_loop(s, 3),
    "transform": lambda s: edit.transform(s, Placement((0.1, 0.2, -0.3), (20, -50, 70), 1.5)),
    "follow": lambda s: edit.follow(s, [(0.0, Placement((1, 0, 0))), (1.0, Placement((0, 1, 0), (0, 90, 0), 2.0))]),
    "merge": lambda s: edit.merge([s, edit.transform(edit.trim(scene("hexplane", seed=5), 0, 3), Placement((2, 0, 0)))]),
    "crop": lambda s: edit.crop(s, sphere=((0.1, 0, 0), 0.45)),
    "recolor": lambda s: edit.recolor(s, brightness=1.2, contrast=0.8, saturation=0.5, hue=40, gamma=1.3, tint=(1, 0.9, 0.8)),
    "opacity": lambda s: edit.opacity(s, [(0, 0.2), (1, 0.9)], threshold=0.3),
    "prune": lambda s: edit.prune(s, scores=torch.arange(COUNT, dtype=torch.float32), count=20),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_scene_is_saved_and_loaded_whole_and_the_given_one_stays(tmp_path: Path, kind: str, name: str) -> None:
    given = scene(kind)
    before, described = copy.deepcopy(given.gaussians), fingerprint(given)
    done = EDITS[name](given)
    assert all(torch.equal(a, b) for a, b in zip(before.tensors().values(), given.gaussians.tensors().values()))
    assert fingerprint(given) == described
    assert given.meta == {"method": "pla4d"} and done.meta["edits"][-1]["edit"] == name
    done.save(tmp_path / "edited.safetensors")
    loaded = Scene4D.load(tmp_path / "edited.safetensors")
    assert (loaded.frames, loaded.fps, loaded.loop, loaded.meta) == (done.frames, done.fps, done.loop, done.meta)
    for key, tensor in done.at(TIMES).tensors().items():
        assert torch.equal(tensor, loaded.at(TIMES).tensors()[key]), key


def test_edits_nest(tmp_path: Path) -> None:
    a = edit.transform(edit.ping_pong(edit.trim(scene(), 1, 5)), Placement((0, 0.5, 0), (0, 30, 0), 0.5))
    b = edit.close_loop(edit.retime(scene("frames", seed=2), frames=17), 6)
    both = edit.opacity(edit.transform(edit.merge([a, b]), Placement((1, 0, 0))), 0.5)
    index = torch.arange(0, 2 * COUNT, 3)
    some = edit.select(both, index)
    same(some.at(TIMES), both.at(TIMES).map(lambda t: t[:, index]), 1e-6)  # products of fewer rows may round otherwise
    some.save(tmp_path / "s.safetensors")
    same(Scene4D.load(tmp_path / "s.safetensors").at(TIMES), some.at(TIMES), 0)
    # Fits can go on: the parameters of the fields inside are found.
    assert some.field is not None
    groups = some.field.parameter_groups()
    assert {id(g.parameter) for g in groups} == {id(p) for p in some.field.parameters()} and groups
    assert len({g.name for g in groups}) == len(groups)


@pytest.mark.parametrize("kind", KINDS)
def test_a_selection_moves_as_it_did(kind: str) -> None:
    given = scene(kind)
    for index in (torch.tensor([3, 1, 41]), torch.arange(COUNT) % 4 == 1):
        same(edit.select(given, index).at(TIMES), given.at(TIMES).map(lambda t: t[:, index]), 1e-6)  # noqa: B023
    assert given.field is not None and given.field.select(torch.tensor([0])).changes == given.field.changes


def test_fields_say_what_they_change() -> None:
    for kind in KINDS:
        given = scene(kind)
        moved = given.at(TIMES)
        assert given.field is not None
        for key, tensor in given.gaussians.tensors().items():
            if key not in given.field.changes:
                assert torch.equal(moved.tensors()[key], tensor.expand_as(moved.tensors()[key])), (kind, key)
    turned = edit.transform(scene(), Placement((1, 0, 0), (0, 40, 0), 2.0))
    assert turned.field is not None and turned.field.changes == {"means", "quats", "log_scales", "opacity_logits"}
    torch.testing.assert_close(turned.at(0.5).sh, turned.gaussians.sh)


@torch.no_grad()
@pytest.mark.parametrize("name", ["retime", "trim", "reverse", "ping-pong", "close loop", "transform", "follow", "opacity"])
def test_points_are_carried_as_the_gaussians_there(name: str) -> None:
    """What a mesh of the scene needs to move with it."""
    done = EDITS[name](scene("hexplane"))
    assert done.field is not None
    carried = done.field.carrier(done.gaussians, done.gaussians.means)
    assert carried is not None
    torch.testing.assert_close(carried(TIMES), done.at(TIMES).means, atol=2e-5, rtol=1e-5)


# Timing


@pytest.mark.parametrize("kind", KINDS)
def test_trimmed_shows_the_same_frames(kind: str) -> None:
    given = scene(kind)
    part = edit.trim(given, 2, 6)
    assert (part.frames, part.fps, part.loop) == (5, 8.0, False)
    same(part.at(part.taus), given.at(given.taus[2:7]))
    same(part.at(0.3), given.at((2 + 0.3 * 4) / 8))
    seconds = edit.trim(given, 0.25, 0.875, "seconds")
    assert seconds.frames == 5
    same(seconds.at(seconds.taus), part.at(part.taus))
    assert edit.trim(given).frames == FRAMES
    same(edit.trim(given).at(given.taus), given.at(given.taus))


def test_a_loop_is_trimmed_through_its_seam() -> None:
    given = scene(loop=True)
    part = edit.trim(given, 7, 1)
    assert (part.frames, part.loop) == (4, False)
    same(part.at(part.taus), given.at(given.taus[[7, 8, 0, 1]]))
    assert edit.trim(given, 4, 4).frames == 1


@pytest.mark.parametrize(("start", "end"), [(5, 3), (0, 9), (-1, 4), (12, 14)])
def test_a_part_outside_of_the_clip_is_refused(start: int, end: int) -> None:
    with pytest.raises(InputError, match="choose a start and an end inside"):
        edit.trim(scene(), start, end)


@pytest.mark.parametrize("loop", [False, True])
def test_reversed_twice_is_the_clip(loop: bool) -> None:
    given = scene("frames", loop=loop)
    back = edit.reverse(given)
    same(edit.reverse(back).at(TIMES[:-1]), given.at(TIMES[:-1]))
    order = [0, *range(FRAMES - 1, 0, -1)] if loop else [*range(FRAMES - 1, -1, -1)]
    same(back.at(back.taus), given.at(given.taus[order]))


@pytest.mark.parametrize("loop", [False, True])
def test_ping_pong_is_its_own_mirror(loop: bool) -> None:
    given = scene(loop=loop)
    there_and_back = edit.ping_pong(given)
    assert there_and_back.loop and there_and_back.frames == (2 * FRAMES if loop else 2 * FRAMES - 2)
    shown = there_and_back.at(there_and_back.taus)
    same(shown.map(lambda t: t[:FRAMES]), given.at(given.taus))
    same(shown.map(lambda t: t[1:]), shown.map(lambda t: t[1:].flip(0)))
    assert edit.ping_pong(replace(given, frames=1)).frames == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_loop_closes(kind: str) -> None:
    given = scene(kind)
    loop = edit.close_loop(given, 3)
    assert (loop.frames, loop.loop, loop.fps) == (5, True, 8.0)
    near = 1 - 1e-6
    same(loop.at(0.0), loop.at(near), 1e-4 if kind == "frames" else 2e-5)
    same(loop.at(0.0), loop.at(1.0), 0)
    # After the fade it is the clip, and the frames fall on the clip's frames.
    same(loop.at(loop.taus[3:]), given.at(given.taus[3:5]))
    same(loop.at(0.0), given.at(5 / 8))
    # In between: positions on the straight line between both.
    late, early = given.at(given.taus[6]), given.at(given.taus[1])
    share = (1 / 3) ** 2 * (3 - 2 / 3)
    torch.testing.assert_close(loop.at(loop.taus[1]).means, torch.lerp(late.means, early.means, share), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_closed_loop_moves_on_at_the_same_speed() -> None:
    loop = edit.close_loop(scene(), 3)  # splines: the clip's own velocity is continuous
    step = 1e-4  # what is left is the acceleration
    before = (loop.at(1 - step).means - loop.at(1 - 2 * step).means) / step
    after = (loop.at(2 * step).means - loop.at(step).means) / step
    assert (before - after).norm() < 0.02 * before.norm()


def test_what_cannot_or_need_not_be_closed() -> None:
    looping = scene(loop=True)
    assert edit.close_loop(looping).field is looping.field
    assert edit.close_loop(Scene4D(gaussians())).loop
    with pytest.raises(InputError, match="choose 1 to 4 frames"):
        edit.close_loop(scene(), 5)
    steps = replace(scene(), field=FrameField.of([gaussians(0), gaussians(1)], interpolation="hold"), frames=2)
    with pytest.raises(InputError, match="choose ping-pong"):
        edit.close_loop(steps)


def test_retimed() -> None:
    given = scene()
    more = edit.retime(given, frames=27)
    assert (more.frames, more.fps, edit.duration(more)) == (27, 24.0, edit.duration(given))
    same(more.at(0.3), given.at(0.3), 0)
    assert edit.retime(given, fps=24.0).frames == 27
    fast = edit.retime(given, speed=2.0)
    assert (fast.frames, fast.fps) == (4, 8.0)
    assert edit.retime(given, frames=9, speed=2.0).fps == 16
    assert edit.retime(Scene4D(gaussians()), fps=30.0).frames == 1
    assert edit.retime(given, frames=5, fps=3).fps == 3
    with pytest.raises(InputError, match="leave one out"):
        edit.retime(given, frames=5, fps=3, speed=2)
    with pytest.raises(InputError, match="more than 0"):
        edit.retime(given, speed=0)


def test_speed_curves() -> None:
    given = scene()
    slow = edit.retime(given, curve="start slowly")
    same(slow.at(0.0), given.at(0.0), 0)
    same(slow.at(1.0), given.at(1.0), 0)
    same(slow.at(0.5), given.at(0.25))
    bullet = edit.retime(given, curve=[(0, 0), (0.4, 0.5), (0.6, 0.5), (1, 1)])
    same(bullet.at(torch.tensor([0.2, 0.4, 0.5, 0.6, 0.8])), given.at(torch.tensor([0.25, 0.5, 0.5, 0.5, 0.75])))
    with pytest.raises(InputError, match="choose one of steady"):
        edit.retime(given, curve="wobbly")


# Place


@pytest.mark.parametrize("kind", KINDS)
def test_transforming_is_moving_the_camera(kind: str) -> None:
    given = scene(kind, degree=2)
    placement = Placement((0.3, -0.2, 0.4), (25, -70, 130), 1.7)
    moved = edit.transform(given, placement)
    camera = orbit([30.0, 200.0], 20.0, 3.0, 50.0, 40, 40)
    rigid = placement.matrix.float().clone()
    rigid[:3, :3] /= 1.7
    for tau in (0.0, 0.6):
        # The same picture, up to the unit of length, from cameras that are moved along.
        pose = camera.world_to_camera.clone()
        pose[:, :3, 3] *= 1.7
        along = replace(camera, world_to_camera=pose @ torch.linalg.inv(rigid))
        here, there = rasterize(given.at(tau), camera, backend="torch"), rasterize(moved.at(tau), along, backend="torch")
        torch.testing.assert_close(here.color, there.color, atol=2e-5, rtol=0)
        same(moved.at(tau), given.at(tau).transformed(placement.matrix.float()), 2e-5)
    assert moved.front == given.front and moved.crop is None


def test_transformed_back_is_the_scene() -> None:
    given = scene("hexplane", degree=1)
    moved = edit.transform(given, Placement((0.3, -0.2, 0.4), (0, -70, 0)))
    turned_back = edit.transform(edit.transform(moved, Placement((-0.3, 0.2, -0.4))), Placement(rotate=(0, 70, 0)))
    same(turned_back.at(TIMES), given.at(TIMES))
    same(turned_back.gaussians, given.gaussians)


def test_rotations_are_about_x_then_y_then_z() -> None:
    turn = quaternion_to_matrix(Placement(rotate=(90, 90, 0)).quaternion)
    # +Y goes to +Z about X, then to +X about Y.
    torch.testing.assert_close(turn @ torch.tensor([0.0, 1, 0], dtype=torch.float64), torch.tensor([1.0, 0, 0]).double())
    same_turn = Placement(rotate=Placement(rotate=(10, 20, 30)).quaternion.tolist())
    torch.testing.assert_close(same_turn.matrix, Placement(rotate=(10, 20, 30)).matrix)
    for wrong in ({"scale": 0.0}, {"rotate": (1, 2)}, {"translate": (0, 0, math.nan)}, {"rotate": (0, 0, 0, 0)}):
        with pytest.raises(InputError):
            Placement(**wrong)


def test_following_a_path() -> None:
    given = scene("mlp", degree=1)
    keys = [(0.0, Placement((1, 0, 0))), (0.5, Placement((0, 0, 1), (0, 90, 0), 2.0)), (1.0, Placement((0, 0, 1), (0, 180, 0)))]
    moved = edit.follow(given, keys)
    for tau, placement in keys:
        same(moved.at(tau), given.at(tau).transformed(placement.matrix.float()), 2e-5)
    half = Placement((0.5, 0, 0.5), (0, 45, 0), 1.5)
    same(moved.at(0.25), given.at(0.25).transformed(half.matrix.float()), 2e-5)
    same(moved.at(torch.tensor([0.25, 1.0])).map(lambda t: t[1]), moved.at(1.0), 1e-6)
    still = edit.follow(Scene4D(gaussians(), frames=4), keys)
    same(still.at(1.0), gaussians().transformed(keys[2][1].matrix.float()), 2e-5)
    with pytest.raises(InputError, match="in the order"):
        edit.follow(given, keys[::-1])


def test_slerp_turns_evenly_the_shorter_way() -> None:
    a, b = (Placement(rotate=(0, y, 0)).quaternion for y in (10.0, 130.0))
    for share in (0.0, 0.25, 1.0):
        torch.testing.assert_close(
            slerp(a, -b, torch.tensor(share).double()), Placement(rotate=(0, 10 + 120 * share, 0)).quaternion
        )
    torch.testing.assert_close(slerp(a, a, torch.tensor(0.3).double()), a)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_harmonics_turn_with_their_gaussians(degree: int) -> None:
    generator = torch.Generator().manual_seed(degree)
    sh = torch.randn(5, (degree + 1) ** 2, 3, generator=generator, dtype=torch.float64)
    rotation = quaternion_to_matrix(torch.randn(4, generator=generator, dtype=torch.float64))
    directions = F.normalize(torch.randn(50, 3, generator=generator, dtype=torch.float64), dim=-1)
    seen = harmonics.basis(directions, sh.shape[1]) @ sh
    turned = harmonics.basis(directions @ rotation.T, sh.shape[1]) @ harmonics.rotated(sh, rotation)
    torch.testing.assert_close(turned, seen, atol=1e-9, rtol=1e-9)


# Parts


@pytest.mark.parametrize("time", [0.0, 1.0, None])
def test_cropped_to_what_lies_inside(time: float | None) -> None:
    given = scene()
    low, high = (-0.2, -1.0, -1.0), (1.0, 0.3, 1.0)
    times = given.taus if time is None else torch.tensor([time])
    means = given.at(times).means
    inside = ((means >= torch.tensor(low)) & (means <= torch.tensor(high))).all(-1).any(0)
    kept = edit.crop(given, box=(low, high), time=time)
    rest = edit.crop(given, box=(low, high), time=time, keep="outside")
    assert 0 < len(kept.gaussians) == int(inside.sum()) < COUNT and len(kept.gaussians) + len(rest.gaussians) == COUNT
    same(kept.at(0.4), given.at(0.4).select(inside), 0)
    ball = edit.crop(given, sphere=((0, 0, 0), 0.3))
    assert ball.gaussians.means.shape[0] == int((given.at(0.0).means.norm(dim=-1) <= 0.3).sum())


def test_crops_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="no Gaussian lies inside"):
        edit.crop(scene(), sphere=((9, 9, 9), 0.1))
    with pytest.raises(InputError, match="a box or a sphere"):
        edit.crop(scene())


def unrelated() -> Scene4D:
    """Each frame has Gaussians of its own, of unequal numbers."""
    sets = [gaussians(t).select(torch.arange(COUNT - 5 * t)) for t in range(4)]
    return scene_from_gaussians(sets, fps=10.0)


def test_frames_with_gaussians_of_their_own_are_edited_frame_by_frame() -> None:
    given = unrelated()
    ball = edit.crop(given, sphere=((0, 0, 0), 0.35))
    assert (ball.frames, ball.fps) == (4, 10.0) and ball.field is not None and not ball.field.continuous
    for tau in given.taus.tolist():
        before, after = given.at(tau), ball.at(tau)
        inside = (before.means.norm(dim=-1) <= 0.35) & (before.opacities > 0.01)
        shown = after.opacities > 0.01
        same(after.select(shown), before.select(inside), 0)
    thinned = edit.opacity(given, 0.5, threshold=0.3)
    visible = [int((thinned.at(t).opacities > 0.01).sum()) for t in given.taus.tolist()]
    assert visible == [int((given.at(t).opacities >= 0.6).sum()) for t in given.taus.tolist()]
    half = edit.prune(given, fraction=0.5)
    assert [int((half.at(t).opacities > 0.01).sum()) for t in given.taus.tolist()] == [30, 28, 25, 22]
    assert edit.prune(given, 25).gaussians.means.shape[0] == 25
    # A ball that some frames miss leaves these empty.
    far = scene_from_gaussians([gaussians(0), gaussians(1).select(torch.arange(9))], motion="steps")
    few = edit.crop(far, sphere=(gaussians(0).means[40].tolist(), 1e-3))
    assert [int((few.at(t).opacities > 0.01).sum()) for t in (0.0, 1.0)] == [1, 0]
    with pytest.raises(InputError, match="at no frame a Gaussian lies inside the sphere"):
        edit.crop(far, sphere=((9, 9, 9), 0.1))


def test_merged_scenes_show_as_both() -> None:
    a = edit.transform(scene(degree=1), Placement((-1.2, 0, 0)))
    b = edit.transform(scene("frames", seed=3), Placement((1.2, 0, 0)))
    still = Scene4D(gaussians(4)).gaussians
    both = edit.merge([a, b])
    assert (both.frames, both.fps, both.loop, both.front) == (FRAMES, 8.0, False, a.front)
    assert len(both.gaussians) == 2 * COUNT and both.gaussians.sh.shape[1] == 4
    camera = orbit([0.0], 0.0, 5.0, 60.0, 48, 32)
    for tau in (0.0, 0.4, 1.0):
        together = rasterize(both.at(tau), camera, backend="torch").color
        apart = sum(rasterize(s.at(tau), camera, backend="torch").color for s in (a, b))
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    with_still = edit.merge([a, Scene4D(still)])
    same(with_still.at(0.7).map(lambda t: t[COUNT:]), replace(still, sh=F.pad(still.sh, (0, 0, 0, 3))), 0)
    assert edit.merge([Scene4D(still), Scene4D(still)]).field is None
    with pytest.raises(InputError, match="no scenes"):
        edit.merge([])


def test_each_merged_scene_keeps_its_own_clock() -> None:
    long, short = edit.retime(scene(), frames=18, fps=8.0), edit.trim(scene("hexplane", seed=3), 0, 3)
    seen = {}
    for timing in ("repeat", "hold", "stretch"):
        both = edit.merge([short, long], timing=timing)
        assert (both.frames, both.fps) == (18, 8.0)
        shown = both.at(both.taus)
        same(shown.map(lambda t: t[:, COUNT:]), long.at(long.taus))
        seen[timing] = shown.map(lambda t: t[:, :COUNT])
    frames = short.at(short.taus)
    same(seen["repeat"], frames.map(lambda t: t[torch.arange(18) % 4]))
    same(seen["hold"], frames.map(lambda t: t[torch.arange(18).clamp_max(3)]))
    same(seen["stretch"], short.at(long.taus))


def test_merged_loops_loop_when_they_end_together() -> None:
    once, twice = scene(loop=True), edit.retime(scene(seed=2, loop=True), frames=18, fps=8.0)
    both = edit.merge([once, twice])
    assert both.loop and both.frames == 18
    same(both.at(both.taus).map(lambda t: t[:, :COUNT]), once.at(frame_times(FRAMES, True).repeat(2)), 2e-5)
    assert not edit.merge([once, edit.retime(twice, frames=14, fps=8.0)]).loop
    faster = edit.merge([once, edit.retime(twice, frames=36, fps=16.0)])
    assert (faster.frames, faster.fps) == (36, 16.0)
    held = edit.merge([once, twice], timing="hold")
    assert not held.loop
    same(held.at(held.taus[9:]).map(lambda t: t[:, :COUNT]), once.at(torch.full((9,), 8 / 9)))


def test_objects_composed_with_clocks_and_paths() -> None:
    """As a composition of 4D objects needs it: an object on the common clock is led along a path of the common time."""
    a, b = scene(), edit.trim(scene("mlp", seed=3), 0, 4)
    path = [(0.0, Placement((-2, 0, 0))), (1.0, Placement((2, 0, 0), (0, 90, 0)))]
    led = edit.follow(edit.on_timeline(b, 9, 8.0, False, "stretch"), path)
    both = edit.merge([a, led])
    end = both.at(1.0).map(lambda t: t[COUNT:])
    same(end, b.at(1.0).transformed(path[1][1].matrix.float()), 2e-5)
    same(both.at(0.5).map(lambda t: t[:COUNT]), a.at(0.5))


def test_parts_keep_their_order() -> None:
    both = edit.merge([scene(), scene("hexplane", seed=3)])
    assert isinstance(both.field, Parts)
    with pytest.raises(ValueError, match="object by object"):
        both.field.select(torch.tensor([COUNT, 0]))
    only = edit.select(both, torch.arange(COUNT, 2 * COUNT))
    assert isinstance(only.field, Parts) and only.field.counts == [COUNT]
    with pytest.raises(ValueError, match="merge the scenes again"):
        both.field(gaussians(), TIMES)


# Colour and opacity


@pytest.mark.parametrize("kind", ["hexplane", "frames"])
def test_recoloured_as_the_picture_is(kind: str) -> None:
    given = scene(kind, degree=1)
    given = edit.merge([given, replace(scene(kind, seed=2, degree=1), fps=8.0)])
    settings = {"brightness": 0.8, "contrast": 0.6, "saturation": 0.3, "hue": 70.0, "tint": (1.0, 0.7, 0.9)}
    done = edit.recolor(given, **settings)
    direction = F.normalize(torch.tensor([0.3, -0.5, 0.8]), dim=-1)
    before = harmonics.basis(direction, 4) @ given.at(0.4).sh + 0.5
    after = harmonics.basis(direction, 4) @ done.at(0.4).sh + 0.5
    wanted = before * 0.8 * torch.tensor(settings["tint"])
    wanted = (wanted - 0.5) * 0.6 + 0.5
    luma = wanted @ torch.tensor([0.2126, 0.7152, 0.0722])
    wanted = luma[:, None] + 0.3 * (wanted - luma[:, None])
    # Turned about grey: the mean and the distance to it stay.
    torch.testing.assert_close(after.mean(-1), wanted.mean(-1), atol=1e-5, rtol=1e-5)
    spread = [x - x.mean(-1, keepdim=True) for x in (after, wanted)]
    torch.testing.assert_close(spread[0].norm(dim=-1), spread[1].norm(dim=-1), atol=1e-5, rtol=1e-5)
    cosine = (spread[0] * spread[1]).sum(-1) / spread[0].norm(dim=-1).square()
    torch.testing.assert_close(cosine, torch.full_like(cosine, math.cos(math.radians(70))), atol=1e-3, rtol=0)
    for key in ("means", "opacity_logits"):
        assert torch.equal(done.at(0.4).tensors()[key], given.at(0.4).tensors()[key])


def test_colours_known_by_sight() -> None:
    red = replace(scene(), gaussians=replace(gaussians(), sh=((torch.tensor([1.0, 0, 0]) - 0.5) / SH_C0).expand(COUNT, 1, 3)))
    for arguments, wanted in (
        ({}, (1.0, 0.0, 0.0)),
        ({"hue": 120}, (0.0, 1.0, 0.0)),
        ({"saturation": 0}, (0.2126, 0.2126, 0.2126)),
        ({"contrast": 0}, (0.5, 0.5, 0.5)),
        ({"brightness": 0.5}, (0.5, 0.0, 0.0)),
        ({"tint": (0.5, 1, 1)}, (0.5, 0.0, 0.0)),
    ):
        colors = edit.recolor(red, **arguments).at(0.5).colors
        torch.testing.assert_close(colors, torch.tensor(wanted).expand(COUNT, 3), atol=1e-6, rtol=0)
    grey = replace(red, gaussians=replace(gaussians(), sh=torch.full((COUNT, 1, 3), (0.25 - 0.5) / SH_C0)))
    torch.testing.assert_close(edit.recolor(grey, gamma=2.0).at(0.0).colors, torch.full((COUNT, 3), 0.5))
    with pytest.raises(InputError, match="gamma"):
        edit.recolor(red, gamma=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_opacities_scale_at_every_time(kind: str) -> None:
    given = scene(kind)
    torch.testing.assert_close(edit.opacity(given, 0.5).at(0.6).opacities, 0.5 * given.at(0.6).opacities)
    same(edit.opacity(given, 1.0).at(0.6), given.at(0.6), 0)
    brighter = edit.opacity(given, 3.0).at(0.6).opacities
    torch.testing.assert_close(brighter, (3 * given.at(0.6).opacities).clamp_max(1 - 1e-6), atol=1e-6, rtol=1e-5)
    fading = edit.opacity(given, [(0.2, 0.0), (0.6, 1.0)])
    torch.testing.assert_close(fading.at(0.4).opacities, 0.5 * given.at(0.4).opacities, atol=1e-6, rtol=1e-4)
    assert float(fading.at(0.1).opacities.max()) < 1e-8
    same(fading.at(0.8), given.at(0.8), 0)
    peak = given.at(given.taus).opacities.amax(0)
    thinned = edit.opacity(given, threshold=0.5)
    assert len(thinned.gaussians) == int((peak >= 0.5).sum())
    with pytest.raises(InputError, match="choose less than"):
        edit.opacity(given, 0.01, threshold=0.5)


# Pruning


def test_importance_is_what_pictures_lose() -> None:
    given = Scene4D(gaussians())
    scores = edit.importance(given, views=64, size=24)
    assert scores.shape == (COUNT,) and bool((scores >= 0).all())
    cameras = edit._around(given, 64, 24)
    backdrop = torch.rand(64, 1, 1, 3, generator=torch.Generator().manual_seed(5))

    def pictures(shown: Gaussians) -> Tensor:
        drawn = rasterize(shown, cameras)
        return drawn.color + (1 - drawn.alpha)[..., None] * backdrop

    whole = pictures(given.gaussians)
    lost = [pictures(given.gaussians.select(torch.arange(COUNT) != i)) - whole for i in range(COUNT)]
    truth = torch.stack([x.square().sum() for x in lost])
    ratio = scores / truth
    assert float(ratio.median()) == pytest.approx(1, abs=0.15)
    assert float(ratio.min()) > 0.4 and float(ratio.max()) < 2.5


def test_what_nobody_sees_goes_first() -> None:
    directions = F.normalize(torch.randn(1500, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    shell = replace(
        random_gaussians(1501, torch.Generator().manual_seed(0)),
        means=torch.cat([torch.zeros(1, 3), 0.5 * directions]),
        log_scales=torch.full((1501, 3), math.log(0.05)),
        opacity_logits=torch.full((1501,), 12.0),
    )
    hidden = edit.importance(Scene4D(shell), views=4, size=64)
    assert float(hidden[0]) < 1e-3 * float(hidden[1:].mean())
    assert float(edit.prune(Scene4D(shell), 1490).gaussians.means.norm(dim=-1).min()) > 0.4


@torch.no_grad()
def test_half_of_the_gaussians_show_nearly_all() -> None:
    """The kept ones grow over the gaps."""
    given = sample_scene(3000)
    placed = given.at(0.3)
    camera = orbit([20.0, 140.0, 260.0], 15.0, 2.0, 40.0, 96, 96)
    truth = rasterize(placed, camera)
    inside = truth.alpha > 0.02

    def decibel(shown: Scene4D) -> float:
        return -10 * math.log10(float((rasterize(shown.at(0.3), camera).color - truth.color)[inside].square().mean()))

    half = edit.prune(given, fraction=0.5)
    assert len(half.gaussians) == 1500
    assert decibel(half) > decibel(edit.prune(given, fraction=0.5, cover=False)) + 1
    naive = edit.prune(given, fraction=0.5, cover=False, scores=substance(given.gaussians))
    assert decibel(half) > decibel(naive) + 3


@torch.no_grad()
def test_pruned_to_a_number() -> None:
    given = scene()
    assert len(edit.prune(given, fraction=0.5).gaussians) == COUNT // 2
    assert edit.prune(given, 10 * COUNT) is given
    chosen = edit.prune(given, 2, scores=torch.arange(COUNT, dtype=torch.float32).flip(0), cover=False)
    same(chosen.at(0.4), given.at(0.4).select(torch.tensor([0, 1])), 0)
    scores = torch.arange(COUNT, dtype=torch.float32)
    for kind in KINDS:
        grown = edit.prune(scene(kind), 30, scores=scores)
        larger = grown.at(0.6).log_scales - scene(kind).at(0.6).log_scales[30:]
        assert float(larger.min()) >= -1e-6 and 0.1 < float(larger.max()) <= math.log(2) + 1e-6
        torch.testing.assert_close(larger, grown.at(0.1).log_scales - scene(kind).at(0.1).log_scales[30:], atol=1e-5, rtol=1e-5)
    for wrong in ({}, {"count": 3, "fraction": 0.5}, {"count": 0}):
        with pytest.raises(InputError, match="prune"):
            edit.prune(given, **wrong)
