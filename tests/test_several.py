"""Several objects of one clip: masks, what others hide, one camera, and their places in one scene."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anchor4d import cli
from anchor4d.bench.several import Crossing, crossing, score, write_crossing
from anchor4d.core.align import FocalAlignment, align_together
from anchor4d.core.cameras import Cameras, Crop, FrontCamera
from anchor4d.core.files import InputError
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import random_gaussians
from anchor4d.core.io import write_mp4
from anchor4d.core.io.clip import Clip, read_clip
from anchor4d.core.io.tracks import load_objects, masks_of, moved, objects_of, parts_of, walk
from anchor4d.core.methods import pla4d
from anchor4d.core.methods.stages import align, gaussians_on_mesh
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.motion_prior import MotionPriorPull
from anchor4d.core.scene.compose import compose
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.sequence import scene_from_gaussians
from anchor4d.core.scene.views import render_frames
from anchor4d.core.schedules import constant
from anchor4d.core.video import DrivingVideo, moving_fronts

FRAMES, SIZE = 6, 64


@pytest.fixture(scope="module")
def clip() -> Crossing:
    return crossing(FRAMES, SIZE)


@pytest.fixture(scope="module")
def videos(clip: Crossing) -> list[DrivingVideo]:
    return objects_of(Clip(clip.film[..., :3], 12.0), clip.masks)[0]


@pytest.fixture(scope="module")
def aligned(clip: Crossing, videos: list[DrivingVideo]) -> list[FocalAlignment]:
    return align_together([meshes[0] for meshes in clip.meshes], videos, yaws=[0.0, 0.0])


def true_scenes(clip: Crossing, videos: list[DrivingVideo], aligned: list[FocalAlignment]) -> list[Scene4D]:
    """What perfect fits would be: each object's true poses, held in place as its video holds them."""
    scenes = []
    for meshes, video, item in zip(clip.meshes, videos, aligned):
        normal = meshes[0].normalized()[1]
        sets = []
        for mesh in meshes:
            walked = (_middle(mesh.vertices) - _middle(meshes[0].vertices)) * torch.tensor([1.0, 0.0, 0.0])
            held = replace(mesh, vertices=mesh.vertices - walked).transformed(normal)
            sets.append(gaussians_on_mesh(held, 1500)[0])
        scene = scene_from_gaussians(sets, fps=12.0, loop=False, motion="steps")
        scenes.append(replace(scene, front=item.front, crop=video.crop))
    return scenes


def _middle(points: Tensor) -> Tensor:  # (V, 3) -> (3,)
    return (points.amax(0) + points.amin(0)) / 2


# Masks


def blocks(*places: tuple[int, int, int, int]) -> Tensor:  # -> (24, 32)
    """Rectangles (left, top, right, bottom) as one mask."""
    mask = torch.zeros(24, 32)
    for left, top, right, bottom in places:
        mask[top:bottom, left:right] = 1
    return mask


def test_separate_parts_are_followed_and_small_ones_belong_to_the_nearest() -> None:
    masks = torch.stack([blocks((20 - t, 4, 28 - t, 20), (2, 6, 8, 20), (9, 6, 10, 8)) for t in range(4)])
    tracks = parts_of(masks, "clip")
    assert torch.equal(tracks.amax(0), masks)
    assert torch.equal(tracks[0, 0], blocks((2, 6, 8, 20), (9, 6, 10, 8)))  # from the left
    assert torch.equal(tracks[1, 3], blocks((17, 4, 25, 20)))


def test_where_parts_touch_or_appear_masks_are_asked_for_with_the_frames() -> None:
    crossing = torch.stack([blocks((2 + 4 * t, 4, 9 + 4 * t, 20), (22, 4, 30, 20)) for t in range(6)])
    with pytest.raises(InputError, match=r"clip: objects touch or cross in frames 4-5, counted from 0.*give masks"):
        parts_of(crossing, "clip")
    new = torch.stack([blocks((2, 4, 8, 20), (14, 4, 20, 20)), blocks((2, 4, 8, 20), (14, 4, 20, 20), (24, 4, 30, 20))])
    with pytest.raises(InputError, match="a new object appears in frame 1,"):
        parts_of(new, "clip")
    with pytest.raises(InputError, match=r"frame 0 is in 1 part"):
        parts_of(blocks((2, 4, 8, 20)).expand(2, -1, -1), "clip")


