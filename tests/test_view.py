"""The player's view as its node gets it: what the player writes is taken, anything else refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anchor4d.core.files import InputError
from anchor4d.core.io.view import read_view

CAMERA: dict[str, Any] = {
    "position": {"x": 0.0, "y": 1.0, "z": 2.0},
    "target": {"x": 0.0, "y": 0.0, "z": 0.0},
    "quaternion": {"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0},
    "zoom": 1.0,
    "fov": 40.0,
    "cameraType": "perspective",
    "aspect": 1.5,
    "principal": [0.5, 0.4],
}
VIEW: dict[str, Any] = {
    "camera": CAMERA,
    "time": 0.25,
    "background": "#ff8000",
    "moments": True,
    "trajectory": {"version": 1, "keys": [{"time": 0, "camera": CAMERA, "scene_time": 0.5}]},
}


def test_what_the_player_writes_is_taken() -> None:
    assert read_view("") == read_view(" \n") == {}
    for view in (VIEW, {}, {"camera": None, "trajectory": None}, {"camera": CAMERA | {"quaternion": None}}):
        assert read_view(json.dumps(view)) == view


@pytest.mark.parametrize(
    "view",
    [
        "x", "[", "[1]", "3", "null", "[" * 100_000, '"' + "x" * (9 << 20) + '"',
        {"camera": [1]}, {"camera": "front"}, {"trajectory": [1]}, {"trajectory": {"keys": 7}}, {"trajectory": {"keys": [1]}},
        {"camera": {}, "trajectory": "x"},
        *({"camera": CAMERA | change} for change in (
            {"position": None}, {"position": [1, 2, 3]}, {"position": {"x": 1}}, {"position": {"x": "a", "y": 0, "z": 0}},
            {"position": {"x": 1e999, "y": 0, "z": 0}}, {"quaternion": {"x": 1}}, {"quaternion": [0, 0, 0, 1]},
            {"principal": [1]}, {"principal": [1, 2, 3]}, {"principal": "ab"}, {"principal": 5}, {"principal": [1e9, 0]},
            {"fov": "wide"}, {"fov": {"x": 1}}, {"zoom": [1]}, {"aspect": "16:9"}, {"aspect": -1}, {"aspect": 1e-9},
            {"cameraType": "orthographic"}, {"quaternion": None, "position": {"x": 0, "y": 0, "z": 0}},
        )),
    ],
)  # fmt: skip
def test_views_of_other_shapes_are_refused_in_one_line(view: Any) -> None:
    text = view if isinstance(view, str) else json.dumps(view)
    with pytest.raises(InputError, match=r"^view: [^\n]{5,160}, right-click the node and choose Reset the view$"):
        read_view(text)
