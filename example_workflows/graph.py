"""Workflows for ComfyUI's page from a few lines each: nodes, links, groups, laid out.

What a node's inputs are is read from a running host (its ``/object_info``), so that a graph cannot name what is not there.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

#: Colours of the groups, by what their titles start with.
COLORS = {
    "Prepare": "#3f789e", "Align": "#8a6d3b", "Priors": "#7d3b6b", "Fit": "#5a7d3b", "View and export": "#6b4f8a",
    "Measure": "#8a4f4f", "Load": "#3f789e", "Play": "#8a6d3b", "Film": "#5a7d3b", "Export": "#6b4f8a",
    "Draw": "#7d3b6b",
}  # fmt: skip
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COLOR", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
#: Heights, in the page's units: of a title, a slot, a widget, a text box.
TITLE, SLOT, WIDGET, TEXT = 30, 20, 24, 90
#: How much the tallest of the page's two node styles needs for the same widgets.
STYLE = 1.3
#: What a node shows below its widgets once it has run.
SHOWN = {
    "Anchor4DFocalAlignment": 330, "Anchor4DFixedCamera": 330, "Anchor4DObjectDistance": 330, "Anchor4DModelDistance": 300,
    "Anchor4DFitGaussians": 330, "Anchor4DMotionAlignment": 330, "Anchor4DMotionPreview": 330,
    "Anchor4DRenderScene": 330, "Anchor4DRenderObject": 330,
    "Anchor4DSample": 300, "Anchor4DPrepareVideo": 300, "Anchor4DLoadVideo": 320, "Anchor4DLoadMesh": 40,
    "Anchor4DTemporalAnchors": 300, "Anchor4DPlayScene": 560, "Anchor4DScore": 120, "Anchor4DTextToGaussians": 330,
    "Anchor4DTextMotion": 330, "Anchor4DExtendMotion": 330, "Anchor4DImageToGaussians": 300, "Anchor4DInflateObject": 320,
    "Anchor4DPLA4DObjectives3D": 80, "Anchor4DPLA4DObjectives4D": 130, "Anchor4DAlign4DObjectives": 130,
    "Anchor4DSTAG4DObjectives": 130, "Anchor4DLoadPrior": 60, "Anchor4DSaveScene": 50,
    "SaveVideo": 330, "LoadImage": 320, "KSampler": 60, "Preview3D": 420,
}  # fmt: skip
WIDTH = {"MarkdownNote": 400, "Anchor4DPlayScene": 600, "Preview3D": 460, "PrimitiveNode": 400}
GAP_X, GAP_Y, MARGIN, HEADER = 50, 60, 30, 60
#: A column of a group is at most so tall.
COLUMN = 1150


@dataclass(frozen=True)
class File:
    """A model's file: the folder below the host's *models* where it belongs, its Hub repository, its path there."""

    folder: str
    hub: str
    path: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.hub}/resolve/main/{self.path}"


@dataclass(frozen=True)
class Output:
    """One output of a node, to be linked."""

    node: Node
    name: str


@dataclass(eq=False)
class Node:
    """A node of a graph."""

    kind: str
    group: str
    title: str | None = None
    bypass: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    shown: int | None = None
    column: bool = False
    id: int = 0

    def __getitem__(self, name: str) -> Output:
        return Output(self, name)


class Graph:
    """Nodes in the order in which they are added, group by group.

    Args:
        name: of the file.
        note: the text beside the graph, Markdown; its first line is the title.
        files: files of other makers that the graph names.
        commands: names of models that ``models get`` fetches.
    """

    def __init__(self, name: str, note: str, *, files: Sequence[File] = (), commands: Sequence[str] = ()) -> None:
        self.name, self.files = name, tuple(files)
        self.nodes: list[Node] = []
        self.add("MarkdownNote", "", text=note.strip())
        if files or commands:
            self.add("MarkdownNote", "", title="Models", text=_models(files, commands))

    def add(
        self,
        kind: str,
        group: str,
        *,
        title: str | None = None,
        bypass: bool = False,
        text: str | None = None,
        shown: int | None = None,
        column: bool = False,
        **values: Any,
    ) -> Node:
        """A node; ``a__b`` among the values is the input ``a.b``, which a choice of ``a`` reveals.

        Args:
            column: starts a new column of its group.
            shown: height of what it shows, in place of what nodes of its kind do.
        """
        values = {key.replace("__", "."): value for key, value in values.items()}
        node = Node(kind, group, title, bypass, values, text, shown, column, len(self.nodes) + 1)
        self.nodes.append(node)
        return node

    def preset(self, value: str) -> Output:
        """The node that sets the preset everywhere."""
        return self.add("PrimitiveNode", "", title="Preset", value=value)["COMBO"]

    def without(self, name: str, note: str, *kinds: str) -> Graph:
        """The same graph under another name, with the nodes of some kinds or titles bypassed."""
        other = Graph(name, note, files=self.files)
        copies = {node: replace(node, bypass=node.bypass or node.kind in kinds or node.title in kinds) for node in self.nodes}
        for node in copies.values():
            node.values = {
                key: Output(copies[value.node], value.name) if isinstance(value, Output) else self._named(value, name)
                for key, value in node.values.items()
            }
        other.nodes = list(copies.values())
        other.nodes[0].text = note.strip()
        return other

    def _named(self, value: Any, name: str) -> Any:
        return value.replace(self.name, name) if isinstance(value, str) else value

    def build(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The graph as the page loads it.

        Raises:
            ValueError: for a node, input or output that the host does not know.
        """
        built = [Built(node, schema, self.files) for node in self.nodes]
        by_id = {b.node.id: b for b in built}
        links: list[list[Any]] = []
        for target in built:
            for slot, entry in enumerate(target.inputs):
                origin = target.node.values.get(entry["name"])
                if not isinstance(origin, Output):
                    continue
                source = by_id[origin.node.id]
                at = source.output(origin.name, entry)
                link = len(links) + 1
                links.append([link, source.node.id, at, target.node.id, slot, source.outputs[at]["type"]])
                source.outputs[at]["links"].append(link)
                entry["link"] = link
        groups = _laid_out(built)
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://github.com/anchor4d/anchor4d/{self.name}")),
            "revision": 0,
            "last_node_id": len(built),
            "last_link_id": len(links),
            "nodes": [b.json(order) for order, b in enumerate(built)],
            "links": links,
            "groups": groups,
            "config": {},
            "extra": {"ds": _view()},
            "version": 0.4,
        }