def test_labels_are_objects_from_the_left_and_one_is_not_several() -> None:
    pictures = torch.zeros(3, 24, 32, 3, dtype=torch.uint8)
    pictures[:, 4:20, 18:26] = torch.tensor([0, 0, 7], dtype=torch.uint8)
    pictures[:, 4:20, 2:8] = torch.tensor([200, 0, 0], dtype=torch.uint8)
    masks = masks_of([pictures], "clip")
    assert torch.equal(masks[0, 0], blocks((2, 4, 8, 20))) and torch.equal(masks[1, 0], blocks((18, 4, 26, 20)))
    pictures[:, 4:20, 2:8] = 0
    with pytest.raises(InputError, match="label pictures show 1 object; give each a colour"):
        masks_of([pictures], "clip")


def test_labels_of_a_film_with_loss(clip: Crossing, tmp_path: Path) -> None:
    best, which = clip.masks.max(0)
    colors = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.1, 0.1], [0.1, 0.3, 1.0]])
    labels = torch.where(best > 0.5, which + 1, 0)
    write_mp4(tmp_path / "labels.mp4", colors[labels], 12.0)
    read = read_clip(tmp_path / "labels.mp4").frames
    assert len(read.flatten(0, 2).unique(dim=0)) > 256
    masks = masks_of([read], "clip")
    assert len(masks) == 2
    for mask, label in zip(masks, (1, 2)):
        true = labels == label
        assert float((mask.bool() & true).sum() / (mask.bool() | true).sum()) > 0.85


def test_files_of_labels_and_of_a_mask_each_say_the_same(clip: Crossing, tmp_path: Path) -> None:
    film, labels, _ = write_crossing(tmp_path / "labels", clip)
    _, each, _ = write_crossing(tmp_path / "each", clip, "each")
    by_labels, whole = load_objects(film, labels, frames=3)
    by_masks, _ = load_objects(film, each, frames=3)
    assert len(by_labels) == len(by_masks) == 2 and len(whole) == 3
    for a, b in zip(by_labels, by_masks):
        assert abs(a.crop.size - b.crop.size) <= 4 and float((a.masks.mean() - b.masks.mean()).abs()) < 0.03
    with pytest.raises(InputError, match=r"touch or cross in frames 2-3"):
        load_objects(film)


# What others hide


def test_an_object_stays_in_place_and_what_hides_it_is_unknown(clip: Crossing, videos: list[DrivingVideo]) -> None:
    for video, mask in zip(videos, clip.masks):
        assert video.hidden is not None and video.shifts is not None and video.known is not None
        assert video.crop.width == SIZE and not bool(video.shifts[0].any())
        centres = [float((frame.sum(0) * torch.arange(len(frame))).sum() / frame.sum()) for frame in video.masks]
        assert max(abs(c - centres[0]) for c in centres) < 0.2 * video.resolution
        assert float(video.masks.sum()) == pytest.approx(float(mask.sum()), rel=0.02)
    back = videos[1].known
    assert back is not None and not bool(back[3].all())  # the creature is before the robot
    # The robot's own mask ends where it is covered: all beside that edge is unknown.
    cut = (videos[1].masks[3] > 0.5) & ~back[3]
    assert bool(cut.any())


def test_a_walk_goes_on_behind_what_hides_it() -> None:
    masks = torch.stack([blocks((2 + 3 * t, 6, 8 + 3 * t, 18)) for t in range(6)])
    hidden = torch.zeros_like(masks)
    hidden[2:4, :, 9:13] = 1
    seen = masks * (1 - hidden)
    shifts = walk(seen, hidden)
    assert shifts[:, 0].tolist() == [0, -3, -6, -9, -12, -15] and not bool(shifts[:, 1].any())
    held = moved(masks, shifts, 4)
    assert torch.equal(held, held[:1].expand_as(held))


