"""Quadruplets in a real ComfyUI: saved to a set that Python reads, and loaded from it onto sockets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.runs.x4d_set import X4D
from anchor4d.core.scene.scene import Scene4D


@torch.no_grad()
def test_a_quadruplet_goes_to_a_set_and_comes_back(host: Any) -> None:
    sample_scene(400, 4).save(host.folder / "input" / "3d" / "walk.safetensors")
    prompt: dict[str, Any] = {}

    def add(key: str, kind: str, **inputs: Any) -> list[Any]:
        prompt[key] = {"class_type": f"Anchor4D{kind}", "inputs": {k.replace("__", "."): v for k, v in inputs.items()}}
        return [key, 0]

    add("made", "Sample", frames=4, size=256, truth_azimuth="15")
    names = {name: ["made", at] for at, name in enumerate(("images", "masks", "fps", "mesh"))}
    video = add(
        "video",
        "PrepareVideo",
        source=names["images"],
        mask=names["masks"],
        fps=8.0,
        resolution=96,
        frames=0,
        background="auto",
    )
    mesh = add("mesh", "InflateObject", driving_video=video, nearer="auto", depth=1.0)
    seen = {"distance": 2.0, "field_of_view": 40.0, "elevation": 0.0, "front": "degrees", "front__yaw": 0.0}
    alignment = add("camera", "FixedCamera", driving_video=video, mesh=mesh, **seen)
    scene = add("scene", "LoadScene", file="3d/walk.safetensors", path="")
    both = {"set_folder": "x4d", "name": "a toy!", "licence": "CC0-1.0"}
    first = add("first", "SaveQuadruplet", text="a toy  walks", scene=scene, driving_video=video, alignment=alignment, **both)
    second = add("second", "SaveQuadruplet", text="the same", scene=scene, set_folder=first, name="a toy!", licence="")
    loaded = add("loaded", "LoadQuadruplet", set_folder=second, index=0, id="a_toy_00001")
    add("again", "SaveQuadruplet", text=loaded, scene=["loaded", 3], driving_video=["loaded", 1], set_folder="other",
        name="copy", licence="")  # fmt: skip
    add("scene file", "SaveScene", scene=["loaded", 3], filename_prefix="3d/back")
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail["exception_message"]
    found = X4D(host.folder / "output" / "x4d", verify=True)
    assert [(entry["id"], entry["text"], entry["from"]) for entry in found.entries] == [
        ("a_toy_00001", "a toy walks", "video+3d"), ("a_toy_00002", "the same", "text"),
    ]  # fmt: skip
    assert found.entries[0]["measures"]["iou"] > 0.7 and "iou" not in found.entries[1]["measures"]
    assert [entry["object"] for entry in found.entries] == ["mesh", "gaussians"] and found.entries[0]["licence"] == "CC0-1.0"
    (copy,) = X4D(host.folder / "output" / "other", verify=True).entries
    assert copy["text"] == "a toy walks"
    other = X4D(host.folder / "output" / "other")[0]["video"]
    assert other.shape == found[0]["video"].shape and (other[..., 3] - found[0]["video"][..., 3]).abs().max() < 2 / 255
    assert Scene4D.load(next((host.folder / "output" / "3d").glob("back_*"))).frames == 4


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"set_folder": "none", "index": 0, "id": ""}, "no manifest; give the folder that x4d build"),
        ({"set_folder": " ", "index": 0, "id": ""}, "set_folder: empty"),
    ],
)
def test_what_is_no_set_is_said(host: Any, inputs: dict[str, Any], words: str) -> None:
    outcome = host.run(
        {
            "load": {"class_type": "Anchor4DLoadQuadruplet", "inputs": inputs},
            "save": {"class_type": "Anchor4DSaveScene", "inputs": {"scene": ["load", 3], "filename_prefix": "3d/x"}},
        }
    )
    assert outcome.ended == "execution_error" and words in outcome.detail["exception_message"], outcome.detail