class Built:
    """A node with its slots, widgets and place."""

    def __init__(self, node: Node, schema: dict[str, Any], files: Sequence[File]) -> None:
        self.node = node
        #: What the page offers to fetch where it is not there.
        self.files = [file for file in files if file.name in node.values.values()]
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.widgets: dict[str, Any] = {}
        #: Buttons, which the page adds after all widgets.
        self.late: dict[str, Any] = {}
        self.pos, self.height = (0, 0), 0
        self.width = WIDTH.get(node.kind, 380)
        if node.kind == "MarkdownNote":
            lines = sum(max(1, math.ceil(len(line) / 52)) for line in (node.text or "").split("\n"))
            self.widgets, self.height = {"text": node.text}, 70 + 17 * lines
        elif node.kind == "PrimitiveNode":
            self.outputs = [{"name": "COMBO", "type": "COMBO", "widget": {"name": "preset"}, "links": []}]
            self.widgets = {"value": node.values["value"], "control_after_generate": "fixed", "control_filter_list": ""}
            self.height = 110
        else:
            if node.kind not in schema:
                raise ValueError(f"{node.kind}: the host knows no such node")
            self._fill(schema[node.kind])

    def _fill(self, info: dict[str, Any]) -> None:
        left = dict(self.node.values)
        texts = 0
        for section in ("required", "optional"):
            for name, spec in info["input"].get(section, {}).items():
                texts += self._input(name, spec, section == "optional", left)
        if left:
            raise ValueError(f"{self.node.kind}: has no input {', '.join(left)}")
        self.outputs = [
            {"name": name, "type": kind, "links": []} for name, kind in zip(info["output_name"], info["output"], strict=True)
        ]
        sockets = sum("widget" not in entry for entry in self.inputs)
        shown = SHOWN.get(self.node.kind, 0) if self.node.shown is None else self.node.shown
        slots = max(sockets, len(self.outputs)) * SLOT
        self.height = round(STYLE * (slots + len(self.widgets) * WIDGET + texts * TEXT) + 24 + shown)

    def _input(self, name: str, spec: Any, optional: bool, left: dict[str, Any]) -> int:
        """Adds an input and its widget; returns how many text boxes that are."""
        kind, options = spec[0], spec[1] if len(spec) > 1 else {}
        listed = isinstance(kind, list)
        choices = kind if listed else options.get("options")
        if kind == "COMFY_AUTOGROW_V3":
            grown = [key for key in left if key.split(".")[0] == name]
            inner = options["template"]["input"]
            inner = next(iter((inner.get("required") or inner.get("optional")).values()))
            for key in grown:
                self.inputs.append({"name": key, "type": inner[0], "link": None})
                left.pop(key)
            return 0
        kind = "COMBO" if listed else kind
        value = left.pop(name, None)
        if kind not in WIDGETS or options.get("forceInput"):
            self.inputs.append({"name": name, "type": kind, "link": None} | ({"shape": 7} if optional else {}))
            self.node.values.setdefault(name, None)
            if value is not None and not isinstance(value, Output):
                raise ValueError(f"{self.node.kind}: {name} takes a link, not {value!r}")
            return 0
        entry = {"name": name, "type": kind, "widget": {"name": name}, "link": None}
        self.inputs.append(entry)
        if kind == "COMFY_DYNAMICCOMBO_V3":
            key = options["options"][0]["key"] if value is None else value
            self.widgets[name] = key
            chosen = next(o for o in options["options"] if o["key"] == key)
            texts = 0
            for section in ("required", "optional"):
                for inner, inner_spec in chosen["inputs"].get(section, {}).items():
                    texts += self._input(f"{name}.{inner}", inner_spec, section == "optional", left)
            return texts
        default = options.get("default")
        if default is None:
            default = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(kind, choices[0] if choices else None)
        literal = default if value is None or isinstance(value, Output) else value
        if isinstance(value, Output) and value.node.kind == "PrimitiveNode":
            literal = value.node.values["value"]
        self.widgets[name] = literal
        if options.get("control_after_generate"):
            self.widgets["control_after_generate"] = "fixed"
        if options.get("image_upload") or options.get("video_upload") or options.get("upload"):
            self.late = {"upload": "image"}
        return int(bool(options.get("multiline")))

    def output(self, name: str, entry: dict[str, Any]) -> int:
        """The place of a named output."""
        for index, output in enumerate(self.outputs):
            if output["name"] == name:
                wanted = {*str(entry["type"]).split(",")}
                if "*" not in wanted and not wanted & {*str(output["type"]).split(",")}:
                    raise ValueError(f"{self.node.kind}.{name} is a {output['type']}, {entry['name']} takes {entry['type']}")
                return index
        raise ValueError(f"{self.node.kind}: has no output {name}, only {', '.join(o['name'] for o in self.outputs)}")

    def values(self) -> dict[str, Any]:
        """The widgets' values by name, in the page's order."""
        return self.widgets | self.late

    def json(self, order: int) -> dict[str, Any]:
        node: dict[str, Any] = {
            "id": self.node.id, "type": self.node.kind, "pos": list(self.pos), "size": [self.width, self.height], "flags": {},
            "order": order, "mode": 4 if self.node.bypass else 0, "inputs": self.inputs, "outputs": self.outputs,
        }  # fmt: skip
        if self.node.title:
            node["title"] = self.node.title
        note = self.node.kind in ("MarkdownNote", "PrimitiveNode")
        properties: dict[str, Any] = {} if note else {"Node name for S&R": self.node.kind}
        if self.files:
            properties["models"] = [{"name": f.name, "url": f.url, "directory": f.folder} for f in self.files]
        node["properties"] = properties
        return node | {"widgets_values": list(self.values().values()), "widgets_values_named": self.values()}


