"""TSOG: what is written holds to the playback profile and reads back within what is stated; files as Xiaomi's encoder has them.

A checkout of OpsiClear-4DGS/ftgs-player named by ANCHOR4D_FTGS_PLAYER is the reader that is not ours, run by node.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_splat_kinds import gaussians

from anchor4d.core.deformation.timed import TimedGaussians
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.io import moving_ply, tsog
from anchor4d.core.io.export import export_scene
from anchor4d.core.io.sequence import open_scene
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.sequence import scene_from_gaussians
from anchor4d.core.scene.timed import bake_timed


def timed(count: int = 40, degree: int = 1) -> Scene4D:
    g = torch.Generator().manual_seed(2)
    motion = torch.randn(count, 1, 3, generator=g) * 0.3
    precision = torch.rand(count, generator=g) * 60
    precision[:5] = 0
    field = TimedGaussians.of(motion, torch.rand(count, generator=g), precision)
    return Scene4D(gaussians(degree, count), field, frames=25, fps=24.0)


def opened(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pictures = {n: archive.read(n) for n in archive.namelist() if n.endswith(".webp")}
        meta = json.loads(archive.read("meta.json"))
    return meta, {n: np.asarray(Image.open(io.BytesIO(p)).convert("RGBA")) for n, p in pictures.items()}


def packed(meta: dict[str, Any], pictures: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, pixels in pictures.items():
            one = io.BytesIO()
            Image.fromarray(pixels).save(one, "WEBP", lossless=True, exact=True)
            archive.writestr(name, one.getvalue())
        archive.writestr("meta.json", json.dumps(meta))
    return file.getvalue()


def close(found: Gaussians, expected: Gaussians, position: float, opacity: float) -> None:
    """Both in any order, matched by place."""
    distance = torch.cdist(found.means.detach().double(), expected.means.double())
    order = distance.argmin(0)
    assert float(distance.amin(0).max()) <= position
    torch.testing.assert_close(found.opacities[order], expected.opacities, rtol=0, atol=opacity)
    torch.testing.assert_close(found.colors[order], expected.colors, rtol=0, atol=0.02)


def test_a_continuous_file_reads_back(tmp_path: Path) -> None:
    scene = timed()
    export_scene(scene, tmp_path / "a.tsog", "tsog")
    again = open_scene(tmp_path / "a.tsog")
    assert (again.frames, again.fps, again.loop, again.meta["source"]) == (25, 24.0, False, "a.tsog")
    for tau in (0.0, 0.33, 1.0):
        close(again.at(tau).detach(), scene.at(tau).detach(), 1e-4, 0.006)
    meta, pictures = opened((tmp_path / "a.tsog").read_bytes())
    assert meta["version"] == 4 and meta["profile"] == {"id": "org.opsiclear.tsog-playback", "version": 1}
    assert meta["timeline"]["type"] == 1 and meta["playback"] == {"fps": 24.0, "duration": 1.0, "loop": False}
    assert len({p.shape for n, p in pictures.items() if n != "shN_centroids.webp"}) == 1


@pytest.mark.parametrize("loop", [False, True])
def test_another_motion_is_written_frame_by_frame(loop: bool) -> None:
    first = gaussians(count=30)
    sets = [replace(first.select(torch.arange(30 - t)), means=first.means[: 30 - t] + 0.1 * t) for t in range(5)]
    scene = scene_from_gaussians(sets, fps=10.0, loop=loop)
    again = tsog.decode(tsog.encode(scene), "a.tsog")
    assert (again.frames, again.fps, again.loop, len(again.gaussians)) == (5, 10.0, loop, 30 + 29 + 28 + 27 + 26)
    for tau, given in zip(again.taus.tolist(), sets):
        moved = again.at(tau)
        shown = moved.select(moved.opacities > 1e-6)
        assert len(shown) == len(given)
        close(shown, given, 2e-4, 0.003)
    assert tsog.encode(scene) == tsog.encode(scene)


def test_a_still_scene_has_no_timeline() -> None:
    scene = Scene4D(gaussians(2, 20))
    data = tsog.encode(scene)
    assert "timeline" not in opened(data)[0]
    again = tsog.decode(data, "a.tsog")
    assert again.field is None and again.frames == 1
    close(again.gaussians, scene.gaussians, 1e-4, 0.003)


def legacy(**changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Four Gaussians as Xiaomi's encoder has them: no profile, short codebooks, one picture of speeds."""

    def pixels(rows: list[list[int]]) -> np.ndarray:
        return np.array(rows, np.uint8).reshape(2, 2, 4)

    pictures = {
        "l": pixels([[0, 0, 0, 255]] * 4), "h": pixels([[0, 255, 0, 255], [255, 0, 0, 255], [0, 0, 255, 255], [0, 0, 0, 255]]),
        "s": pixels([[0, 1, 0, 255]] * 4), "q": pixels([[128, 128, 128, 252]] * 4), "c": pixels([[1, 0, 0, 128]] * 4),
        "tl": pixels([[0, 0, 0, 255]] * 4),
        "th": pixels([[0, 0, 0, 255], [128, 0, 0, 255], [255, 0, 0, 255], [64, 255, 0, 255]]),
        "v": pixels([[255, 0, 0, 255]] * 4),
    }  # fmt: skip
    pictures = {f"{k}.webp": v for k, v in pictures.items()}
    meta = {
        "version": 4, "count": 4, "means": {"mins": [0, 0, 0], "maxs": [1, 1, 1], "files": ["l.webp", "h.webp"]},
        "scales": {"codebook": [-3.0, -2.0], "files": ["s.webp"]}, "quats": {"files": ["q.webp"]},
        "sh0": {"codebook": [0.0, 1.0], "files": ["c.webp"]},
        "timeline": {"type": 1, "mins": [0, 0.1], "maxs": [1, 0.5], "files": ["tl.webp", "th.webp"]},
        "temporal": {"means": {"mins": [[0, 1, 0]], "maxs": [[2, 1, 0]], "files": ["v.webp"]}},
    } | changes  # fmt: skip
    return {k: v for k, v in meta.items() if v is not None}, pictures


