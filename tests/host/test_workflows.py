"""The workflows and nodes in a real ComfyUI, through its HTTP API."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchor4d.core.io.stream import read_stream
from anchor4d.core.runs.sample import sample_scene, write_sample
from anchor4d.core.scene.scene import Scene4D

ROOT = Path(__file__).parents[2]


def add(prompt: dict[str, Any], key: str, kind: str, **inputs: Any) -> None:
    prompt[key] = {"class_type": kind, "inputs": {name.replace("__", "."): value for name, value in inputs.items()}}


@torch.no_grad()
def travelled(scene: Scene4D) -> float:
    """How far the Gaussian that moves most is from its start at half time."""
    return float((scene.at(0.5).means - scene.at(0.0).means).norm(dim=-1).max())


def picture(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def clip_and_mesh(host: Any) -> None:
    """The sample as files that Load Driving Video and Load Mesh offer."""
    if (host.folder / "input" / "clip").exists():
        return
    case = write_sample(host.folder / "case", frames=4, size=80)
    (case / "front").rename(host.folder / "input" / "clip")
    (case / "mesh.glb").rename(host.folder / "input" / "3d" / "creature.glb")


def test_demo_workflow(host: Any):
    prompt = host.workflow("1_demo")
    host.only(prompt, "Anchor4DFitGaussians")[1]["seed"] = 1  # nothing that another test left in the host's cache
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    assert outcome.previews >= 4
    assert any(text.startswith("estimate: ") and "\n3D to 4D: step 6 of 6\n" in text for text in outcome.texts)
    assert any(text.startswith("estimate: ") and "\nverdict: " in text for text in outcome.texts)

    scene = Scene4D.load(next((host.folder / "output" / "3d").glob("1_demo_*.safetensors")))
    assert scene.frames == 4 and 800 <= len(scene.gaussians) <= 1600  # those beneath the surface included
    assert scene.field is not None
    assert scene.field.name == "control-nodes"
    assert travelled(scene) > 0.01
    assert next((host.folder / "output" / "video").glob("1_demo_*.mp4")).stat().st_size > 1000

    (report,) = outcome.outputs[host.only(prompt, "Anchor4DScore")[0]]["text"]
    scores = {name: float(value) for name, value in (line.split() for line in report.splitlines())}
    assert scores["psnr"] > 15
    assert scores["iou"] > 0.7


def test_your_video_and_mesh_workflow(host: Any):
    clip_and_mesh(host)
    prompt = host.workflow("2_your_video_and_3D_model")
    host.only(prompt, "Anchor4DLoadVideo")[1]["video"] = "clip"
    host.only(prompt, "Anchor4DLoadMesh")[1]["mesh"] = "3d/creature.glb"
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    mesh = next((host.folder / "output" / "3d").glob("2_your_video_and_3D_model_*.glb")).read_bytes()
    described = json.loads(mesh[20 : 20 + int.from_bytes(mesh[12:16], "little")])
    assert len(described["meshes"][0]["primitives"][0]["targets"]) >= 3  # of 4 frames, the first or none is the base


def test_your_video_alone_workflow(host: Any):
    """An object inflated from the first frame, its front at 0 degrees, moves."""
    clip_and_mesh(host)
    prompt = host.workflow("3_your_video_alone")
    host.only(prompt, "Anchor4DLoadVideo")[1]["video"] = "clip"
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    assert any("mesh turned by 0°" in text for text in outcome.texts)
    scene = Scene4D.load(next((host.folder / "output" / "3d").glob("3_your_video_alone_*.safetensors")))
    assert travelled(scene) > 0


def test_take_it_elsewhere_workflow(host: Any):
    """A scene that was saved, edited, played beside what it was, filmed along a path and exported three ways."""
    folder = host.folder / "output" / "3d"
    folder.mkdir(parents=True, exist_ok=True)
    sample_scene(800, frames=4).save(folder / "saved.safetensors")
    prompt = host.workflow("7_edit_play_export")
    host.only(prompt, "Anchor4DLoadScene")[1]["path"] = str(folder / "saved.safetensors")
    host.only(prompt, "Anchor4DRenderScene")[1]["size"] = 64
    for node in prompt.values():
        if node["class_type"] == "Anchor4DExportScene":
            node["inputs"]["filename_prefix"] = "elsewhere/it"
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    made = {path.suffix: path for path in (host.folder / "output" / "elsewhere").iterdir()}
    assert set(made) == {".glb", ".zip", ".html"}
    with zipfile.ZipFile(made[".zip"]) as archive:
        assert json.loads(archive.read("manifest.json"))["loop"]
        assert len([name for name in archive.namelist() if name.endswith(".ply")]) == 4
    clips = outcome.outputs[host.only(prompt, "Anchor4DPlayScene")[0]]["a4d_clips"]
    counts = [read_stream(host.file(clip)).header["count"] for clip in clips]
    assert counts == [800, 400]  # before and after
    shown = outcome.outputs[host.only(prompt, "Preview3D")[0]]["result"][0]
    assert (host.folder / "output" / shown).read_bytes() == made[".glb"].read_bytes()


def test_stable_zero123_of_the_host_refines(host: Any):
    """The workflow with a random Stable Zero123 that the host's own code loads: it is asked, and the fit ends."""
    clip_and_mesh(host)
    prompt = host.workflow("stable_zero123_refines")
    host.only(prompt, "Anchor4DLoadVideo")[1]["video"] = "clip"
    host.only(prompt, "Anchor4DLoadMesh")[1]["mesh"] = "3d/creature.glb"
    host.only(prompt, "Anchor4DSaveScene")[1]["filename_prefix"] = "3d/refined"
    host.random(prompt)
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    assert any(text.startswith("Stable_Zero123: pictures of 64 px, conditioned on cameras, image") for text in outcome.texts)
    assert any("reference" in text for text in outcome.texts if "step" in text)
    refined = Scene4D.load(next((host.folder / "output" / "3d").glob("refined_*.safetensors")))
    assert travelled(refined) > 0


