"""Models of the host as priors: what its own loaders make of small random checkpoints, against direct calls of the networks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def facts(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    command = [comfyui.python, HERE / "prior_facts.py", comfyui.path, HERE.parents[1], folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def agrees(answers: dict[str, Any]) -> None:
    """A prediction is the network's own, in one pass or apart, each time the same, and with the condition unlike without."""
    assert answers["conditional"] < 1e-4
    assert answers["unconditional"] < 1e-4
    assert answers["apart"] < 1e-4
    assert answers["differ"] > 0.01
    assert answers["repeated"]
    assert answers["alone"]
    assert not answers["inference"]


def test_stable_zero123_of_the_hosts_loader(facts):
    found = facts["zero123"]
    assert found["class"] == "HostZero123"
    assert found["conditions"] == ["cameras", "image"]
    assert found["guidance"] == 5
    assert found["schedule"] < 1e-6
    agrees(found["stable"])
    agrees(found["first"])


def test_a_text_to_image_model_with_a_lora(facts):
    found = facts["pictures"]
    assert found["class"] == "HostPrior"
    assert found["conditions"] == []
    agrees(found["plain"])
    assert found["lora changes"] > 0.01
    assert found["lora"] < 1e-4
    assert found["identities differ"]


def test_a_rectified_flow_video_model(facts):
    found = facts["clips"]
    assert found["class"] == "HostClips"
    assert found["kind"] == "flow"
    assert found["shape"] == [2, 16, 4, 4]
    assert found["decoded"] == [1, 5, 32, 32, 3]
    agrees(found["plain"])


@pytest.mark.parametrize("model", ["zero123", "pictures", "clips"])
def test_the_gradient_reaches_the_pictures_through_the_hosts_vae(facts, model):
    assert facts[model]["encode"] < 1e-5
    assert facts[model]["gradient"] < 0.01  # against a finite difference in float32
    assert facts[model]["moved"] < 1e-3  # after the host moved the weights, which makes inference tensors of them


def test_distillation_leaves_the_host_as_it_was(facts):
    found = facts["zero123"]
    assert found["micro batch"] < 1e-3
    assert found["weights with gradients"] == 0
    # The fit's copy of the VAE is gone; the host's own, which the comparison asked, stays the host's business.
    assert found["vaes loaded"] == [0, 2, 1]


def test_what_is_missing_or_wrong_is_named(facts):
    assert "clip_vision: Stable Zero123 needs it" in facts["zero123"]["refused"]
    assert "multiples of 8 pixels, use 64" in facts["zero123"]["size"]
    assert "positive: SD15 needs it" in facts["pictures"]["refused"]
    assert "frames 6: this VAE's clips have 5 frames" in facts["clips"]["frames"]
    assert "NaN" in facts["zero123"]["nan"]
    for what, told in (("image", "not conditioned on a picture"), ("text", "connect them there"), ("fps", "frame rates")):
        assert told in facts["pictures"][f"no {what}"]


def test_a_fit_on_a_card_asks_the_host_for_room_and_gives_it_back(facts):
    assert facts["room"] == [[4 << 30, "cuda:0"], "a fit on cuda:0", "given back", "a fit on cpu"]