def test_files_without_a_profile_are_y_down_and_play_as_the_profile_says() -> None:
    scene = tsog.decode(packed(*legacy()), "a.tsog")
    assert (scene.frames, scene.fps, scene.loop) == (300, 30.0, True)
    full = np.expm1(65280 / 65535)
    torch.testing.assert_close(scene.gaussians.means[0], torch.tensor([0.0, -full, 0.0]).float(), rtol=0, atol=1e-5)
    field = scene.field
    assert isinstance(field, TimedGaussians)
    torch.testing.assert_close(field.motion[:, 0].detach(), torch.tensor([[2.0, -1.0, 0.0]]).expand(4, 3))
    torch.testing.assert_close(field.centre[1].detach(), torch.tensor(32768 / 65535))
    torch.testing.assert_close(field.precision[3].detach().rsqrt(), torch.tensor(0.1 + 0.4 * 65280 / 65535))
    torch.testing.assert_close(scene.gaussians.log_scales[0], torch.tensor([-3.0, -2.0, -3.0]))
    assert float(scene.gaussians.opacities[0]) == pytest.approx(128 / 255, abs=1e-5)


def test_discrete_frames_are_those_of_the_format_s_buckets() -> None:
    timeline = {"type": 0, "N": 3, "delta": 21845, "files": ["tl.webp", "th.webp"]}
    scene = tsog.decode(packed(*legacy(timeline=timeline, temporal=None, fps=6)), "a.tsog", loop=False)
    assert (scene.frames, scene.fps) == (3, 6.0)
    shown = [(scene.at(t / 2).opacities > 1e-6).tolist() for t in range(3)]
    assert shown == [[True, False, False, True], [False, True, False, False], [False, False, True, False]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 5}, "TSOG of version 5, only 4"),
        ({"profile": {"id": "another", "version": 1}}, "only 4 is read"),
        ({"temporal": {"scales": {}}}, "moving scales are not read"),
        ({"timeline": {"type": 2, "files": ["tl.webp", "th.webp"]}}, "a timeline of type 2"),
        ({"timeline": {"type": 1, "mins": [0, 0], "maxs": [1, 0], "files": ["tl.webp", "th.webp"]}}, "no length"),
        ({"timeline": {"type": 0, "N": 0, "files": ["tl.webp", "th.webp"]}}, "a number of frames that is none"),
        ({"count": 9}, "fewer than 9 pixels"),
        ({"sh0": {"codebook": [], "files": ["c.webp"]}}, "codebook of shape"),
        ({"playback": {"duration": -1}}, "duration is -1"),
    ],
)
def test_what_is_not_read_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tsog.decode(packed(*legacy(**changes)), "a.tsog")