def test_a_prior_from_a_folder_refines(host: Any, comfyui: Any, monkeypatch: pytest.MonkeyPatch):
    """Load Prior reads a published layout by its path, and a fit moves it to its device and back."""
    have = subprocess.run([comfyui.python, "-c", "import diffusers, transformers"], capture_output=True, check=False)
    if have.returncode:
        pytest.skip("ComfyUI's Python has no diffusers and transformers")
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    tiny_models = pytest.importorskip("tiny_models", reason="diffusers or transformers is not installed")
    folder = tiny_models.write_zero123(host.folder / "zero123-random")
    clip_and_mesh(host)
    prompt = host.workflow("2_your_video_and_3D_model")
    host.only(prompt, "Anchor4DLoadVideo")[1]["video"] = "clip"
    host.only(prompt, "Anchor4DLoadMesh")[1]["mesh"] = "3d/creature.glb"
    _, motion = host.only(prompt, "Anchor4DMotionAlignment")
    add(prompt, "prior", "Anchor4DLoadPrior", prior="tiny", path=str(folder))
    add(
        prompt, "refinement", "Anchor4DReferenceRefinement",
        prior=["prior", 0], objectives=motion["objectives"], weight=0.001, views=2,
    )  # fmt: skip
    motion["objectives"] = ["refinement", 0]
    shown = ("Anchor4DExportScene", "Anchor4DPlayScene", "Anchor4DRenderScene", "SaveVideo")
    prompt = {k: v for k, v in prompt.items() if v["class_type"] not in shown}
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    told = "zero123-random: pictures of 16 px, conditioned on cameras, image, guidance 5, float32"
    assert told in outcome.texts
    assert any("reference" in text for text in outcome.texts if "step" in text)

    prompt["prior"]["inputs"]["path"] = "/no/such/prior"
    outcome = host.run(prompt)
    assert outcome.ended == "execution_error"
    assert outcome.detail["exception_message"].strip().startswith("Load Prior: /no/such/prior: no such file or folder")