def test_unknown_pixels_do_not_pull() -> None:
    """A fit to a video whose unknown half shows another colour is, bit by bit, the fit to one with anything else there."""
    crop, front = Crop(0, 0, 32, 32, 32), FrontCamera(40.0, 2.0, 32, 32)
    hidden = torch.zeros(2, 32, 32)
    hidden[:, :, 18:] = 1
    results = []
    for shade in (0.0, 0.9):
        frames = torch.full((2, 32, 32, 3), 0.4)
        frames[:, :, 18:] = shade
        masks = torch.ones(2, 32, 32)
        masks[:, :, 18:] = shade
        video = DrivingVideo(frames, masks, 12.0, crop, hidden=hidden)
        start = random_gaussians(60, torch.Generator().manual_seed(0))
        loss = ReferenceViewLoss(constant(1.0), perceptual=0.0, levels=3)
        state = run_fit(
            "test", FitState(start), [loss], Schedule(8, ((0.5, 16), (1.0, 32))), Inputs(video, torch.zeros(1), [front]),
            train="gaussians",
        )  # fmt: skip
        results.append(state.gaussians)
    for a, b in zip(results[0].tensors().values(), results[1].tensors().values()):
        assert torch.equal(a, b)
    assert not torch.equal(results[0].means, start.means)


def test_a_frame_may_hide_an_object_whole_but_not_the_first() -> None:
    tracks = torch.stack(
        [
            torch.stack([blocks((2, 4, 10, 20)), blocks((12, 4, 22, 20)), blocks((20, 4, 30, 20))]),
            torch.stack([blocks((14, 6, 20, 18)), blocks(), blocks((14, 6, 20, 18))]),
        ]
    )
    film = Clip(torch.rand(3, 24, 32, 3))
    assert float(objects_of(film, tracks)[0][1].masks[1].max()) == 0
    with pytest.raises(InputError, match=r"object 2: no foreground in frame 0"):
        objects_of(film, tracks.flip(1)[:, [1, 0, 2]])


# The camera


def test_an_object_off_the_axis_is_seen_where_it_says() -> None:
    front = FrontCamera(40.0, 2.5, 200, 100, cx=150.0, cy=30.0, elevation=20.0, px=100.0, py=50.0)
    camera = front.cameras()
    seen = camera.K[0] @ camera.world_to_camera[0, :3, 3]
    assert (seen[:2] / seen[2]).tolist() == pytest.approx([150.0, 30.0])
    assert camera.K[0, :2, 2].tolist() == [100.0, 50.0] and float(camera.world_to_camera[0, 2, 3]) == pytest.approx(2.5)
    crop = Crop(100, -10, 80, 200, 100)
    small = front.cropped(crop, 40)
    seen = small.K[0] @ small.world_to_camera[0, :3, 3]
    assert (seen[:2] / seen[2]).tolist() == pytest.approx([25.0, 20.0])
    plain = FrontCamera(40.0, 2.5, 200, 100, cx=150.0, cy=30.0)
    assert torch.equal(replace(plain, px=150.0, py=30.0).cameras().world_to_camera, plain.cameras().world_to_camera)


def test_objects_share_the_true_camera(clip: Crossing, aligned: list[FocalAlignment]) -> None:
    assert aligned[0].front.fovy == aligned[1].front.fovy == pytest.approx(clip.front.fovy, abs=2.0)
    for item, meshes in zip(aligned, clip.meshes):
        low, high = meshes[0].vertices.aminmax(dim=0)
        size, middle = float((high - low).max()), (low + high) / 2
        depth = clip.front.distance - float(middle[2])
        focal = math.tan(math.radians(item.front.fovy) / 2) / math.tan(math.radians(clip.front.fovy) / 2)
        assert item.front.distance * focal == pytest.approx(depth / size, rel=0.03)
        expected = SIZE / 2 + clip.front.focal * float(middle[0]) / depth
        assert item.front.cx == pytest.approx(expected, abs=0.5) and item.front.px == SIZE / 2


def test_a_second_alignment_takes_the_camera_of_the_first(clip: Crossing, videos: list[DrivingVideo]) -> None:
    found = align(videos[1], clip.meshes[1][0], yaw=0.0, same_camera=clip.front)
    assert found.front.fovy == clip.front.fovy and found.report["overlap"] > 0.85
    alone = replace(videos[1], hidden=None, shifts=None)
    with pytest.raises(InputError, match="shares no camera"):
        align(alone, clip.meshes[1][0], yaw=0.0, same_camera=clip.front)