READER = """
import { readFileSync } from "node:fs";
const [folder, given] = process.argv.slice(1);
const { decodeTSOG } = await import(`${folder}/tsog.js`);
const { readFTGS } = await import(`${folder}/ftgs.js`);
const model = given.endsWith(".ply") ? await readFTGS(new Blob([readFileSync(given)])) : await (async () => {
  const { meta, images } = JSON.parse(readFileSync(given));
  const image = ({ rgba, ...rest }) => ({ ...rest, rgba: Uint8Array.from(Buffer.from(rgba, "base64")) });
  return decodeTSOG(meta, async (name) => image(images[name]));
})();
const keys = ["positionTime", "velocityDuration", "covarianceA", "covarianceB", "sh", "alpha"];
console.log(JSON.stringify(Object.fromEntries(keys.map((key) => [key, [...model[key]]]).concat([["frames", model.nFrames]]))));
"""


def foreign(path: Path) -> dict[str, Any]:
    folder = os.environ.get("ANCHOR4D_FTGS_PLAYER")
    if not folder or shutil.which("node") is None:
        pytest.skip("needs node and a checkout of ftgs-player, named by ANCHOR4D_FTGS_PLAYER")
    call = ["node", "--input-type=module", "-e", READER, str(Path(folder).resolve()), str(path)]
    return json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("kind", ["tsog", "discrete", "ftgs"])
def test_a_reader_that_is_not_ours_finds_the_same(kind: str, tmp_path: Path) -> None:
    import base64

    scene = timed() if kind != "discrete" else sample_scene(30, 4)
    if kind == "ftgs":
        path = tmp_path / "a.ftgs.ply"
        path.write_bytes(moving_ply.encode_ftgs(scene))
        ours, turn = moving_ply.decode(path.read_bytes(), "a"), torch.tensor([1.0, -1.0, -1.0])
    else:
        data = tsog.encode(scene)
        meta, pictures = opened(data)
        images = {n: {"width": p.shape[1], "height": p.shape[0], "rgba": base64.b64encode(p.tobytes()).decode()}
                  for n, p in pictures.items()}  # fmt: skip
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"meta": meta, "images": images}))
        ours, turn = tsog.decode(data, "a"), torch.ones(3)
    theirs = {k: torch.tensor(v) for k, v in foreign(path).items() if v is not None}
    field = ours.field
    assert isinstance(field, TimedGaussians)
    place = theirs["positionTime"].reshape(-1, 4)
    torch.testing.assert_close(place[:, :3] * turn, ours.gaussians.means, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs["alpha"], ours.gaussians.opacities, rtol=0, atol=1e-3)
    dc = theirs["sh"].reshape(len(place), -1, 4)[:, 0, :3]
    torch.testing.assert_close(dc, ours.gaussians.sh[:, 0], rtol=0, atol=1e-5)
    spread = ours.gaussians.scales.square().sum(-1)
    a, b = theirs["covarianceA"].reshape(-1, 4), theirs["covarianceB"].reshape(-1, 4)
    torch.testing.assert_close(a[:, 0] + a[:, 3] + b[:, 1], spread, rtol=1e-3, atol=1e-7)
    if kind == "discrete":
        assert int(theirs["frames"]) == ours.frames
        frame = (field.centre.detach() * (ours.frames if ours.loop else ours.frames - 1)).floor()
        torch.testing.assert_close(place[:, 3], frame)
    else:
        torch.testing.assert_close(place[:, 3], field.centre.detach(), rtol=0, atol=1e-6)
        speed = theirs["velocityDuration"].reshape(-1, 4)
        torch.testing.assert_close(speed[:, :3] * turn, field.motion[:, 0].detach(), rtol=0, atol=1e-6)
        torch.testing.assert_close(speed[:, 3], field.precision.detach().rsqrt(), rtol=1e-3, atol=0)


def test_a_baked_scene_is_written_with_lives_and_speeds(tmp_path: Path) -> None:
    scene = sample_scene(60, 6)
    baked = bake_timed(scene, life="gaussian", turning=False).scene
    assert tsog.is_continuous(baked) and not tsog.is_continuous(scene)
    assert not tsog.is_continuous(bake_timed(scene).scene)
    export_scene(scene, tmp_path / "a.ply", "ftgs", frames=12)
    assert open_scene(tmp_path / "a.ply").frames == 12