def test_motion_is_tried_on_joints(host: Any):
    """With the switch on, rigid parts on joints are followed beside the free motion, and the console says which is kept."""
    clip_and_mesh(host)
    prompt = host.workflow("2_your_video_and_3D_model")
    host.only(prompt, "Anchor4DLoadVideo")[1]["video"] = "clip"
    host.only(prompt, "Anchor4DLoadMesh")[1]["mesh"] = "3d/creature.glb"
    shown = ("Anchor4DExportScene", "Anchor4DPlayScene", "Anchor4DRenderScene", "SaveVideo")
    prompt = {k: v for k, v in prompt.items() if v["class_type"] not in shown}
    host.only(prompt, "Anchor4DMotionAlignment")[1]["joints"] = True
    before = host.log.count("structure: rigid parts on joints leave")
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    assert host.log.count("structure: rigid parts on joints leave") == before + 1
    assert any("3D to 4D, joints" in text for text in outcome.texts)


def test_a_film_and_a_mesh_by_the_hosts_own_models(host: Any):
    """Text to 4D with a small random Wan 2.2 and Hunyuan3D; the film is noise, so its outline comes from the sample."""
    prompt = host.workflow("text_to_4d_wan_hunyuan3d")
    host.random(prompt)
    add(prompt, "sample", "Anchor4DSample", frames=5, size=64, truth_azimuth="15")
    host.only(prompt, "Anchor4DPrepareVideo")[1].update(mask=["sample", 1], frames=4)
    host.only(prompt, "Anchor4DSaveScene")[1]["filename_prefix"] = "3d/text"
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    scene = Scene4D.load(next((host.folder / "output" / "3d").glob("text_*.safetensors")))
    assert (scene.frames, len(scene.gaussians)) == (4, 800)


@pytest.mark.parametrize("model", ["hunyuan3d", "triposplat"])
def test_an_object_of_the_first_frame_by_the_hosts_own_model(host: Any, model: str):
    """MESH of a small random Hunyuan3D, SPLAT of a small random TripoSplat: shapeless, but aligned and fitted."""
    clip_and_mesh(host)
    prompt = host.workflow(f"video_to_4d_{model}")
    host.only(prompt, "Anchor4DLoadVideo")[1]["video"] = "clip"
    host.only(prompt, "Anchor4DSaveScene")[1]["filename_prefix"] = f"3d/{model}"
    host.random(prompt)
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    scene = Scene4D.load(next((host.folder / "output" / "3d").glob(f"{model}_*.safetensors")))
    assert scene.frames == 4
    assert scene.gaussians.means.isfinite().all()


@pytest.mark.parametrize("left_out", ["", "no_oda", "no_mgja", "no_ao"])
def test_align4d_and_its_ablations(host: Any, left_out: str):
    """Each ablation is the whole graph with nodes bypassed, and what they do is then not done."""
    name = f"align4d_{left_out}" if left_out else "4_Align4D"
    prompt = host.workflow(name)
    _, motion = host.only(prompt, "Anchor4DMotionAlignment")
    motion["refine_steps"] = -1  # Align4D has no such pass
    assert ("turns" in motion) == (left_out != "no_ao")
    asked = prompt[motion["objectives"][0]]
    assert asked["class_type"] == ("Anchor4DAlign4DObjectives" if left_out == "no_mgja" else "Anchor4DMotionGeometry")
    assert ("distance" in asked["inputs"]) == (left_out != "no_oda")
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    assert any(text.startswith("estimate: ") and "\n3D to 4D: step 6 of 6\n" in text for text in outcome.texts)
    assert any("multi-view" in text for text in outcome.texts)
    scene = Scene4D.load(next((host.folder / "output" / "3d").glob(f"{name}_0*.safetensors")))
    assert scene.field is not None
    assert scene.field.name == "hexplane"
    assert scene.front is not None
    assert (scene.front.distance == 1.5) == (left_out == "no_oda")


