"""Signals a user gives: each brings the motion nearer to the truth, true and noisy, and bad ones are refused in a line."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_cli import refused, tiny
from torch import Tensor

from anchor4d import cli
from anchor4d.bench.signals import true_tracks
from anchor4d.core.align import FocalAlignment
from anchor4d.core.align.depth import fitted, place_depth
from anchor4d.core.align.flow import tracks_by_flow
from anchor4d.core.align.side import place_view
from anchor4d.core.cameras import Crop, spherical
from anchor4d.core.files import InputError
from anchor4d.core.fit.loop import Schedule
from anchor4d.core.identity import fingerprint
from anchor4d.core.io.clip import Part
from anchor4d.core.io.signals import SignalFiles, read_depth, read_tracks, tracks_of, view_of
from anchor4d.core.io.video import load_video
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import pla4d, stages
from anchor4d.core.methods.registry import METHODS, method_config
from anchor4d.core.methods.signals import with_signals
from anchor4d.core.objectives.depth import DepthMatch
from anchor4d.core.objectives.rigidity import Rigidity
from anchor4d.core.objectives.side_view import SideViewLoss
from anchor4d.core.objectives.tracks import TrackMatch
from anchor4d.core.render import rasterize
from anchor4d.core.runs.sample import CAMERA, sample_case, sample_scene, write_sample
from anchor4d.core.scene.object3d import SplatObject
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.schedules import Switch, constant, linear, scaled
from anchor4d.core.signals import DepthMaps, PointTracks, SideView, Signals
from anchor4d.core.video import DrivingVideo

FRAMES, SIZE, NOISE, STEPS = 4, 40, 0.1, 150
FRONT = replace(CAMERA, width=SIZE, height=SIZE, cx=121 * SIZE / 256, cy=133.5 * SIZE / 256)
CROP = Crop(0, 0, SIZE, SIZE, SIZE)


@dataclass(frozen=True)
class Walk:
    """A quarter of the sample's stride: its Gaussians where they truly are, and what a camera sees of them."""

    still: Scene4D
    means: Tensor  # (T, N, 3)
    video: DrivingVideo
    aligned: FocalAlignment
    depth: Tensor  # (T, H, W), NaN outside
    surface: Mesh
    seen: Tensor  # (N,) bool, Gaussians that the first frame sees

    def film(self, azimuth: float, noise: float = 0.0) -> DrivingVideo:
        return film(self.still, self.means, azimuth, noise)[0]

    def fitted(self, signals: Signals, seed: int = 0) -> Tensor:
        """Root mean square errors of the motion, (across, depth), of what the first frame sees."""
        config = CONFIG if not signals else with_signals(CONFIG, signals, self.video, self.aligned)[0]
        made = stages.fit_motion(self.video, self.still, config.motion, mesh=self.surface, seed=seed)
        assert made.field is not None
        with torch.no_grad():
            moved = made.field(made.gaussians, made.taus).means[:, : len(self.still.gaussians)]  # without a second layer
            error = (moved - self.means)[:, self.seen]
        return torch.stack([error[..., :2].square().mean().sqrt(), error[..., 2].square().mean().sqrt()])

    def inverse(self, noise: float = 0.0) -> DepthMaps:
        """Inverse depth of an arbitrary scale and shift."""
        values = 3 / self.depth - 1
        known = values[values.isfinite()]
        grain = torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
        return DepthMaps(values + noise * (known.max() - known.min()) * grain)


def film(still: Scene4D, means: Tensor, azimuth: float, noise: float = 0.0) -> tuple[DrivingVideo, Tensor]:
    moved = still.gaussians.map(lambda t: t.expand(FRAMES, *t.shape))
    drawn = rasterize(replace(moved, means=means), FRONT.cameras(azimuth))
    alpha = drawn.alpha[:, 0]
    color = drawn.color[:, 0] / alpha[..., None].clamp_min(1e-4)
    grain = torch.randn(color.shape, generator=torch.Generator().manual_seed(1))
    depth = torch.where(alpha > 0.5, drawn.expected_depth[:, 0], torch.nan)
    return DrivingVideo((color + noise * grain).clamp(0, 1), alpha, 12.0, CROP), depth


CONFIG = pla4d.preset("draft")
CONFIG = replace(
    CONFIG,
    motion=replace(
        CONFIG.motion,
        fields={"control-nodes": {"nodes": 80}},
        tracking=None,
        schedule=Schedule(steps=STEPS, resolutions=((1.0, SIZE),), background="random"),
        fine=None,
        refine=None,
    ),
)


@pytest.fixture(scope="module")
def walk() -> Walk:
    truth = sample_scene(900)
    assert truth.field is not None
    still = Scene4D(truth.gaussians, frames=FRAMES, fps=12.0, front=FRONT, crop=CROP)
    with torch.no_grad():
        means = truth.field(truth.gaussians, torch.linspace(0, 0.25, FRAMES)).means
        video, depth = film(still, means, 0.0)
    aligned = FocalAlignment(FRONT, SplatObject.of(truth.gaussians, "sample"), 0.0, [], 0.0)
    assert truth.surface is not None
    walk = Walk(still, means, video, aligned, depth, truth.surface, torch.ones(900, dtype=torch.bool))
    return replace(walk, seen=projected(walk)[1][0])


@pytest.fixture(scope="module")
def alone(walk: Walk) -> Tensor:
    return walk.fitted(Signals())


# Worth


@pytest.mark.parametrize("noise", [0.0, NOISE], ids=["true", "noisy"])
@pytest.mark.parametrize("span", ["clip", "frame"])
def test_depth_makes_the_motion_in_depth_better(walk: Walk, alone: Tensor, noise: float, span: str) -> None:
    across, depth = walk.fitted(Signals(depth=replace(walk.inverse(noise), span=span)))
    assert depth < 0.9 * alone[1] and across < 1.1 * alone[0]


@pytest.mark.parametrize("noise", [0.0, NOISE], ids=["true", "noisy"])
def test_a_film_from_another_side_makes_the_motion_in_depth_better(walk: Walk, alone: Tensor, noise: float) -> None:
    _, depth = walk.fitted(Signals(views=(SideView(walk.film(105.0, noise), 105.0),)))
    assert depth < 0.9 * alone[1]


@pytest.mark.parametrize("noise", [0.0, NOISE], ids=["true", "noisy"])
def test_tracks_say_where_points_of_one_colour_go(walk: Walk, noise: float) -> None:
    """Without texture the outline alone says how points move across; with tracks they go where they should."""
    plain = replace(walk.still.gaussians, sh=torch.zeros_like(walk.still.gaussians.sh))
    grey = replace(walk, still=replace(walk.still, gaussians=plain))
    grey = replace(grey, video=film(grey.still, walk.means, 0.0)[0])
    tracks = points_of(walk, noise)
    assert grey.fitted(Signals(tracks=(tracks,)))[0] < 0.9 * grey.fitted(Signals())[0]


def projected(walk: Walk) -> tuple[Tensor, Tensor]:
    """Where Gaussians are in the picture (T, N, 2), and which are seen (T, N)."""
    camera = FRONT.cameras()
    seen = walk.means @ camera.world_to_camera[0, :3, :3].T + camera.world_to_camera[0, :3, 3]
    at = seen[..., :2] / seen[..., 2:] * camera.K[0].diagonal()[:2] + camera.K[0, :2, 2]
    cell = at.floor().long().clamp(0, SIZE - 1)
    depth = walk.depth.nan_to_num(0)
    visible = torch.stack([seen[t, :, 2] < depth[t, cell[t, :, 1], cell[t, :, 0]] + 0.03 for t in range(FRAMES)])
    return at, visible


def points_of(walk: Walk, noise: float = 0.0) -> PointTracks:
    """Gaussians that the first frame sees, followed."""
    at, visible = projected(walk)
    first = visible[0]
    way = (at - at[:1]).norm(dim=-1).mean()
    grain = noise * way * torch.randn(at.shape, generator=torch.Generator().manual_seed(3))
    return PointTracks((at + grain)[:, first], visible[:, first])


# Where signals lie


@pytest.mark.parametrize("kind", ["auto", "inverse"])
def test_depth_is_placed_by_the_first_frame_s_object(walk: Walk, kind: str) -> None:
    placed = place_depth(replace(walk.inverse(), kind=kind), walk.video, FRONT, walk.aligned.mesh)
    assert placed.inverse and placed.affine is not None
    # 3 / z - 1 is brought to D^2 / z.
    assert placed.affine[0] == pytest.approx(FRONT.distance**2 / 3, rel=0.03)
    assert placed.affine[1] == pytest.approx(FRONT.distance**2 / 3, rel=0.05)
    straight = place_depth(DepthMaps(walk.depth), walk.video, FRONT, walk.aligned.mesh)
    assert not straight.inverse and straight.affine == pytest.approx((1.0, 0.0), abs=0.05)
    assert straight.trust > 0.95


def test_depth_counts_by_how_well_it_knows_the_first_frame(walk: Walk) -> None:
    """Grain averages out and costs no trust; what is wrong over a part of the object does."""
    generator = torch.Generator().manual_seed(0)
    height, width = walk.depth.shape[1:]
    grain = 0.02 * torch.randn(walk.depth.shape, generator=generator)
    bumps = (
        0.12 * F.interpolate(torch.randn(len(walk.depth), 1, 6, 6, generator=generator), (height, width), mode="bicubic")[:, 0]
    )
    trust = [
        place_depth(DepthMaps(walk.depth + error), walk.video, FRONT, walk.aligned.mesh).trust for error in (0, grain, bumps)
    ]
    assert trust[0] > 0.95 and trust[1] > 0.85 and 0.01 < trust[2] < 0.4


def test_scale_and_shift_are_robust_and_never_upside_down() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(2, 16, 16, generator=generator)
    shown = 0.5 * given + 1.5
    shown[:, :2] += 3.0  # an eighth of the pixels shows something else
    scale, shift = fitted(given, shown, torch.ones_like(given))
    torch.testing.assert_close(scale, torch.full((2,), 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(shift, torch.full((2,), 1.5), atol=0.05, rtol=0)
    # Noise in the given values does not flatten the line.
    noisy = given + 0.3 * torch.randn(given.shape, generator=generator)
    scale, _ = fitted(noisy, 0.2 * given, torch.ones_like(given))
    torch.testing.assert_close(scale, torch.full((2,), 0.2), atol=0.05, rtol=0)
    assert float(fitted(given, -shown, torch.ones_like(given))[0].max()) == 0


def test_depth_of_whole_pictures_is_seen_through_the_crop() -> None:
    column = (torch.arange(64) + 0.5).expand(2, 48, -1)  # pixels of the picture are its values
    video = DrivingVideo(torch.zeros(2, 16, 16, 3), torch.ones(2, 16, 16), 12.0, Crop(8, 4, 32, 64, 48))
    shown = DepthMaps(column).through(video).values
    torch.testing.assert_close(shown[0, 3], 8 + 2 * torch.arange(16) + 1.0)
    torch.testing.assert_close(DepthMaps(column[:, ::2, ::2]).through(video).values, shown, atol=0.6, rtol=0)


def test_the_camera_of_a_side_film_is_the_one_that_was_turned_or_is_found() -> None:
    meshes, pictures = sample_case(2, 96)
    front = replace(CAMERA, width=96, height=96, cx=121 * 96 / 256, cy=133.5 * 96 / 256)
    video = load_video(pictures["front"], fps=12.0, resolution=96)
    side = load_video(pictures["105"], fps=12.0, resolution=96)
    known = place_view(SideView(side, 105.0), video, front, meshes[0])
    torch.testing.assert_close(known.view.cameras.K, front.cropped(side.crop, side.resolution, 105.0).K)
    found = place_view(SideView(side, 90.0, search=True), video, front, meshes[0])
    azimuth, elevation, _ = spherical(found.view.cameras)
    assert float(azimuth) == pytest.approx(105, abs=3) and float(elevation) == pytest.approx(0, abs=3)
    assert found.report["overlap"] > 0.93


def test_frames_of_a_side_film_are_matched_by_their_times(walk: Walk) -> None:
    video = walk.film(0.0)
    double = replace(video, frames=video.frames.repeat_interleave(2, 0), masks=video.masks.repeat_interleave(2, 0), fps=24.0)
    assert torch.equal(SideView(double, 90.0).timed(video).video.frames, video.frames)
    with pytest.raises(InputError, match=r"lasts 0\.0833 s where the driving video lasts 0\.333 s"):
        SideView(replace(video, frames=video.frames[:2], masks=video.masks[:2], fps=24.0), 90.0).timed(video)


def test_flow_follows_a_shift() -> None:
    """A square that moves by two pixels a frame, by its true flow."""
    masks = torch.zeros(3, 24, 24)
    for t in range(3):
        masks[t, 6:16, 4 + 2 * t : 14 + 2 * t] = 1
    video = DrivingVideo(torch.rand(3, 24, 24, 3), masks, 12.0, Crop(10, 20, 48, 100, 100))

    def flow(first: Tensor, second: Tensor) -> Tensor:
        right = (video.composited(0.5) == first).flatten(1).all(1).int().argmax() < (
            (video.composited(0.5) == second).flatten(1).all(1).int().argmax()
        )
        return torch.tensor([2.0 if right else -2.0, 0.0]).expand(24, 24, 2)

    tracks = tracks_by_flow(video, flow)
    assert tracks.visible.all()
    torch.testing.assert_close(tracks.points[2] - tracks.points[0], torch.tensor([8.0, 0.0]).expand(tracks.points.shape[1], 2))
    assert float(tracks.points[0, :, 0].min()) >= 10 + 2 * 4


def test_opencv_s_flow_follows_the_sample() -> None:
    pytest.importorskip("cv2")
    from anchor4d.core.align.flow import dis_flow

    meshes, pictures = sample_case(14, 128)
    video = load_video(pictures["front"][:2], fps=12.0, resolution=128)
    tracks = tracks_by_flow(video, dis_flow()).on_object(video)
    front = replace(CAMERA, width=128, height=128, cx=121 / 2, cy=133.5 / 2)
    true = true_tracks(meshes[:2], front, 128, count=2000)
    near = torch.cdist(tracks.points[0], true.points[0]).min(1)
    good = tracks.visible[1] & true.visible[1][near.indices] & (near.values < 1)
    error = (tracks.points[1] - tracks.points[0] - (true.points[1] - true.points[0])[near.indices])[good].norm(dim=-1)
    still = (true.points[1] - true.points[0])[near.indices][good].norm(dim=-1)
    assert int(good.sum()) > 50 and float(error.median()) < 0.5 * float(still.median())


# Methods


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.follows == "video"])
def test_every_method_that_follows_a_video_takes_signals(walk: Walk, name: str) -> None:
    signals = Signals(walk.inverse(), (points_of(walk),), "", (SideView(walk.film(90.0), 90.0),))
    config, report = with_signals(method_config(name, "draft"), signals, walk.video, walk.aligned)
    assert {DepthMatch, TrackMatch, SideViewLoss} <= {type(o) for o in config.motion.objectives}
    assert set(report) == {"depth", "tracks", "views"}
    assert all(o.weight(1.0) > 0 for o in config.motion.objectives if isinstance(o, DepthMatch | TrackMatch | SideViewLoss))
    assert SideViewLoss not in {type(o) for o in config.static.objectives}
    bare = replace(walk.aligned, report={"mode": "none"})
    config, report = with_signals(method_config(name, "draft"), signals, walk.video, bare)
    assert SideViewLoss in {type(o) for o in config.static.objectives} and report["depth"]["span"] == "frame"


def test_signals_fit_with_gaussians_trained_and_added(walk: Walk) -> None:
    """STAG4D's field, density control and frames at random take all three."""
    signals = Signals(walk.inverse(), (points_of(walk),), "", (SideView(walk.film(90.0), 90.0),))
    config = with_signals(method_config("stag4d", "draft"), signals, walk.video, walk.aligned)[0].motion
    density = replace(config.density, every=4, start=2) if config.density is not None else None
    config = replace(config, schedule=replace(config.schedule, steps=12, frames=2, resolutions=((1.0, 24),)), density=density)
    made = stages.fit_motion(walk.video, walk.still, config)
    losses = made.meta["losses"]["3D to 4D"]
    assert all(np.isfinite(losses[name]).all() and losses[name][0] > 0 for name in ("depth", "tracks", "side view"))


def test_weights_are_scaled() -> None:
    assert scaled(linear(1.0, 3.0), 2.0)(1.0) == 6.0 and scaled(Switch(1.0, 2.0, 0.5), 3.0)(0.2) == 3.0
    with pytest.raises(TypeError, match="cannot be scaled"):
        scaled(lambda rho: rho, 2.0)


def test_signals_are_part_of_what_names_a_fit(walk: Walk) -> None:
    one, other = walk.inverse(), walk.inverse(0.1)
    assert fingerprint(Signals(depth=one)) == fingerprint(Signals(depth=walk.inverse()))
    assert len({fingerprint(Signals(depth=d)) for d in (one, other, replace(one, span="frame"))}) == 3
    side = walk.film(90.0)
    assert fingerprint(Signals(views=(SideView(side, 90.0),))) != fingerprint(Signals(views=(SideView(side, 80.0),)))
    assert fingerprint(DepthMatch(maps=one, affine=(1.0, 0.0))) == fingerprint(DepthMatch(maps=one, affine=(1.1, 0.0)))
    assert fingerprint(Rigidity(constant(1.0))) != fingerprint(DepthMatch(maps=one))


# Files


def test_depth_files_keep_their_precision(tmp_path: Path) -> None:
    values = torch.linspace(0, 60000, 2 * 4 * 5).reshape(2, 4, 5)
    (tmp_path / "pngs").mkdir()
    for t, picture in enumerate(values.numpy().astype(np.uint16)):
        Image.fromarray(picture).save(tmp_path / "pngs" / f"{t}.png")
    torch.testing.assert_close(read_depth(tmp_path / "pngs", 2).values, values.floor())
    np.savez(tmp_path / "d.npz", depth=values.numpy())
    np.save(tmp_path / "d.npy", values.numpy()[..., None])
    for name in ("d.npz", "d.npy"):
        torch.testing.assert_close(read_depth(tmp_path / name, 2).values, values)
    ten = torch.arange(10.0)[:, None, None].expand(10, 4, 5)
    np.save(tmp_path / "ten.npy", ten.numpy())
    assert read_depth(tmp_path / "ten.npy", 5, Part(frames=5)).values[:, 0, 0].tolist() == [0, 2, 4, 6, 8]
    with pytest.raises(InputError, match=r"ten\.npy: 10 depth maps where the video has 7 frames"):
        read_depth(tmp_path / "ten.npy", 7)


def test_tracks_come_from_files_and_from_the_host(tmp_path: Path) -> None:
    points, seen = torch.rand(3, 5, 2), torch.rand(3, 5) > 0.5
    np.savez(tmp_path / "t.npz", tracks=points.numpy(), visibility=seen.numpy())
    for read in (read_tracks(tmp_path / "t.npz"), tracks_of({"track_path": points, "track_visibility": seen})):
        assert torch.equal(read.points, points) and torch.equal(read.visible, seen)
    np.savez(tmp_path / "o.npz", points=np.array([{}], object))
    np.savez(tmp_path / "x.npz", other=points.numpy())
    for name, match in (("o.npz", "not a readable file of arrays"), ("x.npz", "holds other, give an array 'points'")):
        with pytest.raises(InputError, match=match):
            read_tracks(tmp_path / name)


def test_a_view_says_its_direction() -> None:
    assert view_of("90=a b.mp4") == (90.0, None, False, "a b.mp4")
    assert view_of("-45,10~=x=y") == (-45.0, 10.0, True, "x=y")
    for text in ("a.mp4", "90=", "x=a.mp4", "1,2,3=a.mp4", "nan=a.mp4", "0,90=a.mp4"):
        with pytest.raises(InputError, match="--view"):
            view_of(text)


def test_bad_signals_are_refused_in_a_line(walk: Walk) -> None:
    front, mesh, video = FRONT, walk.aligned.mesh, walk.video
    bad = [
        (replace(walk.inverse(), values=walk.depth[:2]), "2 depth maps where the video has 4 frames"),
        (replace(walk.inverse(), values=walk.depth[:, :20]), "40x20 is not the shape of the video's picture"),
        (replace(walk.inverse(), values=walk.depth * torch.nan), "says nothing of the object in frame 0"),
        (replace(walk.inverse(), values=torch.ones_like(walk.depth)), "the same depth all over the object"),
        (replace(walk.inverse(), kind="depth"), "grows towards the camera .* choose inverse or auto"),
    ]
    for maps, match in bad:
        with pytest.raises(InputError, match=match):
            place_depth(maps, video, front, mesh)
    tracks = points_of(walk)
    with pytest.raises(InputError, match=r"none of .* points lies on the object in frame 0"):
        replace(tracks, points=tracks.points / SIZE).on_object(video)
    with pytest.raises(InputError, match="tracks of 2 frames where the video has 4"):
        PointTracks(tracks.points[:2], tracks.visible[:2]).on_object(video)
    bar = torch.zeros(FRAMES, SIZE, SIZE)
    bar[:, 18:21] = 1
    wide = replace(walk.film(0.0), masks=bar)
    with pytest.raises(InputError, match=r"the object's outline covers .* of the film's"):
        place_view(SideView(wide, 90.0), video, front, mesh)


