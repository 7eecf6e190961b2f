"""The nodes as the host describes them to its page. Needs ComfyUI's source, whose own packages may be absent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

#: What saved graphs rely on: ids and order of nodes, inputs and outputs. Made anew by ANCHOR4D_UPDATE=1.
SCHEMAS = Path(__file__).parent / "schemas.json"


@pytest.fixture(scope="module")
def nodes(comfyui_source: Path) -> dict[str, dict[str, Any]]:
    command = [sys.executable, Path(__file__).parent / "describe_nodes.py", comfyui_source, ROOT]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=comfyui_source, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def inputs(node: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Every input of a node, those that a choice reveals included, as (type, options)."""
    found = {}
    for section in ("required", "optional"):
        for name, (kind, options) in node["input"].get(section, {}).items():
            found[name] = kind, options
            for choice in options.get("options", []) if kind == "COMFY_DYNAMICCOMBO_V3" else []:
                for nested in choice["inputs"].values():
                    found |= {f"{name}.{key}": (value[0], value[1]) for key, value in nested.items()}
    return found


def test_every_step_has_a_node(nodes):
    categories = [node["category"] for node in nodes.values()]
    for step in ("1 Prepare", "2 Align", "3 Fit", "3 Fit/Objectives", "5 View and export", "6 Measure"):
        assert f"Anchor4D/{step}" in categories
    assert all(re.fullmatch(r"Anchor4D[A-Z]\w+", name) for name in nodes)
    names = [node["display_name"] for node in nodes.values()]
    assert len(set(names)) == len(names)


def frozen(node: dict[str, Any]) -> dict[str, list[str]]:
    """What a saved graph holds of a node: inputs in order, each "id kind", optional ones with "?", and outputs."""
    found = []
    for section in ("required", "optional"):
        for name in node["input_order"].get(section, []):
            kind, options = node["input"][section][name]
            found.append(f"{name}{'?' if section == 'optional' else ''} {'COMBO' if isinstance(kind, list) else kind}")
            for choice in options.get("options", []) if kind == "COMFY_DYNAMICCOMBO_V3" else []:
                found += [f"{name}.{key} of {choice['key']}" for nested in choice["inputs"].values() for key in nested]
    return {"inputs": found, "outputs": [f"{n} {t}" for n, t in zip(node["output_name"], node["output"], strict=True)]}


def test_saved_graphs_keep_working(nodes):
    """Ids, their order and kinds are public: a rename goes through the host's node replacement."""
    found = {name: frozen(node) for name, node in sorted(nodes.items())}
    if os.environ.get("ANCHOR4D_UPDATE"):
        SCHEMAS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(SCHEMAS.read_text(encoding="utf-8")), "a schema has changed; set ANCHOR4D_UPDATE=1 if it may"


def test_every_input_explains_itself_and_has_a_default(nodes):
    widgets = {"INT", "FLOAT", "STRING", "BOOLEAN"}
    for name, node in nodes.items():
        assert len(node["description"]) > 30, name
        assert node["search_aliases"], name
        assert all(node["output_tooltips"]), f"{name}: an output has no tooltip"
        for key, (kind, options) in inputs(node).items():
            assert len(options.get("tooltip", "")) > 10, f"{name}.{key} has no tooltip"
            if kind in widgets:
                assert "default" in options, f"{name}.{key} has no default"


def test_advanced_inputs_may_be_left_out(nodes):
    for name, node in nodes.items():
        for key, (_, options) in node["input"].get("required", {}).items():
            assert not options.get("advanced"), f"{name}.{key} is folded away but required"


def test_every_node_has_a_help_page_that_names_all_it_shows(nodes):
    pages = {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}
    assert pages == set(nodes)
    for name, node in nodes.items():
        text = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {node['display_name']}\n")
        for key in inputs(node):
            assert f"**{key.split('.')[-1]}**" in text, f"{name}.md does not explain {key}"
        for key in node["output_name"]:
            assert f"**{key}**" in text, f"{name}.md does not explain the output {key}"


def test_workflows_use_nodes_that_exist_and_have_thumbnails(nodes):
    workflows = list((ROOT / "workflows").glob("*.json"))
    assert {"anchor4d_demo", "anchor4d_your_video_and_mesh"} <= {path.stem for path in workflows}
    for path in workflows:
        used = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"].startswith("Anchor4D")]
        for node in used:
            known = inputs(nodes[node["type"]])
            for slot in node["inputs"]:
                grows = known.get(slot["name"].split(".")[0], ("", {}))[0] == "COMFY_AUTOGROW_V3"
                there = slot["name"] in known or slot["name"] == "upload" or grows
                assert there, f"{path.name}: {node['type']} has no {slot['name']}"
        thumbnail = path.with_suffix(".jpg").read_bytes()
        assert thumbnail[:3] == b"\xff\xd8\xff"
        assert len(thumbnail) < 200_000


@pytest.mark.parametrize(
    ("left_out", "bypassed"),
    [
        ("no_oda", {"Anchor4DObjectDistance", "Anchor4DModelDistance"}),
        ("no_mgja", {"Anchor4DMotionGeometry"}),
        ("no_ao", {"Anchor4DAsynchronousOptimisation"}),
    ],
)
def test_an_ablation_is_the_whole_workflow_with_nodes_bypassed(left_out: str, bypassed: set[str]):
    texts = [(ROOT / "workflows" / f"anchor4d_align4d{end}.json").read_text(encoding="utf-8") for end in ("", f"_{left_out}")]
    whole, less = (json.loads(text) for text in texts)
    assert whole["links"] == less["links"]
    assert {node["type"] for node in less["nodes"] if node["mode"] == 4} == bypassed
    for a, b in zip(whole["nodes"], less["nodes"], strict=True):
        if a["type"] in ("MarkdownNote", "SaveVideo", "Anchor4DSaveScene"):
            continue
        assert a == b | {"mode": 0}


def test_workflows_say_each_value_once():
    """A page restores widgets by their order or by their names, as it is set: both must mean the same."""
    for path in (ROOT / "workflows").glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if "widgets_values_named" in node:
                assert list(node["widgets_values_named"].values()) == node["widgets_values"], f"{path.name}: {node['type']}"


def test_workflow_nodes_do_not_overlap():
    for path in (ROOT / "workflows").glob("*.json"):
        title = 30
        boxes = [(n["type"], *n["pos"], *n["size"]) for n in json.loads(path.read_text(encoding="utf-8"))["nodes"]]
        for i, (a, ax, ay, aw, ah) in enumerate(boxes):
            for b, bx, by, bw, bh in boxes[i + 1 :]:
                apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by - title or by + bh <= ay - title
                assert apart, f"{path.name}: {a} overlaps {b}"
