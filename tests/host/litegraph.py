"""Workflows in the frontend's format: written from short descriptions, and read back into the API's."""

from __future__ import annotations

import uuid
from typing import Any

from harness import Graph

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("MarkdownNote", "Note")


def sockets(node_class: type) -> list[tuple[str, str, dict]]:
    """(name, type, options) of every input, in the order of the frontend."""
    types = node_class.INPUT_TYPES()
    found = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in types.get(group, {}).items():
            found.append((name, "COMBO" if isinstance(kind, list) else kind, rest[0] if rest else {}))
    return found


def is_widget(kind: str, options: dict) -> bool:
    return kind in WIDGETS and not options.get("forceInput")


def extra_slots(name: str, kind: str, options: dict) -> list[Any]:
    """What the frontend keeps behind a widget's value."""
    if kind == "INT" and options.get("control_after_generate", name in ("seed", "noise_seed")):
        return ["fixed"]
    return ["image"] if any(options.get(f"{what}_upload") for what in ("image", "video")) else []


class Workflow:
    def __init__(self, classes: dict[str, type]) -> None:
        self.classes, self.nodes, self.links = classes, [], []

    def note(self, at: tuple[int, int], text: str, size: tuple[int, int] = (340, 160)) -> None:
        self._append("MarkdownNote", at, size, [], [], [text], None)

    def add(self, kind: str, at: tuple[int, int], width: int = 320, title: str | None = None, **given: Any) -> int:
        """given: widget values, or (node, output) for a link."""
        node_class, inputs, values, links = self.classes[kind], [], [], []
        for name, type_, options in sockets(node_class):
            value = given.pop(name, None)
            linked = isinstance(value, tuple)
            widget = is_widget(type_, options)
            if widget:
                combo = options.get("options") or node_class.INPUT_TYPES()["required"].get(name, [None])[0]
                default = options.get("default", combo[0] if isinstance(combo, list) and combo else "")
                values += [default if linked or value is None else value, *extra_slots(name, type_, options)]
            if linked or not widget:
                entry = {"name": name, "type": type_, "link": None}
                if widget:
                    entry["widget"] = {"name": name}
                if linked:
                    links.append((len(inputs), value, type_))
                inputs.append(entry)
        if given:
            raise KeyError(f"{kind} has no {', '.join(given)}")
        names = getattr(node_class, "RETURN_NAMES", None) or node_class.RETURN_TYPES
        outputs = [
            {"name": name or type_, "type": type_, "links": []}
            for name, type_ in zip(names, node_class.RETURN_TYPES, strict=True)
        ]
        height = 40 + 26 * (max(len(inputs), len(outputs)) + len(values)) + (60 if "multiline" in str(given) else 0)
        node = self._append(kind, at, (width, height), inputs, outputs, values, title)
        for slot, (source, output), type_ in links:
            number = len(self.links) + 1
            self.links.append([number, source, output, node, slot, type_])
            self.nodes[node - 1]["inputs"][slot]["link"] = number
            self.nodes[source - 1]["outputs"][output]["links"].append(number)
        return node

    def _append(self, kind, at, size, inputs, outputs, values, title) -> int:
        number = len(self.nodes) + 1
        node = {
            "id": number,
            "type": kind,
            "pos": list(at),
            "size": list(size),
            "flags": {},
            "order": number - 1,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {"Node name for S&R": kind} if kind not in NOTES else {},
            "widgets_values": values,
        }
        self.nodes.append(node | ({"title": title} if title else {}))
        return number

    def build(self, name: str) -> dict:
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"dreamvideo/{name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }


def to_api(workflow: dict, classes: dict[str, type]) -> Graph:
    """What the frontend queues of a workflow. KeyError for a node or an input that does not exist."""
    links = {link[0]: link for link in workflow["links"]}
    graph = Graph()
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        values, inputs = list(node["widgets_values"]), {}
        known = sockets(classes[node["type"]])
        for name, kind, options in known:
            if is_widget(kind, options):
                inputs[name] = values.pop(0)
                del values[: len(extra_slots(name, kind, options))]
        if values:
            raise KeyError(f"{node['type']} has values for {len(values)} widgets too many")
        for entry in node["inputs"]:
            if entry["name"] not in {name for name, _, _ in known}:
                raise KeyError(f"{node['type']} has no input {entry['name']}")
            if entry["link"] is not None:
                _, source, output, *_ = links[entry["link"]]
                inputs[entry["name"]] = [str(source), output]
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph
