"""What a signal is worth: the demo's creature through PLA4D with true and with noisy depth, tracks and side films.

    python -m anchor4d.bench.signals [--only NAME ...] [--preset draft] [--noise 0.1] [--cases DIR] [--out DIR]

The camera is searched for and the object fitted once; then the motion is fitted once for each signal. With ``--cases``, each
case of a folder as of ``bench --cases`` takes the creature's place, without tracks, and with depth where it holds a
``depth.npz``, as ``training.motion_cases`` writes it. Depth is inverse depth of an unknown scale and shift. Noise is that share
of the object's depth range for depth (half of it smooth over a tenth of the picture), of the points' mean way in the picture
for tracks, and of the colours' range for films, whose outlines stay.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.cameras import FrontCamera
from ..core.files import atomic_path
from ..core.io.objects import load_object
from ..core.io.signals import read_arrays
from ..core.io.video import load_video
from ..core.mesh import Mesh
from ..core.methods.plan import Clock, MethodRun
from ..core.methods.registry import PRESETS
from ..core.methods.signals import with_signals
from ..core.metrics import mean_scores, on_white, read_case, score
from ..core.render.mesh import render_mesh
from ..core.runs.demo import read_pictures
from ..core.runs.report import write_json
from ..core.runs.sample import CAMERA, FPS, FRAMES, sample_case
from ..core.runs.session import Settings
from ..core.scene.object3d import Object3D
from ..core.scene.scene import Scene4D
from ..core.scene.views import render_frames, scene_cameras
from ..core.signals import DepthMaps, PointTracks, SideView, Signals

#: Vertices that are followed.
TRACKS = 400
#: A case's inverse depth from the front, (frames, height, width), NaN where there is none.
DEPTH = "depth.npz"
#: Sides that are filmed, degrees; the scores leave them out.
SIDES = ("105", "-75")


def true_depth(meshes: Sequence[Mesh], camera: FrontCamera, size: int, noise: float = 0.0, seed: int = 0) -> DepthMaps:
    """Inverse depth of moving meshes in [0, 1], NaN where there is none, with noise."""
    cameras = camera.cameras().resized(size, size)
    depth = torch.cat([render_mesh(mesh, cameras, supersample=1).depth for mesh in meshes])
    return inverse_depth(torch.where(depth > 0, 1 / depth.clamp_min(1e-6), torch.nan), noise, seed)


def inverse_depth(inverse: Tensor, noise: float = 0.0, seed: int = 0) -> DepthMaps:  # (T, S, S), NaN where there is none
    """Inverse depth scaled to [0, 1], with noise."""
    low, near = (inverse.nan_to_num(nan).aminmax()[k] for k, nan in ((0, torch.inf), (1, -torch.inf)))
    generator = torch.Generator().manual_seed(seed)
    size = inverse.shape[-2:]
    grain = torch.randn(len(inverse), 1, *size, generator=generator)
    smooth = F.interpolate(torch.randn(len(inverse), 1, 10, 10, generator=generator), size, mode="bicubic")
    mixed = (grain + smooth / smooth.std())[:, 0] / 2**0.5
    return DepthMaps((inverse - low) / (near - low) + noise * mixed, source="true depth")


def true_tracks(
    meshes: Sequence[Mesh], camera: FrontCamera, size: int, noise: float = 0.0, count: int = TRACKS, seed: int = 0
) -> PointTracks:
    """Vertices that the first frame sees, in pixels of each picture, visible where nothing lies before them."""
    cameras = camera.cameras().resized(size, size)
    pose, K = cameras.world_to_camera[0], cameras.K[0]
    generator = torch.Generator().manual_seed(seed)
    points, visible = [], []
    for mesh in meshes:
        seen = mesh.vertices @ pose[:3, :3].T + pose[:3, 3]
        at = seen[:, :2] / seen[:, 2:] * K.diagonal()[:2] + K[:2, 2]
        column, row = at.floor().long().clamp(0, size - 1).unbind(-1)
        depth = render_mesh(mesh, cameras, supersample=1).depth[0][row, column]
        points.append(at)
        visible.append((depth > 0) & (seen[:, 2] < depth + 0.02))
    places, seen = torch.stack(points), torch.stack(visible)
    first = seen[0].nonzero()[:, 0]
    first = first[torch.randperm(len(first), generator=generator)[:count]]
    places, seen = places[:, first], seen[:, first]
    way = float((places - places[:1]).norm(dim=-1).mean())
    return PointTracks(places + noise * way * torch.randn(places.shape, generator=generator), seen, "true tracks")


def side_film(
    pictures: Tensor, azimuth: float, noise: float = 0.0, *, search: bool = False, seed: int = 0, fps: float = FPS
) -> SideView:
    """A film of straight-alpha pictures (T, H, W, 4)."""
    generator = torch.Generator().manual_seed(seed)
    colours = (pictures[..., :3] + noise * torch.randn(pictures[..., :3].shape, generator=generator)).clamp(0, 1)
    video = load_video(torch.cat([colours, pictures[..., 3:]], -1), fps=fps, resolution=256)
    return SideView(replace(video, source=f"film at {azimuth:g}"), azimuth, search=search)


def given(meshes: Sequence[Mesh], pictures: dict[str, Tensor], noise: float) -> dict[str, Signals]:
    """What is compared, by name."""
    size = pictures["front"].shape[1]
    made = {"video alone": Signals()}
    for word, share in (("true", 0.0), ("noisy", noise)):
        depth = true_depth(meshes, CAMERA, size, share)
        made[f"depth, {word}"] = Signals(depth=depth)
        made[f"depth of each frame, {word}"] = Signals(depth=replace(depth, span="frame"))
        made[f"tracks, {word}"] = Signals(tracks=(true_tracks(meshes, CAMERA, size, share),))
        made[f"side film, {word}"] = Signals(views=(side_film(pictures[SIDES[0]], float(SIDES[0]), share),))
    made["side film, searched from 25 degrees away"] = Signals(
        views=(side_film(pictures[SIDES[0]], float(SIDES[0]) - 25, search=True),)
    )
    made["two side films"] = Signals(views=tuple(side_film(pictures[side], float(side)) for side in SIDES))
    made["flow"] = Signals(flow="dis")
    made["depth, tracks and side film, noisy"] = Signals(
        made["depth, noisy"].depth, made["tracks, noisy"].tracks, "", made["side film, noisy"].views
    )
    return made


def given_of_case(case: Path, pictures: dict[str, Tensor], fps: float, noise: float) -> dict[str, Signals]:
    """What is compared of a case, by name."""
    made = {"video alone": Signals()}
    depth = read_arrays(case / DEPTH)["depth"] if (case / DEPTH).is_file() else None
    for word, share in (("true", 0.0), ("noisy", noise)):
        if depth is not None:
            made[f"depth, {word}"] = Signals(depth=inverse_depth(torch.from_numpy(depth).float(), share))
        made[f"side film, {word}"] = Signals(views=(side_film(pictures[SIDES[0]], float(SIDES[0]), share, fps=fps),))
    return made


def scores_of(scene: Scene4D, pictures: dict[str, Tensor]) -> dict[str, float]:
    """Front, and gain over a frozen object and share of the motion from the sides that no signal shows."""
    views = ["0", *(view for view in pictures if view not in ("front", *SIDES))]
    drawn = render_frames(scene, scene_cameras(scene, [float(view) for view in views]))
    rows = [score(on_white(pictures["front" if v == "0" else v]), on_white(d)) for v, d in zip(views, drawn)]
    unseen = mean_scores(rows[1:])
    return {"front": rows[0]["psnr"], "gain": unseen["psnr"] - unseen["frozen"], "motion": unseen["motion"]}


def compare(
    preset: str = "draft",
    noise: float = 0.1,
    only: Sequence[str] | None = None,
    out: Path | None = None,
    frames: int = FRAMES,
    cases: Path | None = None,
) -> str:
    """Rows of a Markdown table, means over the cases, left as ``signals.json`` in ``out``; of the demo without cases."""
    found: dict[str, dict[str, Any]] = {}
    for case in [None] if cases is None else sorted(path.parent for path in cases.glob("*/case.json")):
        if case is None:
            meshes, pictures = sample_case(frames)
            found["demo"] = _compared(meshes[0], pictures, FPS, given(meshes, pictures, noise), preset, only)
        else:
            described = read_case(case)
            sides = {str(azimuth): case / "views" / str(azimuth) for azimuth in described["test_azimuths"]}
            pictures = {view: read_pictures(path) for view, path in ({"front": case / "front"} | sides).items()}
            fps = described.get("fps", FPS)
            signals = given_of_case(case, pictures, fps, noise)
            print(case.name, flush=True)
            found[case.name] = _compared(load_object(case / "mesh.glb"), pictures, fps, signals, preset, only)
        if out is not None:
            write_json(out / "signals.json", found)
    rows: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in found.values() for name in each):
        having = [each[name] for each in found.values() if name in each]
        label = name if len(having) == len(found) else f"{name} ({len(having)} cases)"
        rows[label] = {key: sum(row[key] for row in having) / len(having) for key in ("front", "gain", "motion")}
    return "\n".join(["| given | front | gain | motion |", "|---|--:|--:|--:|", *(line(n, row) for n, row in rows.items())])


def _compared(
    item: Object3D,
    pictures: dict[str, Tensor],
    fps: float,
    signals: dict[str, Signals],
    preset: str,
    only: Sequence[str] | None,
) -> dict[str, Any]:
    """The scores of each of the signals."""
    settings = Settings(preset=preset, prior="none").resolved(True)
    config: Any = settings.plain().bound({})
    video = load_video(pictures["front"], fps=fps, resolution=config.resolution)
    work = MethodRun(config, "pla4d", Clock(None), video, [item], device=settings.device, backend=settings.renderer)
    work.align()
    work.fit_object()
    still = work.scene
    rows: dict[str, Any] = {}
    for name, each in signals.items():
        if only and name not in only:
            continue
        work.scene, work.config, report = still, config, {}
        if each:
            work.config, report = with_signals(config, each, video, work.aligned)
        work.fit_motion()
        rows[name] = scores_of(work.made.to("cpu"), pictures) | {"signals": report}
        print(line(name, rows[name]), flush=True)
    return rows


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    return f"| {name} | {row['front']:.2f} | {row['gain']:+.2f} | {row['motion']:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="what is compared, by name (default: all)")
    parser.add_argument("--preset", choices=PRESETS, default="draft")
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--cases", type=Path, help="folder of cases, in place of the demo's creature")
    parser.add_argument("--out", type=Path, default=Path("anchor4d-bench-signals"))
    args = parser.parse_args()
    text = compare(args.preset, args.noise, args.only, args.out, cases=args.cases)
    with atomic_path(args.out / "signals.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
