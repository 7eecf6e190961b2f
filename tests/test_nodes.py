"""The nodes as the host describes them to its page. Needs ComfyUI's source, whose own packages may be absent."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

HELP = ROOT / "web" / "docs"

#: What saved graphs rely on: ids and order of nodes, inputs and outputs. Made anew by ANCHOR4D_UPDATE=1.
SCHEMAS = Path(__file__).parent / "schemas.json"


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


def test_help_pages_are_as_the_schemas_say(nodes, monkeypatch):
    """Made anew by example_workflows/build.py; what is written by hand stays."""
    monkeypatch.syspath_prepend(ROOT / "example_workflows")
    from help_pages import page

    assert {path.stem for path in HELP.glob("*.md")} == set(nodes)
    for name, node in nodes.items():
        text = (HELP / f"{name}.md").read_text(encoding="utf-8")
        assert text == page(text, node), f"{name}.md: run example_workflows/build.py"
        for key in [*inputs(node), *node["output_name"]]:
            assert f"**{key.split('.')[-1]}**" in text, f"{name}.md does not explain {key}"


def test_words_are_those_of_the_field(nodes):
    """What the page shows: one name for a thing, and plain verbs."""
    odd = re.compile(
        r"\b(told|mends?|has (its|their|the) say|wiper|tears|torn|ball of|still object|Front Match|Togetherness|stay in place|"
        r"needs equal ones|tell what|is said, with)\b",
        re.IGNORECASE,
    )
    written = [*HELP.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    texts = {path.name: path.read_text(encoding="utf-8") for path in written}
    texts |= {name: json.dumps(node) for name, node in nodes.items()}
    # Errors, tooltips and help lines: whatever is written in a call.
    for path in [ROOT / "cli.py", *(ROOT / "core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]:
        calls = (call for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(call, ast.Call))
        strings = (part.value for call in calls for part in ast.walk(call) if isinstance(part, ast.Constant))
        texts[path.relative_to(ROOT).as_posix()] = "\n".join(text for text in strings if isinstance(text, str))
    found = {
        name: match.group() for name, text in texts.items() if (match := odd.search(text.replace("Anchor4DTogetherness", "")))
    }
    assert not found


def test_every_up_is_an_axis(nodes):
    from anchor4d.core.mesh import UP_AXES

    asked = {name: node["input"]["optional"]["up"] for name, node in nodes.items() if "up" in node["input"].get("optional", {})}
    assert {"Anchor4DLoadMesh", "Anchor4DLoadScene", "Anchor4DLoadSplats"} <= set(asked)
    for name, (_, options) in asked.items():
        assert options["options"] == list(UP_AXES) and options["default"] == "y", name


def test_translations_name_every_node_of_the_templates(nodes):
    """Chinese and Japanese, by locales/<language>/nodeDefs.json."""
    graphs = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "example_workflows").glob("*.json")]
    wanted = {node["type"] for graph in graphs for node in graph["nodes"] if node["type"].startswith("Anchor4D")}
    for path in (ROOT / "locales").glob("*/nodeDefs.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert wanted <= set(found) <= set(nodes), path
        names = [entry["display_name"] for entry in found.values()]
        assert len(set(names)) == len(names)
        assert all(len(entry["description"]) > 10 for entry in found.values())
