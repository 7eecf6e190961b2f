"""What nodes refuse in a graph: one line that names what to change."""

from __future__ import annotations

from typing import Any

import pytest

from anchor4d.core.runs.sample import sample_scene

#: What is refused: nodes by their keys, and the words of the refusal.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "cameras": ({"a": ("Anchor4DKeyframeTrajectory", {"path": ""})}, "no camera is connected"),
    "times": (
        {
            "c": (
                "CreateCameraInfo",
                {
                    "mode": "orbit", "mode.yaw": 0.0, "mode.pitch": 0.0, "mode.distance": 2.5, "target_x": 0.0, "target_y": 0.0,
                    "target_z": 0.0, "roll": 0.0, "fov": 35.0, "zoom": 1.0, "camera_type": "perspective",
                },
            ),
            "a": ("Anchor4DKeyframeTrajectory", {"cameras.camera_0": ["c", 0], "times": "0 x"}),
        },
        "'0 x' is no list of numbers",
    ),
    "elevations": ({"a": ("Anchor4DMeshMatch", {"lowest": 40.0, "highest": -40.0})}, "is above the highest"),
    "one object": (
        {
            "s": ("Anchor4DSample", {"frames": 2, "size": 64}),
            "a": ("Anchor4DSplitObjects", {"source": ["s", 0], "masks.mask_0": ["s", 1]}),
        },
        "one object; connect a mask for each",
    ),
    "a curve": (
        {
            "l": ("Anchor4DLoadScene", {"file": "none", "path": "SCENE"}),
            "a": ("Anchor4DRetimeScene", {"scene": ["l", 0], "points": "0 0, 1"}),
        },
        "write pairs of numbers",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def known(host: Any) -> dict[str, Any]:
    sample_scene(200, 3).save(host.folder / "input" / "scene.safetensors")
    return host.get("/object_info")


def defaults(known: dict[str, Any], kind: str) -> dict[str, Any]:
    """Of the widgets of a node, as the page fills them in."""
    described = {**known[kind]["input"].get("required", {}), **known[kind]["input"].get("optional", {})}
    return {
        name: entry[1]["default"] if "default" in entry[1] else entry[1]["options"][0]
        for name, entry in described.items()
        if len(entry) > 1 and ("default" in entry[1] or (entry[0] == "COMBO" and entry[1].get("options")))
    }


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_line(host: Any, known: dict[str, Any], name: str) -> None:
    nodes, message = REFUSED[name]
    prompt = {"shown": {"class_type": "PreviewAny", "inputs": {"source": ["a", 0]}}}
    for key, (kind, inputs) in nodes.items():
        given = {k: str(host.folder / "input" / "scene.safetensors") if v == "SCENE" else v for k, v in inputs.items()}
        prompt[key] = {"class_type": kind, "inputs": defaults(known, kind) | given}
    outcome = host.run(prompt)
    assert outcome.ended == "execution_error", outcome
    said = outcome.detail["exception_message"].strip()
    assert message in said and "\n" not in said
