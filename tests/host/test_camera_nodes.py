"""A graph of the host's own camera and splat nodes around ours: one camera or a batch of them, in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from anchor4d.core.io import write_splat_sequence
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.scene import Scene4D


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


def test_the_graph_of_the_hosts_cameras_splats_and_meshes(host: Any) -> None:
    """docs/workflows/comfyui_cameras_and_splats: the same moment from the same side by our renderer and both of the host's, and
    what its splat tools made of it back in our nodes."""
    sample_scene(6000, 6).save(host.folder / "output" / "3d" / "walk.safetensors")
    prompt = host.workflow("comfyui_cameras_and_splats")
    absent = {node["class_type"] for node in prompt.values()} - set(host.get("/object_info"))
    if absent:
        pytest.skip(f"this ComfyUI has no {', '.join(sorted(absent))}")
    host.only(prompt, "Anchor4DLoadScene")[1]["file"] = "3d/walk.safetensors [output]"
    (ours,) = (
        key for key, node in prompt.items() if node["class_type"] == "Anchor4DRenderScene" and "camera_info" in node["inputs"]
    )
    prompt[ours]["inputs"]["size"] = 256
    drawn = {"ours": ours}
    for kind in ("RenderSplat", "RenderMesh"):
        drawn[kind], inputs = host.only(prompt, kind)
        inputs |= {"width": 256, "height": 256}
    for name, key in drawn.items():
        prompt[f"save {name}"] = {"class_type": "SaveImage", "inputs": {"images": [key, 0], "filename_prefix": name}}
    merged = host.only(prompt, "MergeSplat")[0]
    saved = {"scene": [merged, 0], "filename_prefix": "3d/merged"}
    prompt["save merged"] = {"class_type": "Anchor4DSaveScene", "inputs": saved}
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail

    def picture(name: str) -> np.ndarray:
        (file,) = (host.file(p) for p in outcome.outputs[f"save {name}"]["images"])
        return np.asarray(Image.open(file).convert("RGB"), dtype=float) / 255

    pictures = {name: picture(name) for name in drawn}
    solid = {name: (image < 0.98).any(-1) for name, image in pictures.items()}
    # Gaussians reach beyond the mesh that they lie on.
    for kind, least, decibels in (("RenderSplat", 0.95, 25), ("RenderMesh", 0.83, 15)):
        overlap = (solid["ours"] & solid[kind]).sum() / (solid["ours"] | solid[kind]).sum()
        likeness = -10 * np.log10(((pictures["ours"] - pictures[kind]) ** 2).mean())
        assert overlap > least and likeness > decibels, (kind, overlap, likeness)
    film = next(o for key, o in outcome.outputs.items() if prompt[key]["class_type"] == "SaveVideo")["images"][0]
    assert host.file(film).stat().st_size > 2000
    # The copy: 0.8 to the right in the splats' own frame, a quarter turn, 0.7 as large.
    both = Scene4D.load(next((host.folder / "output" / "3d").glob("merged_*.safetensors"))).gaussians
    count = len(both) // 2
    first, copy = both.means[:count], both.means[count:]
    turned = torch.stack([first[:, 2], first[:, 1], -first[:, 0]], -1)
    candidates = [0.7 * turned * torch.tensor([s, 1, s]) + torch.tensor([0.8, 0, 0]) for s in (1, -1)]
    assert min(float((copy - c).abs().max()) for c in candidates) < 1e-3


def test_a_texture_baked_of_our_pictures(host: Any) -> None:
    """Scene at Time to Mesh, Unwrap Mesh, Render Scene from an orbit of ours, Bake Texture From Views with the same cameras
    (its stand-in where the host has none), Apply Texture to Mesh: the mesh shows the scene from between the cameras by
    the host's Render Mesh, and comes back into ours with its texture."""
    known = set(host.get("/object_info"))
    if absent := {"UnwrapMesh", "RenderMesh", "ApplyTextureToMesh"} - known:
        pytest.skip(f"this ComfyUI has no {', '.join(sorted(absent))}")
    sample_scene(20000, 6).save(host.folder / "output" / "3d" / "baked.safetensors")
    prompt: dict[str, Any] = {}

    def add(key: str, kind: str, **inputs: Any) -> list[Any]:
        prompt[key] = {"class_type": kind, "inputs": {k.replace("__", "."): v for k, v in inputs.items()}}
        return [key, 0]

    def orbit(key: str, azimuth: float, count: int) -> list[Any]:
        path = add(
            key, "Anchor4DOrbitTrajectory", azimuth=azimuth, sweep=360.0, elevation=10.0, distance=1.6, easing="none", time=0.5,
            batch=count,
        )  # fmt: skip
        return [path[0], 1]

    def ours(key: str, cameras: list[Any], size: int) -> list[Any]:
        return add(
            key, "Anchor4DRenderScene", scene=scene, shot="orbit", shot__time=0.5, shot__azimuth=0.0, shot__sweep=0.0,
            shot__frames=1, framing="object", size=size, background="white", elevation=0.0, camera_info=cameras,
        )  # fmt: skip

    scene = add("scene", "Anchor4DLoadScene", file="3d/baked.safetensors [output]", path="")
    mesh = add("mesh", "Anchor4DSceneToMesh", scene=scene, time=0.5)
    flat = add("flat", "UnwrapMesh", mesh=mesh, segmenter="pec", resolution=384, padding=2, weld_distance=0.0)
    around = orbit("around", 0.0, 8)
    bare = {
        "mesh": flat,
        "images": ours("pictures", around, 512),
        "camera_info": around,
        "resolution": 384,
        "blend_exponent": 4.0,
    }
    if "BakeTextureFromViews" in known:
        texture = add("bake", "BakeTextureFromViews", **bare, fill_unseen=True)
    else:
        texture = add("bake", "TextureFromViews", **bare)
    textured = add("textured", "ApplyTextureToMesh", mesh=flat, base_color=texture)
    between = orbit("between", 22.5, 1)
    theirs = add(
        "theirs", "RenderMesh", mesh=textured, mode="texture", width=256, height=256, background="#ffffff", camera_info=between
    )
    back = add(
        "back", "Anchor4DRenderObject", mesh=textured, azimuth=22.5, elevation=10.0, distance=2.5, field_of_view=40.0, size=256
    )
    plain = add(
        "plain", "Anchor4DRenderObject", mesh=mesh, azimuth=22.5, elevation=10.0, distance=2.5, field_of_view=40.0, size=256
    )
    for key, made in (("ours", ours("scene's", between, 256)), ("theirs", theirs), ("back", back), ("plain", plain)):
        add(f"save {key}", "SaveImage", images=made, filename_prefix=f"baked {key}")
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail

    def picture(key: str) -> np.ndarray:
        (file,) = (host.file(p) for p in outcome.outputs[f"save {key}"]["images"])
        return np.asarray(Image.open(file).convert("RGB"), dtype=float) / 255

    pictures = {key: picture(key) for key in ("ours", "theirs", "back", "plain")}
    inside = {key: np.asarray(ndimage.binary_erosion((p < 0.98).any(-1), iterations=3), bool) for key, p in pictures.items()}

    def likeness(a: str, b: str) -> float:
        return -10 * np.log10(((pictures[a] - pictures[b])[inside[a] & inside[b]] ** 2).mean())

    # What is left is the Gaussians' blur.
    found = likeness("ours", "theirs"), likeness("back", "plain")
    assert min(found) > 20, found


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


def test_a_graph_of_a_former_release_runs_by_the_hosts_replacement(host: Any) -> None:
    """A rename's way, on a node with inputs that a choice reveals: random_nodes' former Render Scene."""
    write_splat_sequence(host.folder / "input" / "3d" / "renamed", sample_scene(300, 2))
    load = {"file": "3d/renamed", "path": "", "fps": 0.0, "loop": "as saved", "motion": "auto", "frames": 0}
    outcome = host.run({
        "load": {"class_type": "Anchor4DLoadSplats", "inputs": load},
        "former": {
            "class_type": "Anchor4DFormerRender", "inputs": {"moving": ["load", 0], "side": 96},
            "_meta": {"title": "Former Render"},  # which the page sends, and the replacement of 0.23 wants
        },
        "images": {"class_type": "SaveImage", "inputs": {"images": ["former", 1], "filename_prefix": "former"}},
    })  # fmt: skip
    assert outcome.ended == "execution_success", outcome.detail
    pictures = [Image.open(host.file(p)) for p in outcome.outputs["images"]["images"]]
    assert len(pictures) == 2 and all(max(p.size) == 96 and p.mode == "RGB" for p in pictures)