def _laid_out(built: list[Built]) -> list[dict[str, Any]]:
    """Places every node: notes to the left, then groups from left to right, each in columns. Returns the groups, numbered."""
    x, y = 0, 0
    aside = [b for b in built if not b.node.group]
    for b in sorted(aside, key=lambda b: b.node.title == "Models"):  # the preset stays in sight on a small screen
        b.pos = (x, y)
        y += b.height + GAP_Y
    x = max((b.width for b in aside), default=0) + GAP_X
    groups = []
    for title in dict.fromkeys(b.node.group for b in built if b.node.group):
        left, y, tallest, width = x + MARGIN, 0, 0, 0
        for b in (b for b in built if b.node.group == title):
            if y and (b.node.column or y + b.height > COLUMN):
                left, y, width = left + width + GAP_X, 0, 0
            b.pos = (left, y)
            y += b.height + GAP_Y
            width, tallest = max(width, b.width), max(tallest, y - GAP_Y)
        box = [x, -TITLE - HEADER, left + width + MARGIN - x, tallest + TITLE + HEADER + MARGIN]
        groups.append(
            {
                "id": len(groups) + 1,
                "title": f"{len(groups) + 1} {title}",
                "bounding": box,
                "color": next(color for start, color in COLORS.items() if title.startswith(start)),
                "font_size": 24,
                "flags": {},
            }
        )
        x += box[2] + GAP_X
    return groups


def _view() -> dict[str, Any]:
    """Where the page looks at first: the note and the first groups, large enough to read."""
    return {"scale": 0.7, "offset": [110, 170]}


def _models(files: Sequence[File], commands: Sequence[str]) -> str:
    text = "## Models\n"
    if files:
        text += "\nInto ComfyUI's *models* folder (the page offers to fetch what is missing, or get it by hand):\n\n"
        text += "\n".join(f"- [{f.folder}/{f.name}]({f.url})" for f in files) + "\n"
    if commands:
        text += "\nWith this pack's command line, run in its folder with ComfyUI's Python:\n\n"
        text += "\n".join(f"- `python -m anchor4d models get {name}`" for name in commands) + "\n"
    return text


def text_of(workflow: dict[str, Any]) -> str:
    """One node a line: small, and a change is seen in a diff."""
    parts = []
    for key, value in workflow.items():
        if key in ("nodes", "links", "groups"):
            rows = ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value)
            parts.append(f"{json.dumps(key)}: [\n  {rows}\n ]" if value else f"{json.dumps(key)}: []")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"
