"""Workflows in the frontend's format: written from short descriptions, and read back into the API's."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness import Graph

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("MarkdownNote", "Note")

# The frontend's measures, in its pixels, and ours.
NODE_TITLE, SLOT_HEIGHT, WIDGET_HEIGHT, TEXT_HEIGHT = 30, 20, 24, 110
WIDTH, NODE_GAP, COLUMN_GAP, GROUP_GAP, PADDING, GROUP_TITLE = 330, 24, 50, 50, 20, 50
WINDOW, LEAST_SCALE = (1760, 930), 0.62  # what a full-HD browser shows of a graph; below 0.6 it draws no text


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


@dataclass
class Group:
    """A titled frame around nodes that are stacked in one or several columns. box: [left, top, width, height]."""

    title: str
    x: float
    y: float
    members: list[dict] = field(default_factory=list)

    @property
    def box(self) -> list[float]:
        left, top = self.x, self.y
        right = max(node["pos"][0] + node["size"][0] for node in self.members)
        bottom = max(node["pos"][1] + node["size"][1] for node in self.members)
        return [left, top, right - left + PADDING, bottom - top + PADDING]


class Workflow:
    """Nodes land below one another; `group`, `beside` and `right` say where the next ones go."""

    def __init__(self, classes: dict[str, type]) -> None:
        self.classes, self.nodes, self.links = classes, [], []
        self.groups: list[Group] = []
        self.x = self.y = self.top = 0.0
        self.columns = 0.0  # where the present column of groups begins

    @contextmanager
    def group(self, title: str) -> Iterator[None]:
        """What is added inside goes into one frame; the next frame goes below it."""
        group = Group(title, self.columns, self.y)
        self.groups.append(group)
        self.x, self.top = group.x + PADDING, group.y + GROUP_TITLE
        self.y = self.top
        yield
        left, top, _, height = group.box
        self.x, self.y = left, top + height + GROUP_GAP

    def row(self) -> None:
        """Columns begin below what the present group holds so far."""
        self.top = self.y

    def beside(self) -> None:
        """The next nodes go right of the present row's, from its top."""
        nodes = [node for node in self.groups[-1].members if node["pos"][1] >= self.top]
        self.x, self.y = max(node["pos"][0] + node["size"][0] for node in nodes) + COLUMN_GAP, self.top

    def right(self) -> None:
        """The next groups go right of all others, from the top."""
        boxes = [group.box for group in self.groups]
        self.columns, self.y = max(left + width for left, _, width, _ in boxes) + GROUP_GAP, 0.0

    def note(self, title: str, text: str, height: int, wide: int = WIDTH) -> None:
        self._append("MarkdownNote", (wide, height), [], [], [text], title)

    def add(self, kind: str, wide: int = WIDTH, room: int = 0, title: str | None = None, **given: Any) -> int:
        """given: widget values, or (node, output) for a link. room: pixels that its preview will need."""
        node_class, inputs, values, links = self.classes[kind], [], [], []
        heights = 0
        for name, type_, options in sockets(node_class):
            value = given.pop(name, None)
            linked = isinstance(value, tuple)
            widget = is_widget(type_, options)
            if widget:
                combo = options.get("options") or node_class.INPUT_TYPES()["required"].get(name, [None])[0]
                default = options.get("default", combo[0] if isinstance(combo, list) and combo else "")
                slots = [default if linked or value is None else value, *extra_slots(name, type_, options)]
                values += slots
                heights += TEXT_HEIGHT if options.get("multiline") else WIDGET_HEIGHT * len(slots)
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
        rows = max(sum("widget" not in entry for entry in inputs), len(outputs))
        height = 16 + SLOT_HEIGHT * rows + heights + room
        node = self._append(kind, (wide, height), inputs, outputs, values, title)
        for slot, (source, output), type_ in links:
            number = len(self.links) + 1
            self.links.append([number, source, output, node, slot, type_])
            self.nodes[node - 1]["inputs"][slot]["link"] = number
            self.nodes[source - 1]["outputs"][output]["links"].append(number)
        return node

    def _append(self, kind, size, inputs, outputs, values, title) -> int:
        number = len(self.nodes) + 1
        node = {
            "id": number,
            "type": kind,
            "pos": [self.x, self.y + NODE_TITLE],
            "size": list(size),
            "flags": {},
            "order": number - 1,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": properties(kind),
            "widgets_values": values,
        }
        self.nodes.append(node | ({"title": title} if title else {}))
        self.groups[-1].members.append(self.nodes[-1])
        self.y += NODE_TITLE + size[1] + NODE_GAP
        return number

    def build(self, name: str) -> dict:
        boxes = [group.box for group in self.groups]
        wide = max(left + width for left, _, width, _ in boxes)
        high = max(top + height for _, top, _, height in boxes)
        scale = min(max(WINDOW[0] / wide, LEAST_SCALE), max(WINDOW[1] / high, LEAST_SCALE), 1.0)
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"dreamvideo/{name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [
                {
                    "id": number,
                    "title": group.title,
                    "bounding": group.box,
                    "color": "#3f789e",
                    "font_size": 24,
                    "flags": {},
                }
                for number, group in enumerate(self.groups, 1)
            ],  # fmt: skip
            "config": {},
            "extra": {"ds": {"scale": round(scale, 3), "offset": [round(30 / scale), round(50 / scale)]}},
            "version": 0.4,
        }


def properties(kind: str) -> dict[str, str]:
    """What tells a ComfyUI without this pack which pack to install."""
    if kind in NOTES:
        return {}
    pack = "dreamvideo" if kind.startswith("DreamVideo") else "comfy-core"
    return {"Node name for S&R": kind, "cnr_id": pack}


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
