"""The workflows: built by one command, whole, laid out, and all of them about nodes that exist."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TEMPLATES, ELSEWHERE = ROOT / "example_workflows", ROOT / "docs" / "workflows"
FILES = sorted(TEMPLATES.glob("*.json")) + sorted(ELSEWHERE.glob("*.json"))
#: Above each node, in the page's units: its title.
TITLE = 30


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The command as a module."""
    spec = importlib.util.spec_from_file_location("build_workflows", TEMPLATES / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def test_the_command_knows_every_workflow(build: ModuleType):
    """Nothing is drawn by hand, and the page lists the templates, by name, in the command's order."""
    names = [graph.name for graph in build.templates()]
    assert names == [path.stem for path in FILES if path.parent == TEMPLATES]
    assert [name.split("_")[0] for name in names] == [str(i + 1) for i in range(len(names))]
    assert sorted(graph.name for graph in build.elsewhere()) == [path.stem for path in FILES if path.parent == ELSEWHERE]


def test_nodes_are_as_their_schemas_say(build: ModuleType, nodes: dict[str, dict[str, Any]]):
    """This pack's nodes in every graph, built from the schemas of today. Those of the host are compared in tests/host."""
    for graph in build.templates() + build.elsewhere():
        saved = {node["id"]: node for node in load(next(p for p in FILES if p.stem == graph.name))["nodes"]}
        assert len(saved) == len(graph.nodes)
        for node in (node for node in graph.nodes if node.kind in nodes):
            made, file = sys.modules["graph"].Built(node, nodes, graph.files), saved[node.id]
            where = f"{graph.name}: {node.kind}"
            assert file["widgets_values_named"] == made.values(), where
            for side in ("inputs", "outputs"):
                assert [(s["name"], s["type"]) for s in file[side]] == [(s["name"], s["type"]) for s in getattr(made, side)], (
                    where
                )


def test_templates_have_pictures():
    for path in TEMPLATES.glob("*.json"):
        thumbnail = path.with_suffix(".jpg").read_bytes()
        assert thumbnail[:3] == b"\xff\xd8\xff", path.name
        assert len(thumbnail) < 200_000, path.name


def test_a_graph_says_what_it_is(workflow: dict[str, Any]):
    assert workflow["nodes"][0]["type"] == "MarkdownNote"
    assert workflow["nodes"][0]["widgets_values"][0].startswith("# ")


def test_it_opens_readable(workflow: dict[str, Any]):
    assert workflow["extra"]["ds"]["scale"] >= 0.6


def test_each_value_is_said_once(workflow: dict[str, Any]):
    """A page restores widgets by their order or by their names, as it is set: both must mean the same."""
    for node in workflow["nodes"]:
        assert list(node["widgets_values_named"].values()) == node["widgets_values"], node["type"]
        widgets = [slot["name"] for slot in node["inputs"] if "widget" in slot]
        assert set(widgets) <= set(node["widgets_values_named"]), node["type"]


def test_links_agree_at_both_ends(workflow: dict[str, Any]):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    held = {slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None}
    assert held == {link[0] for link in workflow["links"]}
    for link, source, output, target, slot, kind in workflow["links"]:
        out, into = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert link in out["links"] and into["link"] == link
        assert out["type"] == kind
        assert "*" in into["type"] or set(kind.split(",")) & set(into["type"].split(",")), f"{kind} into {into['type']}"
    for node in nodes.values():
        assert all(any(link[0] == held for link in workflow["links"]) for slot in node["outputs"] for held in slot["links"])


def test_one_preset_node_sets_every_preset(workflow: dict[str, Any]):
    (presets,) = [[n["id"] for n in workflow["nodes"] if n.get("title") == "Preset"]]
    asked = [slot["link"] for n in workflow["nodes"] for slot in n["inputs"] if slot["name"] == "preset"]
    origins = {link[0]: link[1] for link in workflow["links"]}
    assert len(presets) == bool(asked)
    assert all(origins.get(link) in presets for link in asked)


def test_nodes_do_not_overlap(workflow: dict[str, Any]):
    boxes = [(n["type"], *n["pos"], *n["size"]) for n in workflow["nodes"]]
    for i, (a, ax, ay, aw, ah) in enumerate(boxes):
        for b, bx, by, bw, bh in boxes[i + 1 :]:
            apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by - TITLE or by + bh <= ay - TITLE
            assert apart, f"{a} overlaps {b}"


def test_groups_are_numbered_from_left_to_right_and_hold_their_nodes(workflow: dict[str, Any]):
    groups = workflow["groups"]
    assert [int(group["title"].split()[0]) for group in groups] == list(range(1, len(groups) + 1))
    boxes = [group["bounding"] for group in groups]
    assert all(a[0] + a[2] < b[0] for a, b in itertools.pairwise(boxes))
    for node in (n for n in workflow["nodes"] if n["type"] not in ("MarkdownNote", "PrimitiveNode")):
        (x, y), (w, h) = node["pos"], node["size"]
        inside = [a <= x and x + w <= a + c and b <= y - TITLE and y + h <= b + d for a, b, c, d in boxes]
        assert sum(inside) == 1, node["type"]


@pytest.mark.parametrize(
    ("whole", "less", "bypassed"),
    [
        ("4_Align4D", "align4d_no_oda", {"Anchor4DObjectDistance", "Anchor4DModelDistance"}),
        ("4_Align4D", "align4d_no_mgja", {"Anchor4DMotionGeometry"}),
        ("4_Align4D", "align4d_no_ao", {"Anchor4DAsynchronousOptimisation"}),
        ("pla4d_parts", "pla4d_no_gs_mesh", {"GS-Mesh: Mesh Match"}),
        ("pla4d_parts", "pla4d_no_motion", {"Motion alignment: Reference View Loss", "Anchor4DMotionPrior"}),
        ("pla4d_parts", "pla4d_no_refinement", {"Anchor4DReferenceRefinement"}),
        ("5_STAG4D", "stag4d_no_anchors", {"Anchor4DTemporalAnchors"}),
        ("6_Align_Your_Gaussians", "ayg_no_jsd", {"Anchor4DStayInPlace"}),
        ("6_Align_Your_Gaussians", "ayg_no_rigidity", {"Anchor4DTogetherness"}),
        ("6_Align_Your_Gaussians", "ayg_no_image_model", {"Load Prior: text to image"}),
    ],
)
def test_an_ablation_is_the_whole_workflow_with_nodes_bypassed(whole: str, less: str, bypassed: set[str]):
    whole_graph, less_graph = (load(next(path for path in FILES if path.stem == name)) for name in (whole, less))
    assert [link[:5] for link in whole_graph["links"]] == [link[:5] for link in less_graph["links"]]
    off = [node for node in less_graph["nodes"] if node["mode"] == 4]
    assert off and all(bypassed & {node["type"], node.get("title")} for node in off)
    assert all(any(name in (node["type"], node.get("title")) for node in off) for name in bypassed)
    for a, b in zip(whole_graph["nodes"], less_graph["nodes"], strict=True):
        if a["type"] in ("MarkdownNote", "SaveVideo", "Anchor4DSaveScene"):
            continue
        assert a["widgets_values_named"] == b["widgets_values_named"]


@pytest.mark.parametrize(
    ("whole", "less", "kind", "name", "value"),
    [
        ("5_STAG4D", "stag4d_spatial_only", "Anchor4DTemporalAnchors", "gamma", 0.0),
        ("6_Align_Your_Gaussians", "ayg_no_amplification", "Anchor4DTextTo4DScores", "amplification", 1.0),
        ("6_Align_Your_Gaussians", "ayg_no_view_guidance", "Anchor4DTextTo3DScores", "view_guidance", 0.0),
    ],
)
def test_an_ablation_is_the_whole_workflow_with_one_value(whole: str, less: str, kind: str, name: str, value: float):
    graphs = [load(next(path for path in FILES if path.stem == stem)) for stem in (whole, less)]
    assert [link[:5] for link in graphs[0]["links"]] == [link[:5] for link in graphs[1]["links"]]
    for a, b in zip(graphs[0]["nodes"], graphs[1]["nodes"], strict=True):
        if a["type"] in ("MarkdownNote", "SaveVideo", "Anchor4DSaveScene"):
            continue
        changed = {name: value} if a["type"] == kind else {}
        assert b["widgets_values_named"] == a["widgets_values_named"] | changed
        assert not changed or a["widgets_values_named"][name] != value


def test_without_focal_alignment_a_fixed_camera_stands_in_its_place():
    whole, less = (load(ELSEWHERE / f"{name}.json") for name in ("pla4d_parts", "pla4d_no_focal"))
    kinds = [[node["type"] for node in graph["nodes"]] for graph in (whole, less)]
    at = kinds[0].index("Anchor4DFocalAlignment")
    assert kinds[1] == [*kinds[0][:at], "Anchor4DFixedCamera", *kinds[0][at + 1 :]]


BOXES = sorted((ROOT / "subgraphs").glob("*.json"))


def test_blueprints_are_as_the_command_makes_them(build: ModuleType, nodes: dict[str, dict[str, Any]]):
    """Subgraphs of this pack's nodes alone, where ComfyUI looks for them: a box for every method."""
    made = {box.name: box for box in build.blueprints()}
    assert sorted(made) == [path.stem for path in BOXES]
    for path in BOXES:
        assert path.read_text(encoding="utf-8") == sys.modules["graph"].text_of(made[path.stem].build(nodes)), path.name


@pytest.mark.parametrize("path", BOXES, ids=lambda path: path.stem)
def test_a_blueprint_is_one_box_whose_ends_are_linked(path: Path):
    file = load(path)
    (box,), (inside,) = file["nodes"], file["definitions"]["subgraphs"]
    assert box["type"] == inside["id"] and inside["name"] == path.stem == box["title"] and len(inside["description"]) > 20
    assert [slot["name"] for slot in box["inputs"]] == [end["name"] for end in inside["inputs"]]
    assert [(slot["name"], slot["type"]) for slot in box["outputs"]] == [("scene", "A4D_SCENE")]
    nodes = {node["id"]: node for node in inside["nodes"]}
    links = {link["id"]: link for link in inside["links"]}
    for link in links.values():
        if link["origin_id"] == -10:
            assert link["id"] in inside["inputs"][link["origin_slot"]]["linkIds"]
        else:
            out = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in out["links"] and out["type"] == link["type"]
        if link["target_id"] == -20:
            assert link["id"] in inside["outputs"][link["target_slot"]]["linkIds"]
        else:
            into = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert into["link"] == link["id"]
            assert set(link["type"].split(",")) & set(into["type"].split(",")), (link["type"], into["type"])
    presets = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["name"] == "preset"]
    assert presets and all(links[at]["origin_id"] == -10 for at in presets)
