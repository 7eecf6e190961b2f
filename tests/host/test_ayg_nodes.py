"""The workflows of Align Your Gaussians in a real ComfyUI, with tiny random models in the place of theirs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
import tiny_videos

from anchor4d.core.deformation import ClipChain
from anchor4d.core.scene.scene import Scene4D


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "sd21-base": tiny_models.write_stable_diffusion(root / "sd"),
        "modelscope": tiny_videos.write_modelscope(root / "modelscope"),
    }


def small(host: Any, name: str, models: dict[str, Path], steps: int = 4) -> dict[str, Any]:
    """A workflow with the tiny models, without the one of several views, whose pictures have a fixed size."""
    prompt = host.workflow(name)
    absent = {key for key, node in prompt.items() if node["inputs"].get("path") == "mvdream"}
    for node in prompt.values():
        inputs = node["inputs"]
        for key in [key for key, value in inputs.items() if isinstance(value, list) and value[0] in absent]:
            del inputs[key]
        inputs |= (
            {"path": str(models[inputs["path"]])}
            if node["class_type"] == "Anchor4DLoadPrior" and inputs["path"] in models
            else {}
        )
        inputs |= {"steps": steps} if "steps" in inputs else {}
        inputs |= {"frames": 4} if node["class_type"] in ("Anchor4DTextTo4DScores", "Anchor4DTextToGaussians") else {}
    return {key: node for key, node in prompt.items() if key not in absent}


def saved(host: Any, prefix: str) -> Scene4D:
    return Scene4D.load(max((host.folder / "output" / "3d").glob(f"{prefix}_0*.safetensors")))


def test_text_to_a_loop_of_three_clips(host: Any, models: dict[str, Path]) -> None:
    outcome = host.run(small(host, "6_Align_Your_Gaussians", models))
    assert outcome.ended == "execution_success", outcome.detail
    assert any("clip 3, 3D to 4D: step 4 of 4\nclip scores" in text for text in outcome.texts)
    assert outcome.previews >= 4
    scene = saved(host, "6_Align_Your_Gaussians")
    assert isinstance(scene.field, ClipChain) and len(scene.field.clips) == 3
    assert (scene.frames, scene.loop) == (6, True)


def test_objects_of_their_own_in_one_scene(host: Any, models: dict[str, Path]) -> None:
    outcome = host.run(small(host, "ayg_two_objects", models))
    assert outcome.ended == "execution_success", outcome.detail
    scene = saved(host, "ayg_two_objects")
    half = len(scene.gaussians) // 2
    with torch.no_grad():
        moved = (scene.at(0.9).means - scene.at(0.0).means).norm(dim=-1)
    # The first stands and moves a little after four steps; the second is carried along.
    assert 0 < float(moved[:half].max()) < 0.2 < float(moved[half:].min())


def test_an_interrupted_motion_goes_on_where_it_stopped(host: Any, models: dict[str, Path]) -> None:
    prompt = small(host, "6_Align_Your_Gaussians", models, steps=30)
    outcome = host.run(prompt, interrupt=lambda outcome: any("\nclip scores" in t and "step 5 of" in t for t in outcome.texts))
    assert outcome.ended == "execution_interrupted"
    assert host.run(prompt).ended == "execution_success"
    assert "3D to 4D: resumed at step" in host.log


def test_what_is_missing_is_said(host: Any, models: dict[str, Path]) -> None:
    prompt = small(host, "6_Align_Your_Gaussians", models)
    key, inputs = host.only(prompt, "Anchor4DTextTo3DScores")
    del inputs["image_prior"]
    outcome = host.run(prompt)
    assert outcome.ended == "execution_error"
    assert outcome.detail["exception_message"].startswith(
        "Text to 3D Scores: text to 3D: needs a multi-view model such as mvdream"
    )
    assert key == outcome.detail["node_id"]
