"""STAG4D's workflow in a real ComfyUI, with the prior that comes with the pack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anchor4d.core.runs.sample import write_sample
from anchor4d.core.scene.scene import Scene4D

FITS = ("Anchor4DFitGaussians", "Anchor4DMotionAlignment", "Anchor4DPlayScene", "Anchor4DSaveScene", "Anchor4DSTAG4DObjectives")


@pytest.fixture
def prompt(host: Any) -> dict[str, Any]:
    """The workflow with the sample's clip."""
    if not (host.folder / "input" / "stag4d").exists():
        (write_sample(host.folder / "stag4d_case", frames=4, size=80) / "front").rename(host.folder / "input" / "stag4d")
    prompt = host.workflow("5_STAG4D")
    host.only(prompt, "Anchor4DLoadVideo")[1]["video"] = "stag4d"
    host.only(prompt, "Anchor4DMotionAlignment")[1]["refine_steps"] = -1  # STAG4D asks the prior in the joint pass
    return prompt


def objectives(prompt: dict[str, Any], stage: str) -> dict[str, Any]:
    found = (node["inputs"] for node in prompt.values() if node["class_type"] == "Anchor4DSTAG4DObjectives")
    return next(inputs for inputs in found if inputs["stage"] == stage)


def anchors_alone(host: Any, prompt: dict[str, Any]) -> dict[str, Any]:
    """The graph as far as the anchors, whose pictures are shown."""
    shown = {"class_type": "PreviewImage", "inputs": {"images": [host.only(prompt, "Anchor4DTemporalAnchors")[0], 1]}}
    return {key: node for key, node in prompt.items() if node["class_type"] not in FITS} | {"shown": shown}


def test_a_clip_alone_becomes_a_scene_that_moves(host: Any, prompt: dict[str, Any]) -> None:
    host.only(prompt, "Anchor4DMotionAlignment")[1]["steps"] = 40  # its heads start at zero
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    assert any(text.startswith("anchors: step 6 of 6") for text in outcome.texts)
    for stage in ("frame to 3D: step 12 of 12", "3D to 4D: step 40 of 40"):
        losses = next((text for text in outcome.texts if stage in text), "")
        assert all(term in losses for term in ("reference view", "anchors", "multi-view")), losses
    key, _ = host.only(prompt, "Anchor4DTemporalAnchors")
    assert len(outcome.outputs[key]["images"]) == 24

    scene = Scene4D.load(max((host.folder / "output" / "3d").glob("5_STAG4D_0*.safetensors")))
    assert (scene.frames, len(scene.gaussians)) == (4, 600)
    assert scene.field is not None and scene.field.name == "hexplane"
    with torch.no_grad():
        moved = (scene.at(0.5).means - scene.at(0.0).means).norm(dim=-1)
    assert float(moved.max()) > 1e-3


def test_interrupted_anchors_are_drawn_again(host: Any, prompt: dict[str, Any]) -> None:
    prompt = anchors_alone(host, prompt)
    key, inputs = host.only(prompt, "Anchor4DTemporalAnchors")
    inputs["steps"] = 40
    first = host.run(prompt, interrupt=lambda seen: any(text.startswith("anchors: step") for text in seen.texts))
    assert first.ended == "execution_interrupted"
    assert first.detail["node_id"] == key
    assert first.previews
    assert key not in first.outputs

    inputs["steps"] = 4
    second = host.run(prompt)
    assert second.ended == "execution_success", second.detail
    pictures = [np.asarray(Image.open(host.file(shown)).convert("L")) for shown in second.outputs["shown"]["images"]]
    assert len(pictures) == 24  # six of each of four frames, an object on white
    assert all(0.01 < (picture < 240).mean() < 0.9 for picture in pictures)


@pytest.mark.parametrize(("kind", "stage"), [("Anchor4DFitGaussians", "frame to 3D"), ("Anchor4DMotionAlignment", "3D to 4D")])
def test_an_interrupted_stage_goes_on_where_it_stopped(host: Any, prompt: dict[str, Any], kind: str, stage: str) -> None:
    key, inputs = host.only(prompt, kind)
    inputs |= {"steps": 40, "seed": 3}
    first = host.run(prompt, interrupt=lambda seen: any(f"{stage}: step" in text for text in seen.texts))
    assert first.ended == "execution_interrupted"
    assert first.detail["node_id"] == key
    second = host.run(prompt)
    assert second.ended == "execution_success", second.detail
    assert f"{stage}: resumed at step" in host.log


def test_anchors_by_a_model_of_the_host(host: Any, prompt: dict[str, Any]) -> None:
    """It cannot share features, which is said with the input to change; without them it draws."""
    prompt = anchors_alone(host, prompt)
    host.only(prompt, "Anchor4DLoadVideo")[1]["frames"] = 2
    key, inputs = host.only(prompt, "Anchor4DTemporalAnchors")
    prompt["model"] = {"class_type": "RandomModel", "inputs": {"kind": "zero123"}}
    linked = {"model": ["model", 0], "clip_vision": ["model", 1], "vae": ["model", 2]}
    settings = {"size": 64, "frames": 0, "camera": "stable zero123", "low_memory": False}
    prompt["prior"] = {"class_type": "Anchor4DPriorFromModel", "inputs": linked | settings}
    inputs |= {"prior": ["prior", 0], "steps": 2}
    outcome = host.run(prompt)
    assert outcome.ended == "execution_error"
    assert outcome.detail["node_id"] == key
    message = outcome.detail["exception_message"].strip()
    assert message.startswith("Temporal Anchors: anchors: prior") and message.endswith("set gamma to 0")

    inputs["gamma"] = 0.0
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    assert len(outcome.outputs["shown"]["images"]) == 12


def test_a_start_from_an_object_needs_one(host: Any, prompt: dict[str, Any]) -> None:
    objectives(prompt, "canonical")["from_object"] = True
    outcome = host.run(prompt)
    assert outcome.ended == "execution_error"
    assert outcome.detail["exception_message"].startswith("Fit Gaussians to Mesh and Frame: objectives: there is no 3D model")
