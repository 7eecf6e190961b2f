"""Whole methods as one box each: subgraph blueprints, which the page lists beside the nodes and opens with a double-click.

``build.py`` writes them into ``subgraphs/``, where ComfyUI looks for those of a pack. What goes in and out are sockets of the
box; a preset and a text are widgets on it.
"""

from __future__ import annotations

import uuid
from typing import Any

from graph import Built, Graph, Node, Output, _laid_out

#: Numbers that the page gives to the two ends of a subgraph.
INPUTS, OUTPUTS = -10, -20
#: Width of an end, and how far it stands from the nodes.
END, AWAY = 160, 120
_SPACE = "https://github.com/anchor4d/anchor4d/subgraphs"


class Blueprint(Graph):
    """A graph whose ends are named.

    Args:
        name: of the file and of the box.
        category: where the page lists it.
        description: what it does, one sentence.
    """

    def __init__(self, name: str, category: str, description: str) -> None:
        self.name, self.category, self.description, self.files = name, category, description, ()
        self.nodes: list[Node] = []
        self.sockets: dict[str, Node] = {}
        self.given: dict[str, Output] = {}

    def takes(self, name: str) -> Output:
        """An input of the box, of the kind of what it is linked to."""
        self.sockets[name] = Node("Socket", "", title=name)
        return Output(self.sockets[name], name)

    def preset(self, value: str) -> Output:
        """A widget on the box; its first value."""
        self.sockets["preset"] = Node("PrimitiveNode", "", title="preset", values={"value": value})
        return Output(self.sockets["preset"], "preset")

    def gives(self, name: str, output: Output) -> None:
        """An output of the box."""
        self.given[name] = output

    def build(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The file as the page reads it: one node, and the definition of what is in it."""
        built = [Built(node, schema, ()) for node in self.nodes]
        by_id = {b.node.id: b for b in built}
        names, links = list(self.sockets), []
        ends: dict[str, dict[str, Any]] = {}

        def link(origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> int:
            links.append(
                {
                    "id": len(links) + 1, "origin_id": origin, "origin_slot": origin_slot, "target_id": target,
                    "target_slot": target_slot, "type": kind,
                }
            )  # fmt: skip
            return len(links)

        for target in built:
            for slot, entry in enumerate(target.inputs):
                origin = target.node.values.get(entry["name"])
                if not isinstance(origin, Output):
                    continue
                if origin.node in self.sockets.values():
                    end = ends.setdefault(origin.node.title or "", {"type": entry["type"], "linkIds": [], "entry": entry})
                    at = names.index(origin.node.title or "")
                    entry["link"] = link(INPUTS, at, target.node.id, slot, end["type"])
                    end["linkIds"].append(entry["link"])
                    continue
                source = by_id[origin.node.id]
                at = source.output(origin.name, entry)
                entry["link"] = link(source.node.id, at, target.node.id, slot, source.outputs[at]["type"])
                source.outputs[at]["links"].append(entry["link"])
        outputs = []
        for slot, (name, origin) in enumerate(self.given.items()):
            source = by_id[origin.node.id]
            at = next(i for i, o in enumerate(source.outputs) if o["name"] == origin.name)
            kind = source.outputs[at]["type"]
            made = link(source.node.id, at, OUTPUTS, slot, kind)
            source.outputs[at]["links"].append(made)
            outputs.append({"id": self._id(f"output {name}"), "name": name, "type": kind, "linkIds": [made]})
        groups = _laid_out(built)
        left = min(b.pos[0] for b in built) - AWAY - END
        right = max(b.pos[0] + b.width for b in built) + AWAY
        inputs = [
            {"id": self._id(f"input {name}"), "name": name, "type": ends[name]["type"], "linkIds": ends[name]["linkIds"]}
            for name in names
        ]
        for place, entries in ((left, inputs), (right, outputs)):
            for row, entry in enumerate(entries):
                entry["pos"] = [place + END - 20 if place == left else place + 20, 20 + 20 * row]
        definition = {
            "id": self._id("definition"), "version": 1,
            "state": {"lastGroupId": len(groups), "lastNodeId": len(built), "lastLinkId": len(links), "lastRerouteId": 0},
            "revision": 0, "config": {}, "name": self.name,
            "inputNode": {"id": INPUTS, "bounding": [left, 0, END, 40 + 20 * len(inputs)]},
            "outputNode": {"id": OUTPUTS, "bounding": [right, 0, END, 40 + 20 * len(outputs)]},
            "inputs": inputs, "outputs": outputs, "widgets": [], "nodes": [b.json(order) for order, b in enumerate(built)],
            "groups": groups, "links": links, "extra": {}, "category": self.category, "description": self.description,
        }  # fmt: skip
        shown = []
        for name in names:
            entry = ends[name]["entry"]
            shown.append({"name": name, "type": ends[name]["type"], "link": None})
            shown[-1] |= {"widget": {"name": name}} if "widget" in entry else {"shape": 7} if "shape" in entry else {}
        box = {
            "id": 1, "type": definition["id"], "pos": [0, 0], "size": [380, 60 + 24 * len(names)], "flags": {}, "order": 0,
            "mode": 0, "inputs": shown, "outputs": [{"name": o["name"], "type": o["type"], "links": []} for o in outputs],
            "title": self.name, "properties": {}, "widgets_values": [],
        }  # fmt: skip
        return {
            "id": self._id("file"), "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [box], "links": [],
            "groups": [], "definitions": {"subgraphs": [definition]}, "config": {}, "extra": {}, "version": 0.4,
        }  # fmt: skip

    def _id(self, part: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{_SPACE}/{self.name}/{part}"))
