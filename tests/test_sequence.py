"""Scenes from sets of Gaussians, splat batches, sequences of files, and any file."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anchor4d.core.cameras import orbit, quaternion_to_matrix
from anchor4d.core.deformation import FrameField
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians, half_turn, random_gaussians
from anchor4d.core.io import sequence, write_ply, write_ply_sequence, write_splat_sequence
from anchor4d.core.io.gltf_splats import write_splat_glb
from anchor4d.core.io.sequence import open_scene, read_sequence
from anchor4d.core.render import rasterize
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.scene import Scene4D, frame_times
from anchor4d.core.scene.sequence import corresponding, scene_from_gaussians, sets_from_arrays

COUNT = 50


def unrelated(count: int, seed: int, degree: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    return replace(
        random_gaussians(count, generator),
        quats=F.normalize(torch.randn(count, 4, generator=generator), dim=-1),
        sh=torch.randn(count, (degree + 1) ** 2, 3, generator=generator),
    )


def drifting(frames: int = 5, degree: int = 0, stride: float = 0.02) -> list[Gaussians]:
    """The same Gaussians, each on a straight way of its own, turning and growing."""
    start, way = unrelated(COUNT, 0, degree), unrelated(COUNT, 1, degree)
    return [
        replace(
            start,
            means=start.means + stride * t * way.means,
            quats=start.quats + 0.1 * t * way.quats,
            log_scales=start.log_scales + 0.05 * t,
        )
        for t in range(frames)
    ]


def same(a: Gaussians, b: Gaussians, tolerance: float = 1e-6) -> None:
    for key, x in a.tensors().items():
        y = b.tensors()[key]
        if key == "quats":
            x, y = quaternion_to_matrix(x), quaternion_to_matrix(y)
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance, msg=lambda text: f"{key}: {text}")  # noqa: B023


# Frames


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("motion", ["smooth", "steps"])
def test_every_frame_comes_back_at_its_time(loop: bool, motion: sequence.Motion) -> None:
    for frames in (2, 5, 17, 60):
        sets = drifting(frames, degree=1, stride=0.01)
        scene = scene_from_gaussians(sets, fps=24.0, loop=loop, motion=motion)
        assert (scene.frames, scene.fps, scene.loop, scene.meta["motion"]) == (frames, 24.0, loop, motion)
        for wanted, tau in zip(sets, scene.taus):
            for key, tensor in scene.at(tau).tensors().items():
                assert torch.equal(tensor, wanted.tensors()[key]), (frames, float(tau), key)
        assert isinstance(scene.field, FrameField) and scene.field.changes == {"means", "quats", "log_scales"}


def test_smooth_motion_is_halfway_between_frames() -> None:
    sets = drifting(3)
    sets[1] = replace(sets[1], quats=-sets[1].quats)  # the same rotation
    scene = scene_from_gaussians(sets, motion="smooth")
    half = scene.at(0.25)
    torch.testing.assert_close(half.means, (sets[0].means + sets[1].means) / 2)
    turned = F.normalize(F.normalize(sets[0].quats, dim=-1) - F.normalize(sets[1].quats, dim=-1), dim=-1)
    torch.testing.assert_close(quaternion_to_matrix(half.quats), quaternion_to_matrix(turned))
    loop = scene_from_gaussians(sets, motion="smooth", loop=True)
    torch.testing.assert_close(loop.at(5 / 6).means, (sets[2].means + sets[0].means) / 2)
    same(loop.at(1.0), sets[0])


def test_steps_stay_until_the_next() -> None:
    sets = [unrelated(COUNT, seed) for seed in range(4)]
    scene = scene_from_gaussians(sets)
    assert scene.field is not None and not scene.field.continuous
    for tau, frame in ((0.0, 0), (0.32, 0), (0.34, 1), (0.99, 2), (1.0, 3)):
        same(scene.at(tau), sets[frame], 0)


def test_frames_of_unequal_numbers_are_filled_up_with_invisible_ones() -> None:
    sets = [unrelated(30, 0), unrelated(50, 1, degree=1), unrelated(41, 2)]
    scene = scene_from_gaussians(sets)
    assert len(scene.gaussians) == 50 and scene.gaussians.sh.shape[1] == 4
    camera = orbit([20.0], 10.0, 2.5, 45.0, 48, 48)
    for wanted, tau in zip(sets, scene.taus):
        shown = scene.at(tau)
        assert torch.equal(shown.means[: len(wanted)], wanted.means)
        here, there = rasterize(shown, camera), rasterize(wanted, camera)
        torch.testing.assert_close(here.color, there.color, atol=1e-6, rtol=0)
        # Nor do they widen the box around the scene.
        assert torch.equal(shown.means.amax(0), wanted.means.amax(0))
    with pytest.raises(InputError, match="choose steps"):
        scene_from_gaussians(sets, motion="smooth")


def test_one_set_is_a_still_scene() -> None:
    scene = scene_from_gaussians([unrelated(9, 0)], fps=30.0)
    assert (scene.field, scene.frames, scene.fps) == (None, 1, 30.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sets": []}, "frame 0: no Gaussians"),
        ({"sets": [unrelated(4, 0), unrelated(4, 0).select(torch.arange(0))]}, "frame 1: no Gaussians"),
        ({"sets": drifting(), "fps": 0.0}, "more than 0 frames"),
        ({"sets": drifting(), "motion": "jerky"}, "choose auto, smooth or steps"),
    ],
)
def test_senseless_frames_are_refused(arguments: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        scene_from_gaussians(**arguments)


def test_memory_is_what_changes(tmp_path: Path) -> None:
    sets = [replace(unrelated(1000, 0), means=unrelated(1000, t).means) for t in range(8)]
    scene = scene_from_gaussians(sets)
    assert scene.field is not None
    assert sum(t.numel() * t.element_size() for t in scene.field.state_dict().values()) == 8 * 1000 * 12
    scene.save(tmp_path / "scene.safetensors")
    same(Scene4D.load(tmp_path / "scene.safetensors").at(0.6), scene.at(0.6), 0)


# Do the frames correspond?


def shifted(sets: list[Gaussians], step: Tensor) -> list[Gaussians]:
    return [replace(s, means=s.means + t * step) for t, s in enumerate(sets)]


def test_the_same_gaussians_moving_are_told_from_others(caplog: pytest.LogCaptureFixture) -> None:
    walk = sample_scene(800)
    walking = walk.bake(8)
    assert corresponding(drifting())
    assert corresponding(walking)
    # However fast the whole object flies.
    assert corresponding(shifted(walking, torch.tensor([0.9, 0.0, 0.0])))
    assert not corresponding([unrelated(COUNT, seed) for seed in range(4)])
    generator = torch.Generator().manual_seed(0)
    assert not corresponding([s.select(torch.randperm(800, generator=generator)) for s in walking])
    with caplog.at_level(logging.INFO):
        scene_from_gaussians(walking)
        scene_from_gaussians([unrelated(COUNT, 0), unrelated(COUNT + 1, 0)])
    assert "motion smooth, since the same Gaussians move" in caplog.text
    assert "motion steps, since the frames have unequal numbers" in caplog.text


# The host's splats


def splat_arrays(sets: list[Gaussians]) -> dict[str, Tensor]:
    """As the host pads and activates them, +Y down."""
    size = max(map(len, sets))
    turned = [half_turn(s) for s in sets]

    def stacked(values: list[Tensor]) -> Tensor:
        return torch.stack([torch.cat([v, v.new_zeros(size - len(v), *v.shape[1:])]) for v in values])

    return {
        "positions": stacked([s.means for s in turned]),
        "scales": stacked([s.scales for s in turned]),
        "rotations": stacked([F.normalize(s.quats, dim=-1) for s in turned]),
        "opacities": stacked([s.opacities[:, None] for s in turned]),
        "sh": stacked([s.sh for s in turned]),
    }


def test_a_batch_of_splats_is_one_set_an_item() -> None:
    sets = [unrelated(7, 0, degree=1), unrelated(5, 1, degree=1)]
    found = sets_from_arrays(**splat_arrays(sets), counts=torch.tensor([7, 5]))
    for a, b in zip(found, sets):
        same(a, b, 1e-5)
    even = drifting()
    assert [len(s) for s in sets_from_arrays(**splat_arrays(even))] == [COUNT] * len(even)
    with pytest.raises(InputError, match="item 1 holds no Gaussians"):
        sets_from_arrays(**splat_arrays(sets), counts=torch.tensor([7, 0]))
    arrays = splat_arrays(sets)
    arrays["scales"][1, 2, 0] = math.nan
    with pytest.raises(InputError, match="item 1 holds values that are not numbers"):
        sets_from_arrays(**arrays, counts=torch.tensor([7, 5]))
    # What is padding may hold anything.
    arrays["scales"][1, 2, 0], arrays["scales"][1, 6, 0] = 0.1, math.nan
    assert len(sets_from_arrays(**arrays, counts=torch.tensor([7, 5]))) == 2


# Files


@pytest.fixture
def walk() -> Scene4D:
    return scene_from_gaussians(drifting(6, degree=1), fps=15.0, loop=True)


@pytest.mark.parametrize("name", ["frames", "frames.zip"])
def test_what_was_exported_is_read_again(tmp_path: Path, walk: Scene4D, name: str) -> None:
    write_splat_sequence(tmp_path / name, walk)
    steps: list[tuple[int, int]] = []
    read = read_sequence(tmp_path / name, progress=lambda *step: steps.append(step))
    assert (read.frames, read.fps, read.loop, read.meta) == (6, 15.0, True, {"motion": "smooth", "source": name})
    assert steps == [(i + 1, 6) for i in range(6)]
    times = torch.tensor([0.0, 0.2, 0.5, 0.9])
    same(read.at(times), walk.at(times), 2e-6)
    own = read_sequence(tmp_path / name, fps=5.0, loop=False, motion="steps")
    assert (own.fps, own.loop, own.meta["motion"]) == (5.0, False, "steps")
    assert open_scene(tmp_path / name).frames == 6


def test_fewer_frames_are_evenly_spread_over_the_same_time(tmp_path: Path, walk: Scene4D) -> None:
    write_ply_sequence(tmp_path / "loop", walk)
    fewer = read_sequence(tmp_path / "loop", frames=3)
    assert (fewer.frames, fewer.fps) == (3, 7.5)
    same(fewer.at(fewer.taus), walk.at(walk.taus[[0, 2, 4]]), 2e-6)
    open_clip = read_sequence(tmp_path / "loop", frames=2, loop=False)
    same(open_clip.at(1.0), walk.at(walk.taus[5]), 2e-6)
    assert read_sequence(tmp_path / "loop", frames=1).field is None
    assert read_sequence(tmp_path / "loop", frames=99).frames == 6


def test_without_a_manifest_the_numbers_in_the_names_order_the_frames(tmp_path: Path) -> None:
    sets = drifting(12)
    for t, gaussians in enumerate(sets):
        write_ply(tmp_path / f"walk_{t}.ply", gaussians)
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "other.splat").write_bytes(b"a stray file of another kind")
    scene = read_sequence(tmp_path)
    assert (scene.frames, scene.fps, scene.loop) == (12, 12.0, False)
    same(scene.at(scene.taus[10]), sets[10], 2e-6)
    with zipfile.ZipFile(tmp_path / "in_folder.zip", "w") as archive:
        for t in range(12):
            archive.write(tmp_path / f"walk_{t}.ply", f"my walk/walk_{t}.ply")
            archive.writestr(f"__MACOSX/my walk/._walk_{t}.ply", b"what another system adds")
    same(read_sequence(tmp_path / "in_folder.zip").at(0.4), scene.at(0.4), 0)


def test_anything_with_a_scene_in_it_opens(tmp_path: Path, walk: Scene4D) -> None:
    (tmp_path / "run").mkdir()
    walk.save(tmp_path / "run" / "scene.safetensors")
    assert open_scene(tmp_path / "run").frames == open_scene(tmp_path / "run" / "scene.safetensors").frames == 6
    write_ply(tmp_path / "one.ply", walk.gaussians)
    still = open_scene(tmp_path / "one.ply")
    assert still.field is None and still.meta == {"source": "one.ply"}
    same(still.gaussians, walk.gaussians, 2e-6)
    write_splat_glb(tmp_path / "one.glb", walk.gaussians)
    same(open_scene(tmp_path / "one.glb").gaussians, walk.gaussians, 1e-3)
    for wrong, says in (("gone.ply", "no such file or folder"), ("cat.jpg", "no scene; choose")):
        (tmp_path / "cat.jpg").touch()
        with pytest.raises(InputError, match=says):
            open_scene(tmp_path / wrong)


# Bad files


def sequence_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    write_ply_sequence(folder, scene_from_gaussians(drifting(3)))
    return folder


@pytest.mark.parametrize(
    "listed",
    [
        None,
        {"pattern": "frame{frame:04}.ply", "start": 0},
        {"pattern": "frame{frame:04}.ply", "start": 0, "count": 0},
        {"pattern": "frame{frame:04}.ply", "start": 0, "count": 10**9},
        {"pattern": "frame{frame.__class__}.ply", "start": 0, "count": 3},
        {"pattern": "frame{frame:999999999}.ply", "start": 0, "count": 3},
        {"pattern": "frame.ply", "start": 0, "count": 3},
        {"pattern": 7, "start": "x", "count": 3},
    ],
)
def test_a_garbled_manifest_is_refused(tmp_path: Path, listed: object) -> None:
    folder = sequence_folder(tmp_path)
    (folder / "manifest.json").write_text(json.dumps({"fps": 12, "frames": listed}))
    with pytest.raises(InputError, match=r"manifest\.json is garbled"):
        read_sequence(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is garbled"):
        read_sequence(folder)


def test_a_manifest_names_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    folder = sequence_folder(tmp_path)
    for t in range(3):
        write_ply(tmp_path / f"secret{t}.ply", unrelated(5, t))
    listed = {"pattern": "../secret{frame}.ply", "start": 0, "count": 3}
    (folder / "manifest.json").write_text(json.dumps({"fps": 12, "frames": listed}))
    with pytest.raises(InputError, match=r"\.\./secret0\.ply is missing"):
        read_sequence(folder)


def test_broken_sequences_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sequence_folder(tmp_path)
    (folder / "frame0001.ply").rename(folder / "moved.ply")
    with pytest.raises(InputError, match=r"frame0001\.ply is missing"):
        read_sequence(folder)
    (folder / "frame0001.ply").write_bytes((folder / "moved.ply").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"frame0001\.ply: cut short"):
        read_sequence(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no splat files"):
        read_sequence(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder"):
        read_sequence(tmp_path / "gone")
    (folder / "moved.ply").rename(folder / "frame0001.ply")
    monkeypatch.setattr(sequence, "MEMORY", 3 * COUNT * 56 - 1)
    with pytest.raises(InputError, match="choose fewer frames"):
        read_sequence(folder)
    assert read_sequence(folder, frames=2).frames == 2


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "walk.zip"
    write_splat_sequence(target, scene_from_gaussians(drifting(3)))
    whole = target.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK\x03\x04 and no more", whole[:200] + bytes(300) + whole[500:]):
        target.write_bytes(damaged)
        with pytest.raises(InputError, match=r"walk\.zip"):
            read_sequence(target)
    # Whatever is flipped is either harmless or refused.
    for place in range(0, len(whole), 211):
        target.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            read_sequence(target)


def test_a_member_without_a_name_is_left_out(tmp_path: Path) -> None:
    folder = sequence_folder(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(folder.glob("*.ply")):
            archive.write(path, path.name)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.rindex(b"frame0002.ply")] = 0  # a name ends at its first zero
    (tmp_path / "b.zip").write_bytes(data)
    assert [read_sequence(tmp_path / name).frames for name in ("a.zip", "b.zip")] == [3, 2]


def test_an_archive_that_unpacks_to_very_much_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequence, "MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frame0.ply", bytes(1 << 22))
    with pytest.raises(InputError, match=r"frame0\.ply is larger than"):
        read_sequence(tmp_path / "bomb.zip")


def test_times_of_frames_are_those_of_clips() -> None:
    assert torch.equal(scene_from_gaussians(drifting(4), loop=True).taus, frame_times(4, loop=True))