def test_moving_fronts_see_the_origin_in_one_place(videos: list[DrivingVideo], aligned: list[FocalAlignment]) -> None:
    fronts = moving_fronts(videos[0], aligned[0].front)
    assert len(fronts) == FRAMES and fronts[0] == aligned[0].front
    assert {front.cx for front in fronts} == {aligned[0].front.cx}
    shifts = videos[0].shifts
    assert shifts is not None
    # From the left of the axis to the right of it.
    assert fronts[0].off_axis[0] < 0 < fronts[-1].off_axis[0]
    assert fronts[-1].px == SIZE / 2 + float(shifts[-1, 0])


# One scene


def test_objects_are_composed_where_they_are(
    clip: Crossing, videos: list[DrivingVideo], aligned: list[FocalAlignment], tmp_path: Path
) -> None:
    made = compose(true_scenes(clip, videos, aligned), videos)
    assert made.report["by"] == "ground"
    assert made.report["depths"][1] == pytest.approx(3.5 / 2.5, rel=0.05)
    assert [(c["front"], c["behind"]) for c in made.report["covers"]] == [(1, 2)]
    found = score(made.scene, clip)
    assert found.front > 16 and found.sides > 13.5 and found.placed < 0.2 and found.sized == pytest.approx(1.0, abs=0.05)
    level = score(compose(true_scenes(clip, videos, aligned), videos, ground="no").scene, clip)
    assert found.sides > level.sides + 1 and found.placed < level.placed / 3
    start = made.scene.at(0.0).means
    low, high = start.quantile(0.002, 0), start.quantile(0.998, 0)
    assert float((high - low).max()) == pytest.approx(1.0, abs=0.02) and float(((low + high) / 2).abs().max()) < 0.02
    made.scene.save(tmp_path / "scene.safetensors")
    again = Scene4D.load(tmp_path / "scene.safetensors")
    assert again.front == made.scene.front and torch.equal(again.at(0.7).means, made.scene.at(0.7).means)


def test_whoever_covers_is_nearer_without_a_ground(
    clip: Crossing, videos: list[DrivingVideo], aligned: list[FocalAlignment]
) -> None:
    scenes = true_scenes(clip, videos, aligned)
    made = compose(scenes, videos, ground="no")
    assert made.report["by"] == "equal depth" and made.report["depths"][1] > 1
    # The picture is the same whatever the depths are.
    assert score(made.scene, clip).front == pytest.approx(score(compose(scenes, videos).scene, clip).front, abs=0.3)
    known = compose(scenes, videos, sizes=[0.8, 1.0])
    assert known.report["by"] == "sizes" and known.report["depths"][1] == pytest.approx(3.5 / 2.5, rel=0.05)