def test_align4d_tells_what_it_does(host: Any):
    prompt = host.workflow("4_Align4D")
    host.only(prompt, "Anchor4DFixedCamera")[1]["distance"] = 1.4  # nothing that another test left in the host's cache
    host.only(prompt, "Anchor4DMotionGeometry")[1]["ask"] = "geometry"
    fits = ("Anchor4DFitGaussians", "Anchor4DMotionAlignment", "Anchor4DPlayScene", "Anchor4DRenderScene", "SaveVideo")
    left_out = (*fits, "Anchor4DSaveScene", "Anchor4DScore")
    prompt = {key: node for key, node in prompt.items() if node["class_type"] not in left_out}
    add(prompt, "curve", "PreviewImage", images=[host.only(prompt, "Anchor4DModelDistance")[0], 1])
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    assert outcome.previews >= 3
    distances = [float(text.split()[2]) for text in outcome.texts if text.startswith("object distance ")]
    assert len(distances) == 2
    assert distances[0] != pytest.approx(distances[1], abs=0.01)  # where the camera stood, and where it should
    assert any(text.startswith(f"video {distances[1]:.3f}, prior ") for text in outcome.texts)
    assert len(outcome.outputs["curve"]["images"]) == 1


def test_an_object_alone_moves_as_a_film_of_its_picture(host: Any):
    """3D to 4D with a film by another node, here one that stands still: the camera of the picture is found again."""
    clip_and_mesh(host)
    prompt = host.workflow("align4d_3d")
    host.only(prompt, "Anchor4DLoadMesh")[1]["mesh"] = "3d/creature.glb"
    host.only(prompt, "Anchor4DLoadPrior")[1]["path"] = ""
    host.only(prompt, "Anchor4DSaveScene")[1]["filename_prefix"] = "3d/object"
    drawn, _ = host.only(prompt, "Anchor4DRenderObject")
    add(prompt, "film", "RepeatImageBatch", image=[drawn, 0], amount=4)
    host.only(prompt, "Anchor4DPrepareVideo")[1].update(source=["film", 0], frames=0)
    theirs = ("ImageOnlyCheckpointLoader", "SVD_img2vid_Conditioning", "VideoLinearCFGGuidance", "KSampler", "VAEDecode")
    prompt = {key: node for key, node in prompt.items() if node["class_type"] not in theirs}
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    front = Scene4D.load(next((host.folder / "output" / "3d").glob("object_*.safetensors"))).front
    assert front is not None
    assert front.extent == pytest.approx(1.5 * math.tan(math.radians(49.1 / 2)), rel=0.02)


@pytest.mark.parametrize(("start", "model"), [("text", "sd_xl_base"), ("image", "svd"), ("video", "lgm"), ("3d", "svd")])
def test_anything_to_4d_names_the_model_that_is_missing(host: Any, start: str, model: str):
    clip_and_mesh(host)
    prompt = host.workflow(f"align4d_{start}")
    for node in prompt.values():
        if node["class_type"] == "Anchor4DLoadVideo":
            node["inputs"]["video"] = "clip"
        elif node["class_type"] == "Anchor4DLoadMesh":
            node["inputs"]["mesh"] = "3d/creature.glb"
        elif node["class_type"] == "LoadImage":
            node["inputs"]["image"] = "clip/" + sorted(path.name for path in (host.folder / "input" / "clip").iterdir())[0]
    if start == "video":  # our own nodes look for their models when they run
        host.only(prompt, "Anchor4DLoadPrior")[1]["path"] = ""
        outcome = host.run(prompt)
        assert outcome.ended == "execution_error"
        assert outcome.detail["exception_message"].startswith("Image to Gaussians (LGM): ")
        assert model in outcome.detail["exception_message"]
        assert "models get" in outcome.detail["exception_message"]
        return
    with pytest.raises(pytest.fail.Exception, match=rf"{model}\S*\.safetensors"):
        host.run(prompt)


def test_a_host_video_is_a_driving_video(host: Any):
    prompt: dict[str, Any] = {}
    add(prompt, "sample", "Anchor4DSample", frames=6, size=80, truth_azimuth="15")
    add(prompt, "video", "CreateVideo", images=["sample", 0], fps=10.0)
    add(
        prompt, "prepared", "Anchor4DPrepareVideo",
        source=["video", 0], mask=["sample", 1], frames=3, fps=0.0, resolution=64, background="auto",
    )  # fmt: skip
    add(prompt, "pictures", "PreviewImage", images=["prepared", 1])
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    assert "3 frames at 5 fps, 62 px, object found by the mask" in outcome.texts
    pictures = [picture(host.file(shown)) for shown in outcome.outputs["pictures"]["images"]]
    assert len(pictures) == 3
    assert pictures[0][0, 0].min() > 0.99  # cut out: white around the object


def test_nothing_on_the_objectives_socket_means_none_and_says_so(host: Any):
    prompt = host.workflow("1_demo")
    del host.only(prompt, "Anchor4DFitGaussians")[1]["objectives"]
    del host.only(prompt, "Anchor4DMotionAlignment")[1]["objectives"]
    host.only(prompt, "Anchor4DSaveScene")[1]["filename_prefix"] = "3d/still"
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    told = [text for text in outcome.texts if text.startswith("No objectives connected")]
    assert any("unfitted" in text for text in told)
    assert any("stays still" in text for text in told)
    scene = Scene4D.load(next((host.folder / "output" / "3d").glob("still_*.safetensors")))
    assert travelled(scene) == 0


def test_an_interrupted_fit_goes_on_to_the_same_result(host: Any):
    prompt = host.workflow("1_demo")
    key, motion = host.only(prompt, "Anchor4DMotionAlignment")
    motion |= {"seed": 7, "tracking_steps": 40}
    _, save = host.only(prompt, "Anchor4DSaveScene")
    prompt = {k: v for k, v in prompt.items() if v["class_type"] not in ("Anchor4DRenderScene", "SaveVideo", "Anchor4DScore")}
    checkpoints = host.folder / "user" / "anchor4d" / "checkpoints"

    save["filename_prefix"] = "3d/whole"
    assert host.run(prompt).ended == "execution_success"
    assert not list(checkpoints.glob("*"))

    motion["device"] = "cpu"  # what auto means here, but not to the host's cache
    save["filename_prefix"] = "3d/resumed"
    first = host.run(prompt, interrupt=lambda seen: any("follow frame by frame" in text for text in seen.texts))
    assert first.ended == "execution_interrupted"
    assert first.detail["node_id"] == key
    assert list(checkpoints.glob("motion-*.safetensors"))
    second = host.run(prompt)
    assert second.ended == "execution_success", second.detail
    assert "resumed at step" in host.log
    assert not list(checkpoints.glob("*"))

    output = host.folder / "output" / "3d"
    whole, resumed = (Scene4D.load(next(output.glob(f"{name}_*.safetensors"))) for name in ("whole", "resumed"))
    for a, b in zip(whole.bake(), resumed.bake(), strict=True):
        for name, value in a.tensors().items():
            assert value.equal(b.tensors()[name]), name


@pytest.mark.parametrize(
    ("kind", "inputs", "wanted"),
    [
        ("Anchor4DLoadMesh", {"mesh": "none", "path": "/no/such/mesh.glb"}, "Load Mesh: /no/such/mesh.glb"),
        ("Anchor4DLoadScene", {"file": "none", "path": "/no/such/scene"}, "Load Scene: /no/such/scene"),
    ],
)
def test_errors_name_the_node_and_the_input(host: Any, kind: str, inputs: dict[str, Any], wanted: str):
    prompt: dict[str, Any] = {}
    add(prompt, "1", kind, **inputs)
    if kind == "Anchor4DLoadMesh":
        add(prompt, "2", "Anchor4DSample", frames=4, size=80, truth_azimuth="15")
        add(
            prompt, "3", "Anchor4DPrepareVideo",
            source=["2", 0], mask=["2", 1], frames=0, fps=0.0, resolution=64, background="auto",
        )  # fmt: skip
        add(prompt, "4", "Anchor4DFocalAlignment", driving_video=["3", 0], mesh=["1", 0], method="robust", front="auto")
        add(prompt, "5", "PreviewImage", images=["4", 1])
    else:
        add(prompt, "2", "Anchor4DSaveScene", scene=["1", 0], filename_prefix="3d/never")
    outcome = host.run(prompt)
    assert outcome.ended == "execution_error"
    message = outcome.detail["exception_message"].strip()
    assert message.startswith(wanted)
    assert "\n" not in message


