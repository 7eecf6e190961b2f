"""The nodes that edit scenes, in a real ComfyUI: they do what the core does, to scenes and to the host's own splats."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anchor4d.core.gaussians import Gaussians
from anchor4d.core.io import write_splat_sequence
from anchor4d.core.io.sequence import read_sequence
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene import edit
from anchor4d.core.scene.edit import Placement
from anchor4d.core.scene.scene import Scene4D

TIMES = torch.tensor([0.0, 0.3, 0.8, 1.0])


def near(a: Gaussians, b: Gaussians) -> None:
    for key in ("means", "log_scales", "sh"):
        torch.testing.assert_close(getattr(a, key), getattr(b, key), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(a.opacities, b.opacities, atol=1e-4, rtol=0)


@torch.no_grad()
def test_every_edit_of_scenes_and_of_splats(host: Any) -> None:
    walk = sample_scene(400, 8)
    write_splat_sequence(host.folder / "input" / "3d" / "walk", walk)
    prompt: dict[str, Any] = {}

    def add(key: str, kind: str, **inputs: Any) -> list[Any]:
        prompt[key] = {"class_type": f"Anchor4D{kind}", "inputs": {k.replace("__", "."): v for k, v in inputs.items()}}
        return [key, 0]

    def saved(key: str, scene: list[Any]) -> None:
        add(f"save {key}", "SaveScene", scene=scene, filename_prefix=f"3d/{key}")

    axes = {f"{name}_{axis}": 0.0 for name in ("translate", "rotate") for axis in "xyz"}
    loaded = add("load", "LoadSplats", file="3d/walk", path="", fps=0.0, loop="as saved", motion="auto", frames=0)
    splats = add("splats", "SceneToSplats", scene=loaded, frames=0)
    prompt["moved"] = {
        "class_type": "TransformSplat",
        "inputs": {"splat": splats, **axes, **{f"scale_{axis}": 1.0 for axis in "xyz"}, "translate_x": 0.5},
    }
    moved = ["moved", 0]
    saved("retimed", add("retimed", "RetimeScene", scene=moved, speed=0.5, fps=0.0, frames=0, curve="steady"))
    saved(
        "slowed", add("slowed", "RetimeScene", scene=moved, speed=1.0, fps=0.0, frames=0, curve="steady", points="0 0, 1 0.5")
    )
    trimmed = add("trimmed", "TrimScene", scene=moved, unit="seconds", unit__start=0.0, unit__end=0.5)
    saved("trimmed", trimmed)
    saved("looped", add("looped", "LoopScene", scene=trimmed, mode="close the loop", mode__overlap=2))
    saved("back", add("back", "LoopScene", scene=trimmed, mode="ping-pong"))
    led = {f"moving__to_{name}": 0.0 for name in axes} | {"moving__to_translate_y": 1.0, "moving__to_scale": 2.0}
    saved("led", add("led", "TransformScene", scene=trimmed, **axes | {"rotate_y": 90.0}, scale=1.0, moving="to", **led))
    cropped = add(
        "cropped", "CropScene", scene=loaded, shape="ball", shape__centre_x=0.0, shape__centre_y=0.2, shape__centre_z=0.0,
        shape__radius=0.3, keep="inside", when="at any frame", time=0.0,
    )  # fmt: skip
    saved("cropped", cropped)
    corrections = {"brightness": 1.0, "contrast": 1.0, "saturation": 0.0, "hue": 0.0, "gamma": 1.0, "tint": "#ffffff"}
    grey = add("grey", "ColorOpacity", scene=moved, **corrections, opacity=0.5, remove_below=0.0, fade_in=0.25)
    saved("grey", grey)
    merged = add("merged", "MergeScenes", scenes__scene_0=loaded, scenes__scene_1=moved, shorter="repeat", fps=0.0, frames=0)
    saved("merged", merged)
    saved("pruned", add("pruned", "PruneScene", scene=merged, keep="count", keep__count=300, cover=True))
    saved(
        "both",
        add("both", "SplatsToScene", splats__splats_0=splats, splats__splats_1=moved, fps=24.0, loop=True, motion="auto"),
    )
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    assert any(text.endswith("motion: smooth") for text in outcome.texts)

    found = {
        key[5:]: Scene4D.load(next((host.folder / "output" / "3d").glob(f"{key[5:]}_*"))) for key in prompt if key[:4] == "save"
    }
    given = read_sequence(host.folder / "input" / "3d" / "walk")
    assert (given.frames, given.fps, given.loop) == (8, walk.fps, True)
    # A batch of splats knows neither its speed nor that it loops; the host counts +Y down, its +X is ours.
    other = edit.transform(Scene4D(given.gaussians, given.field, 8, 12.0), Placement((0.5, 0, 0)))
    other = edit.trim(Scene4D(other.gaussians, other.field, 8, 12.0, loop=True))
    part = edit.trim(other, 0.0, 0.5, "seconds")
    expected = {
        "retimed": edit.retime(other, speed=0.5),
        "slowed": edit.retime(other, curve=[(0, 0), (1, 0.5)]),
        "trimmed": part,
        "looped": edit.close_loop(part, 2),
        "back": edit.ping_pong(part),
        "led": edit.follow(part, [(0.0, Placement(rotate=(0, 90, 0))), (1.0, Placement((0, 1, 0), scale=2.0))]),
        "cropped": edit.crop(given, sphere=((0, 0.2, 0), 0.3), time=None),
        "grey": edit.opacity(edit.recolor(other, saturation=0.0), edit.fade(other, 0.5, 0.25)),
        "merged": edit.merge([given, other]),
    }
    for key, scene in expected.items():
        assert (found[key].frames, found[key].fps, found[key].loop) == (scene.frames, scene.fps, scene.loop), key
        near(found[key].at(TIMES), scene.at(TIMES))
    assert len(found["pruned"].gaussians) == 300
    assert (found["both"].frames, found["both"].fps, found["both"].loop) == (16, 24.0, True)
    near(found["both"].at(0.5), other.at(0.0))


@pytest.mark.parametrize(
    ("kind", "inputs", "wanted"),
    [
        ("LoadSplats", {"file": "none", "path": "/no/such/walk.zip"}, "Load Splats: /no/such/walk.zip: no such file"),
        ("TrimScene", {"unit": "frames", "unit.start": 5, "unit.end": 90}, "Trim Scene: trim: frames 5 to 90 of a clip of 4"),
        ("LoopScene", {"mode": "close the loop", "mode.overlap": 3}, "Loop Scene: overlap 3: choose 1 to 1 frames"),
    ],
)
def test_errors_say_which_input_to_change(host: Any, kind: str, inputs: dict[str, Any], wanted: str) -> None:
    walk = sample_scene(50, 4)
    path = host.folder / "input" / "3d" / "short.safetensors"
    Scene4D(walk.gaussians, walk.field, 4, 12.0).save(path)
    more = {"fps": 0.0, "loop": "as saved", "motion": "auto", "frames": 0} if kind == "LoadSplats" else {"scene": ["1", 0]}
    prompt = {
        "1": {"class_type": "Anchor4DLoadScene", "inputs": {"file": "none", "path": str(path)}},
        "2": {"class_type": f"Anchor4D{kind}", "inputs": {**inputs, **more}},
        "3": {"class_type": "Anchor4DSaveScene", "inputs": {"scene": ["2", 0], "filename_prefix": "3d/never"}},
    }
    outcome = host.run(prompt)
    assert outcome.ended == "execution_error"
    message = outcome.detail["exception_message"].strip()
    assert message.startswith(wanted), message
    assert "\n" not in message
