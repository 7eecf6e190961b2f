"""Align4D's four pipelines, each to a quadruplet of a set: what is missing is made by the real pipelines at tiny sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from test_chain import box, folder, rembg  # noqa: F401
from test_x4d import moving, seen, tiny_drafts

from anchor4d.bench.x4d import quadruplet_row
from anchor4d.core.io import write_frames, write_png
from anchor4d.core.io.meshes import write_glb
from anchor4d.core.runs.x4d import Limits, Source, gather
from anchor4d.core.runs.x4d_set import X4D

#: The models that each pipeline asks, by what they make.
ASKED = {
    "prompt": {"image": "xl", "video": "cogvideox", "object": "lgm", "views": "imagedream"},
    "image": {"video": "cogvideox", "object": "lgm", "views": "imagedream"},
    "video": {"object": "lgm", "views": "imagedream"},
    "object": {"video": "cogvideox"},
}


@pytest.mark.usefixtures("rembg")
@pytest.mark.parametrize("start", list(ASKED))
def test_each_pipeline_makes_a_quadruplet(
    start: str,
    folder: Callable[[str], str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_drafts(monkeypatch)
    given = {"prompt": "a bear", "image": "image.png", "video": "film", "object": "box.glb"}[start]
    if start == "object":
        write_glb(tmp_path / given, box())
    elif start != "prompt":
        video = seen(moving())
        rgba = video.frames.new_ones(len(video), 40, 40, 4)
        rgba[..., :3], rgba[..., 3] = video.frames, video.masks
        write_png(tmp_path / "image.png", rgba[0])
        write_frames(tmp_path / "film", rgba)
    given = given if start == "prompt" else str(tmp_path / given)
    models = [f"--{link}-model={folder(name)}" for link, name in ASKED[start].items()]
    argv = [f"--{start}={given}", *models, "--preset=draft", "--prior=none", "--device=cpu"]
    quadruplet_row([*argv, f"--out={tmp_path / 'set' / start}"], lambda *_: None)
    every = Limits({}, ("good", "doubtful", "wrong"))
    (entry,), rejected = gather(tmp_path / "set", [Source(start, {start: given})], every)
    assert not rejected
    assert entry["from"] == {"prompt": "text", "object": "3d"}.get(start, start)
    assert entry["object"] == ("mesh" if start == "object" else "gaussians")
    made = {"prompt": ["image", "video", "object"], "image": ["video", "object"], "video": ["object"], "object": ["video"]}
    assert {model["of"] for model in entry["models"]} == set(made[start])
    assert {model["name"] for model in entry["models"]} == set(ASKED[start].values())
    item = X4D(tmp_path / "set", verify=True)[0]
    assert item["video"].shape[0] == entry["frames"] and float(item["video"][..., 3].max()) > 0.9
