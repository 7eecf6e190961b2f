"""A graph of the host's own camera and splat nodes around ours: one camera or a batch of them, in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from anchor4d.core.io import write_splat_sequence
from anchor4d.core.runs.sample import sample_scene


def test_the_host_s_cameras_and_splats_around_ours(host: Any) -> None:
    write_splat_sequence(host.folder / "input" / "3d" / "cast", sample_scene(2000, 6))
    prompt: dict[str, Any] = {}

    def add(key: str, kind: str, **inputs: Any) -> list[Any]:
        prompt[key] = {"class_type": kind, "inputs": {k.replace("__", "."): v for k, v in inputs.items()}}
        return [key, 0]

    def camera(key: str, yaw: float) -> list[Any]:
        return add(
            key, "CreateCameraInfo", mode="orbit", mode__yaw=yaw, mode__pitch=10.0, mode__distance=2.5, target_x=0.0,
            target_y=0.0, target_z=0.0, roll=0.0, fov=35.0, zoom=1.0, camera_type="perspective",
        )  # fmt: skip

    def drawn(key: str, shot: str, info: list[Any], **more: Any) -> None:
        shown = {"shot": shot, "shot__azimuth": 0.0} | {f"shot__{k}": v for k, v in more.items()}
        made = add(
            key, "Anchor4DRenderScene", scene=scene, framing="object", size=256, background="white", elevation=0.0,
            camera_info=info, **shown,
        )  # fmt: skip
        add(f"save {key}", "SaveImage", images=made, filename_prefix=key)

    scene = add("load", "Anchor4DLoadSplats", file="3d/cast", path="", fps=0.0, loop="as saved", motion="auto", frames=0)
    both = add("both", "SeveralCameras", a=camera("a", 20.0), b=camera("b", 110.0))
    drawn("frozen", "orbit", both, time=0.0, sweep=0.0, frames=48)
    drawn("running", "moving", both, sweep=0.0, repeats=4, frames=0)
    drawn("beside", "sides", both, sides=4, columns=2, repeats=1, frames=3)
    splat = add("splat", "Anchor4DSceneAtTime", scene=scene, time=0.0)
    theirs = add(
        "theirs", "RenderSplat", splat=splat, width=256, height=256, frames=1, splat_scale=1.0, sharpen=1.0,
        headlight_shading=0.0, opacity_threshold=0.0, render_style="color", background="#ffffff", camera_info=["a", 0],
    )  # fmt: skip
    add("save theirs", "SaveImage", images=theirs, filename_prefix="theirs")
    path = add(
        "path", "Anchor4DKeyframeTrajectory", cameras__camera_0=both, interpolation="linear", easing="none", loop=False, batch=5
    )
    drawn("path of five", "orbit", [path[0], 1], time=0.0, sweep=0.0, frames=48)
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail

    def pictures(key: str) -> np.ndarray:
        files = [host.file(p) for p in outcome.outputs[f"save {key}"]["images"]]
        return np.stack([np.asarray(Image.open(f).convert("RGB"), dtype=float) / 255 for f in files])

    frozen, running, path_of_five = pictures("frozen"), pictures("running"), pictures("path of five")
    assert len(frozen) == len(running) == 2 and len(path_of_five) == 5
    assert pictures("beside").shape == (3, 256, 512, 3)
    likeness = [-10 * np.log10(((one - pictures("theirs")[0]) ** 2).mean()) for one in frozen]
    assert likeness[0] > 25 and likeness[0] > likeness[1] + 6, likeness
    assert np.abs(frozen[0] - frozen[1]).mean() > 0.01  # another side
    np.testing.assert_allclose(running[0], frozen[0], atol=2 / 255)
    np.testing.assert_allclose(path_of_five[[0, 4]], frozen, atol=3 / 255)
    np.testing.assert_allclose(pictures("beside")[0], np.concatenate([frozen[0], frozen[1]], 1), atol=2 / 255)


@pytest.mark.parametrize("wrong", ["orthographic"])
def test_a_camera_that_is_not_drawn_from_names_the_node(host: Any, wrong: str) -> None:
    write_splat_sequence(host.folder / "input" / "3d" / "small", sample_scene(100, 2))
    camera = {
        "mode": "orbit", "mode.yaw": 0.0, "mode.pitch": 0.0, "mode.distance": 2.0, "target_x": 0.0, "target_y": 0.0,
        "target_z": 0.0, "roll": 0.0, "fov": 35.0, "zoom": 1.0, "camera_type": wrong,
    }  # fmt: skip
    load = {"file": "3d/small", "path": "", "fps": 0.0, "loop": "as saved", "motion": "auto", "frames": 0}
    render = {
        "scene": ["load", 0], "shot": "fixed", "shot.azimuth": 0.0, "shot.repeats": 1, "shot.frames": 0, "framing": "object",
        "size": 64, "background": "white", "elevation": 0.0, "camera_info": ["camera", 0],
    }  # fmt: skip
    outcome = host.run({
        "camera": {"class_type": "CreateCameraInfo", "inputs": camera},
        "load": {"class_type": "Anchor4DLoadSplats", "inputs": load},
        "render": {"class_type": "Anchor4DRenderScene", "inputs": render},
    })  # fmt: skip
    assert outcome.ended == "execution_error"
    assert outcome.detail["exception_message"].startswith("Render Scene: camera: orthographic cameras are not supported")