def test_the_hosts_own_3d_nodes_take_and_give(host: Any):
    """SPLAT out: its renderer draws what ours does. MESH, FILE_3D and SPLAT in: all are read and aligned."""
    prompt = {
        k: v
        for k, v in host.workflow("1_demo").items()
        if v["class_type"] not in ("Anchor4DRenderScene", "SaveVideo", "Anchor4DScore")
    }
    motion, _ = host.only(prompt, "Anchor4DMotionAlignment")
    video, _ = host.only(prompt, "Anchor4DPrepareVideo")
    add(
        prompt, "camera", "CreateCameraInfo", mode="orbit", mode__yaw=50.0, mode__pitch=20.0, mode__distance=2.4,
        target_x=0.0, target_y=0.0, target_z=0.0, roll=0.0, fov=35.0, zoom=1.0, camera_type="perspective",
    )  # fmt: skip
    add(
        prompt, "ours", "Anchor4DRenderScene",
        scene=[motion, 0], shot="orbit", shot__time=0.5, shot__azimuth=0.0, shot__sweep=180.0,
        shot__frames=2, framing="object", size=96, background="white", elevation=0.0, camera_info=["camera", 0],
    )  # fmt: skip
    add(prompt, "our pictures", "PreviewImage", images=["ours", 0])
    add(prompt, "moment", "Anchor4DSceneAtTime", scene=[motion, 0], time=0.5)
    add(
        prompt, "theirs", "RenderSplat",
        splat=["moment", 0], camera_info=["camera", 0], width=96, height=96, frames=1, splat_scale=1.0,
        sharpen=1.0, headlight_shading=0.0, opacity_threshold=0.0, render_style="color", background="#ffffff",
    )  # fmt: skip
    add(prompt, "their pictures", "PreviewImage", images=["theirs", 0])
    add(prompt, "batch", "Anchor4DSceneToSplats", scene=[motion, 0], frames=3)
    add(prompt, "film", "RenderSplat", **prompt["theirs"]["inputs"] | {"splat": ["batch", 0], "camera_info": ["batch", 1]})
    add(prompt, "film pictures", "PreviewImage", images=["film", 0])

    add(
        prompt, "mesh", "SplatToMesh", splat=["moment", 0], resolution=96, kernel=5, smooth=0, level=0.2, min_component=0,
        min_opacity=0.02, color_sharpen=1.0,
    )  # fmt: skip
    add(prompt, "file", "MeshToFile3D", mesh=["mesh", 0])
    add(prompt, "converted", "Anchor4DConvertMesh", mesh=["file", 0])
    add(prompt, "splats", "Anchor4DConvertSplats", splat=["batch", 0], index=1)
    for key, source in (("from mesh", "mesh"), ("from file", "converted"), ("from splat", "moment"), ("from splats", "splats")):
        add(
            prompt, key, "Anchor4DFocalAlignment",
            driving_video=[video, 0], mesh=[source, 0], method="literal", front="degrees", front__yaw=0.0,
        )  # fmt: skip
        add(prompt, f"overlay {key}", "PreviewImage", images=[key, 1])

    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    ours, theirs = (picture(host.file(outcome.outputs[key]["images"][0])) for key in ("our pictures", "their pictures"))
    a, b = ours.min(-1) < 0.9, theirs.min(-1) < 0.9
    assert a.mean() > 0.05
    assert (a & b).sum() / (a | b).sum() > 0.85
    assert len(outcome.outputs["film pictures"]["images"]) == 3
    overlays = [picture(host.file(outcome.outputs[f"overlay from {key}"]["images"][0])) for key in ("mesh", "file")]
    assert np.abs(overlays[0] - overlays[1]).mean() < 0.01
    overlays = [picture(host.file(outcome.outputs[f"overlay from {key}"]["images"][0])) for key in ("splat", "splats")]
    assert np.abs(overlays[0] - overlays[1]).mean() < 0.05
    assert all((overlay.min(-1) < 0.9).mean() > 0.05 for overlay in overlays)


def test_workflows_are_as_the_command_builds_them(host: Any):
    """From the schemas of the running host, its own nodes' included."""
    command = [sys.executable, ROOT / "example_workflows" / "build.py", "--host", host.url, "--check"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
