"""The lists of inputs and outputs in the nodes' help pages, ``web/docs/<node id>.md``, from their schemas.

Everything else on a page is written by hand: the title says the node's name, its first paragraph what it does, *Tips* the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: A row: indentation, name, remark in brackets, text.
Row = tuple[int, str, str, str]


def page(text: str, info: dict[str, Any]) -> str:
    """A page with its title and its two lists as the schema has them.

    Args:
        text: the page as it is; an empty one becomes title, description and lists.
        info: the node in the host's ``/object_info``.
    """
    text = text or f"# \n\n{info['description']}\n"
    _, _, rest = text.partition("\n")
    head, *sections = rest.split("\n## ")
    kept = [section for section in sections if section.split("\n")[0] not in ("Inputs", "Outputs")]
    lists = [
        f"{title}\n\n{rows}" for title, rows in (("Inputs", _list(_inputs(info))), ("Outputs", _list(_outputs(info)))) if rows
    ]
    parts = [f"# {info['display_name']}\n{head.rstrip()}", *lists, *(section.rstrip() for section in kept)]
    return "\n\n## ".join(part.rstrip() for part in parts) + "\n"


def _list(rows: Iterator[Row]) -> str:
    lines = []
    for indent, name, remark, text in rows:
        item = f"{'  ' * indent}- **{name}**{f' ({remark})' if remark else ''}:"
        several = [f"{'  ' * indent}  - {line}" for line in text.splitlines()]
        lines += [f"{item} {text}"] if len(several) == 1 else [item, *several]
    return "\n".join(lines)


def _inputs(info: dict[str, Any]) -> Iterator[Row]:
    for section in ("required", "optional"):
        for name in info["input_order"].get(section, []):
            kind, *more = info["input"][section][name]
            options = more[0] if more else {}
            yield 0, name, _remark(options, section == "optional" and not options.get("advanced")), options["tooltip"]
            if kind == "COMFY_DYNAMICCOMBO_V3":
                yield from _revealed(options["options"])


def _remark(options: dict[str, Any], optional: bool) -> str:
    return "advanced" if options.get("advanced") else "optional" if optional else ""


def _revealed(choices: list[dict[str, Any]]) -> Iterator[Row]:
    """What a choice reveals; the same input of several choices once."""
    found: dict[tuple[str, str], list[str]] = {}
    for choice in choices:
        for section in choice["inputs"].values():
            for name, spec in section.items():
                found.setdefault((name, spec[1]["tooltip"]), []).append(choice["key"])
    for (name, text), keys in found.items():
        yield 1, name, "with " + ", ".join(f"*{key}*" for key in keys), text


def _outputs(info: dict[str, Any]) -> Iterator[Row]:
    for name, text in zip(info["output_name"], info["output_tooltips"], strict=True):
        yield 0, name, "", text