def test_an_order_that_changes_is_followed(clip: Crossing, caplog: pytest.LogCaptureFixture) -> None:
    """Two creatures that circle each other: the one in front is behind half a turn later."""
    turns, reach, margin, whole = 16, 30.0, 48, Crop(0, 0, 96, 96, 96)
    front = FrontCamera(36.0, 3.0, 96, 96, px=48.0, py=48.0)
    still = gaussians_on_mesh(clip.meshes[0][0].normalized()[0], 400)[0]
    scenes, shifts, alphas = [], [], []
    for sign in (1, -1):
        across = torch.tensor([sign * reach * math.cos(2 * math.pi * t / turns) for t in range(turns)]).round()
        scene = scene_from_gaussians([still] * turns, fps=12.0, motion="steps")
        scenes.append(replace(scene, front=replace(front, cx=48 + sign * reach, cy=48.0)))
        shifts.append(torch.stack([across[0] - across, torch.zeros(turns)], 1))
        cameras = Cameras.cat([replace(front, cx=48 + float(x), cy=48.0).cropped(whole, 96) for x in across])
        alphas.append(render_frames(scene, cameras.reshape(turns, 1))[0, ..., 3])
    videos = []
    for k in range(2):
        behind = torch.tensor([(t < turns // 2) != (k == 0) for t in range(turns)])
        covered = behind[:, None, None] & (alphas[1 - k] > 0.5)
        held = moved(torch.where(covered, 0.0, alphas[k]), shifts[k], margin)
        frames, crop = held[..., None].expand(*held.shape, 3), Crop(-margin, -margin, 96 + 2 * margin, 96, 96)
        videos.append(DrivingVideo(frames, held, 12.0, crop, hidden=torch.zeros_like(held), shifts=shifts[k]))
    made = compose(scenes, videos, ground="no")
    assert "objects 1 and 2: who is in front changes" in caplog.text
    assert made.scene.front is not None
    eye = made.scene.front.cameras().positions[0]
    for t, first in ((turns // 4, 0), (3 * turns // 4, 1)):
        depths = (eye - made.scene.at(float(made.scene.taus[t])).means)[:, 2].split(400)
        assert float(depths[first].median()) < float(depths[1 - first].median())


def test_scenes_of_other_cameras_are_refused(clip: Crossing, videos: list[DrivingVideo], aligned: list[FocalAlignment]) -> None:
    scenes = true_scenes(clip, videos, aligned)
    assert scenes[1].front is not None
    with pytest.raises(InputError, match=r"scene 2: its camera \(field of view 50\.00\) is not scene 1's"):
        compose([scenes[0], replace(scenes[1], front=replace(scenes[1].front, fovy=50.0))], videos)
    with pytest.raises(InputError, match="scene 1: has no camera that objects share"):
        compose([replace(scenes[0], front=FrontCamera(36.0, 2.0, SIZE, SIZE)), scenes[1]], videos)
    with pytest.raises(InputError, match="sizes: give 2 numbers above 0"):
        compose(scenes, videos, sizes=[1.0])


# The whole


def test_the_command_fits_and_composes(
    clip: Crossing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_cli import tiny

    config = tiny()
    pulled = replace(config, motion=replace(config.motion, objectives=(*config.motion.objectives, MotionPriorPull())))
    monkeypatch.setitem(pla4d._OURS, "draft", lambda refinement: pulled)  # pyright: ignore[reportPrivateUsage]
    film, labels, models = write_crossing(tmp_path / "case", clip)
    out = tmp_path / "out"
    common = ["--video", str(film), "--masks", str(labels[0]), "--preset", "draft", "--frames", "3", "--device", "cpu"]
    argv = ["fit", *common, "--yaw", "0", "--object", str(models[0]), "--object", "auto", "--out", str(out)]
    assert cli.main(argv) == 0
    report = json.loads((out / "report.json").read_text())
    assert len(report["objects"]) == 2 and report["composition"]["by"] in ("ground", "equal depth")
    assert {p.name for p in out.iterdir()} >= {"scene.safetensors", "report.json", "report.html", "preview.mp4", "objects"}
    assert (out / "objects" / "2" / "made" / "object.glb").is_file() and not (out / "objects" / "1" / "made").exists()
    # What was inflated does not move in depth, what was given does.
    sure = [json.loads((out / "objects" / k / "report.json").read_text())["certainty"] for k in "12"]
    assert "flat" not in sure[0] and sure[1]["flat"]
    scene = Scene4D.load(out / "scene.safetensors")
    assert scene.frames == 3 and scene.front is not None and scene.front.px == SIZE / 2
    parts = [Scene4D.load(out / "objects" / k / "scene.safetensors") for k in "12"]
    assert len(scene.gaussians) == sum(len(part.gaussians) for part in parts)
    capsys.readouterr()
    assert cli.main([*argv, "--resume"]) == 0 and "already finished" in capsys.readouterr().err
    # Interrupted behind the first object: its run is used again, and the result is the same.
    (out / "scene.safetensors").unlink()
    before = (out / "objects" / "1" / "report.json").stat().st_mtime_ns
    assert cli.main([*argv, "--resume"]) == 0
    assert (out / "objects" / "1" / "report.json").stat().st_mtime_ns == before
    again = Scene4D.load(out / "scene.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(scene.gaussians.tensors().values(), again.gaussians.tensors().values()))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--object", "a", "--ground", "yes"], "--ground: places several objects"),
        (["--masks", "m"], "--masks m: no such film, folder or picture"),
        (["--masks", "--mask", "m"], "--mask: is of a clip with one object"),
        (["--masks", "--sizes", "0", "1"], "'0': choose a size from"),
        (["--object", "a", "--object", "b", "--flow", "dis"], "--flow: is of a clip with one object"),
    ],
)
def test_options_that_do_not_fit(argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--video", str(tmp_path), *argv, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