def test_a_case_is_compared_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchor4d.bench.signals import DEPTH, compare, true_depth

    monkeypatch.setitem(pla4d._OURS, "draft", lambda refinement: tiny(3))  # pyright: ignore[reportPrivateUsage]
    camera = replace(CAMERA, width=48, height=48, cx=121 * 48 / 256, cy=133.5 * 48 / 256)
    for name in ("with", "without"):
        write_sample(tmp_path / "cases" / name, 3, 48)
    meshes, _ = sample_case(3, 48)
    np.savez(tmp_path / "cases" / "with" / DEPTH, depth=true_depth(meshes, camera, 48).values.numpy())
    text = compare(out=tmp_path / "out", cases=tmp_path / "cases")
    assert "| side film, noisy |" in text and "| depth, true (1 cases) |" in text
    rows = json.loads((tmp_path / "out" / "signals.json").read_text())
    assert "depth, true" in rows["with"] and "depth, true" not in rows["without"]
    assert rows["with"]["depth, true"]["signals"]["depth"]["correlation"] < -0.7
    assert rows["with"]["video alone"]["motion"] == pytest.approx(rows["without"]["video alone"]["motion"])


def test_the_command_line_takes_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(pla4d._OURS, "draft", lambda refinement: tiny(3))  # pyright: ignore[reportPrivateUsage]
    case = write_sample(tmp_path / "case", 3, 48)
    meshes, _ = sample_case(3, 48)
    camera = replace(CAMERA, width=48, height=48, cx=121 * 48 / 256, cy=133.5 * 48 / 256)
    tracks = true_tracks(meshes, camera, 48, count=40)
    np.savez(tmp_path / "tracks.npz", points=tracks.points.numpy(), visible=tracks.visible.numpy())
    from anchor4d.bench.signals import true_depth

    np.savez(tmp_path / "depth.npz", depth=true_depth(meshes, camera, 48).values.numpy())
    base = [
        "fit",
        "--video",
        case / "front",
        "--object",
        case / "mesh.glb",
        "--preset",
        "draft",
        "--prior",
        "none",
        "--yaw",
        "0",
    ]
    given = ["--depth", tmp_path / "depth.npz", "--tracks", tmp_path / "tracks.npz", "--view", f"105={case / 'views/105'}"]
    arguments = [str(a) for a in [*base, *given, "--out", tmp_path / "out"]]
    assert cli.main(arguments) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["signals"]["depth"]["inverse"] and report["signals"]["depth"]["correlation"] < -0.7
    assert report["signals"]["views"][0]["azimuth"] == pytest.approx(105)
    assert {"depth", "tracks", "side view"} <= set(report["losses"]["3D to 4D"])
    capsys.readouterr()
    assert cli.main([*arguments, "--resume"]) == 0 and "already finished" in capsys.readouterr().err
    # The same but for a signal is another run.
    assert cli.main([*arguments, "--depth-span", "frame", "--resume"]) == 0
    assert "already finished" not in capsys.readouterr().err
    out = ["--out", tmp_path / "bad"]
    assert "no such file or folder" in refused(capsys, *base, "--depth", tmp_path / "none", *out)
    assert "give --depth, or leave it out" in refused(capsys, *base, "--depth-span", "frame", *out)
    assert "give --video" in refused(capsys, "fit", "--object", case / "mesh.glb", "--view", "90=a.mp4", *out)
    assert "follows a text" in refused(
        capsys, "fit", "--method", "ayg", "--prompt", "a dog", "--tracks", tmp_path / "tracks.npz", *out
    )
    assert SignalFiles().check() is None and not SignalFiles()
