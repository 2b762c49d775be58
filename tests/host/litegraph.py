"""Workflows in the frontend's format, written from short descriptions. `subgraphs` has their parts and reads them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a choice that brings widgets of its own
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
NOTES = ("MarkdownNote", "Note")

# The frontend's measures, in its pixels, and ours. NODE_GAP, below every node: the new node design hangs two footers of
# 26 pixels under it, the name of its pack and "Issues".
NODE_TITLE, SLOT_HEIGHT, WIDGET_HEIGHT, TEXT_HEIGHT = 30, 20, 24, 110
WIDTH, NODE_GAP, COLUMN_GAP, GROUP_GAP, PADDING, GROUP_TITLE = 330, 56, 50, 50, 20, 50
WINDOW, LEAST_SCALE = (1760, 930), 0.62  # what a full-HD browser shows of a graph; below 0.6 it draws no text


def sockets(node_class: type) -> list[tuple[str, str, dict]]:
    """(name, type, options) of every input, in the order of the frontend."""
    types = node_class.INPUT_TYPES()
    found = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in types.get(group, {}).items():
            options = dict(rest[0]) if rest else {}
            found.append(
                (name, "COMBO", options | {"options": kind}) if isinstance(kind, list) else (name, kind, options)
            )
    return found


def is_widget(kind: str, options: dict) -> bool:
    return kind in WIDGETS and not options.get("forceInput")


def extra_slots(name: str, kind: str, options: dict) -> list[Any]:
    """What the frontend keeps behind a widget's value."""
    seed = kind == "INT" and options.get("control_after_generate", name in ("seed", "noise_seed"))
    return ["fixed"] if seed else []


def default(kind: str, options: dict) -> Any:
    """What the frontend puts into a widget that a workflow has no value for."""
    first = next(iter(options.get("options", ())), "")
    return options.get("default", first["key"] if kind == DYNAMIC and first else first)


def nested(name: str, options: dict, value: str) -> list[tuple[str, str, dict]]:
    """The widgets that this value of a dynamic combo brings, as `sockets` tells them."""
    inputs = next(option["inputs"] for option in options["options"] if option["key"] == value)
    both = inputs.get("required", {}) | inputs.get("optional", {})
    return [(f"{name}.{inner}", kind, about) for inner, (kind, about) in both.items()]


def rows_of(name: str, kind: str, options: dict, value: Any) -> int:
    """The widget rows that an input takes with this value."""
    if options.get("hidden"):
        return 0
    inner = nested(name, options, value) if kind == DYNAMIC else ()
    below = sum(rows_of(*about, default(*about[1:])) for about in inner)
    button = any(options.get(f"{what}_upload") for what in ("image", "video"))
    return 1 + button + len(extra_slots(name, kind, options)) + below


@dataclass(frozen=True)
class Promoted:
    """A widget's value that stands on the outside of a subgraph, too, under its own name or another.

    link: of an input that was made before, for a place further up than its turn.
    """

    value: Any
    name: str = ""
    link: tuple[int, int] | None = None


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
        return [left, top, right - left + PADDING, bottom - top + NODE_GAP]


class Workflow:
    """Nodes land below one another; `group`, `beside` and `right` say where the next ones go.

    first: the number of its first node and of its first link.
    """

    def __init__(self, classes: dict[str, type], first: int = 1) -> None:
        self.classes, self.nodes, self.links, self.first = classes, [], [], first
        self.subgraphs: list[dict] = []
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
        """given: widget values, or (node, output) for a link; in a part, `Promoted` ones. room: pixels of its preview.

        A stock node keeps the values up to the last given one and no more: what stands behind it differs from one
        ComfyUI to the next, and the frontend fills it in.
        """
        node_class, inputs, values, links = self.classes[kind], [], [], []
        heights, kept = 0, 0
        for name, type_, options in sockets(node_class):
            value, own = given.pop(name, None), None
            if isinstance(value, Promoted):
                height = height_of(name, type_, options, value.value)
                link = value.link or self.promote(value.name or name, type_, value.value, height)
                own, value = value.value, link
            linked = isinstance(value, tuple)
            widget = is_widget(type_, options)
            if widget:
                shown = default(type_, options) if linked or value is None else value
                shown = shown if own is None else own
                values += [shown, *extra_slots(name, type_, options)]
                kept = kept if value is None else len(values)
                heights += height_of(name, type_, options, shown)
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
        node = self._append(kind, (wide, height), inputs, outputs, values if is_ours(kind) else values[:kept], title)
        self._connect(node, links)
        return node

    def place(self, part: Any, wide: int = WIDTH, room: int = 0, title: str | None = None, **given: Any) -> int:
        """A subgraph as one node. given: links of its inputs, as for `add`."""
        inputs, links = [], []
        for slot, about in enumerate(part.inputs):
            widget = {"widget": {"name": about["name"]}} if about["promoted"] else {}
            inputs.append({"name": about["name"], "type": about["type"], "link": None} | widget)
            if about["name"] in given:
                links.append((slot, given.pop(about["name"]), about["type"]))
        if given:
            raise KeyError(f"{part.name} has no {', '.join(given)}")
        outputs = [{"name": about["name"], "type": about["type"], "links": []} for about in part.outputs]
        rows = max(sum(not about["promoted"] for about in part.inputs), len(outputs))
        height = 16 + SLOT_HEIGHT * rows + sum(about["height"] for about in part.inputs) + room
        values = [about["value"] for about in part.inputs if about["promoted"]]
        node = self._append(part.id, (wide, height), inputs, outputs, values, title or part.name)
        self._connect(node, links)
        self.subgraphs.append(part.definition())
        return node

    def promote(self, name: str, type_: str, value: Any, height: int) -> tuple[int, int]:
        raise ValueError("A widget is promoted from a part to its outside; this is no part.")

    def _connect(self, node: int, links: list[tuple[int, tuple[int, int], str]]) -> None:
        for slot, (source, output), type_ in links:
            number = len(self.links) + self.first
            self.links.append([number, source, output, node, slot, type_])
            self.nodes[node - self.first]["inputs"][slot]["link"] = number
            self._leaves(source, output, number)

    def _leaves(self, source: int, output: int, link: int) -> None:
        """Note at its beginning that a link begins there."""
        self.nodes[source - self.first]["outputs"][output]["links"].append(link)

    def _append(self, kind, size, inputs, outputs, values, title) -> int:
        number = len(self.nodes) + self.first
        node = {
            "id": number,
            "type": kind,
            "pos": [self.x, self.y + NODE_TITLE],
            "size": list(size),
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {"cnr_id": "dreamvideo"} if is_part(kind) else properties(kind),
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
            "nodes": self.described_nodes(),
            "links": self.links,
            "groups": self.described_groups(),
            "config": {},
            **({"definitions": {"subgraphs": self.subgraphs}} if self.subgraphs else {}),
            "extra": {"ds": {"scale": round(scale, 3), "offset": [round(30 / scale), round(50 / scale)]}},
            "version": 0.4,
        }

    def described_nodes(self) -> list[dict]:
        return [node if is_ours(node["type"]) or is_part(node["type"]) else _sparse(node) for node in self.nodes]

    def described_groups(self) -> list[dict]:
        look = {"color": "#3f789e", "font_size": 24, "flags": {}}
        return [
            {"id": number, "title": group.title, "bounding": group.box} | look
            for number, group in enumerate(self.groups, 1)
        ]


def is_ours(kind: str) -> bool:
    return kind.startswith("DreamVideo")


def is_part(kind: str) -> bool:
    """Whether a node is a subgraph, whose type is the id of its definition."""
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", kind) is not None


def height_of(name: str, kind: str, options: dict, value: Any) -> int:
    """Pixels that a widget takes with this value."""
    return TEXT_HEIGHT if options.get("multiline") else WIDGET_HEIGHT * rows_of(name, kind, options, value)


def _sparse(node: dict) -> dict:
    """A stock node without the last sockets, where nothing is connected to them: those, too, differ between hosts."""
    sockets = {"inputs": list(node["inputs"]), "outputs": list(node["outputs"])}
    for found, links in ((sockets["inputs"], "link"), (sockets["outputs"], "links")):
        while found and not found[-1][links]:
            found.pop()
    return node | sockets


def properties(kind: str) -> dict[str, str]:
    """What tells a ComfyUI without this pack which pack to install."""
    if kind in NOTES:
        return {}
    pack = "dreamvideo" if is_ours(kind) else "comfy-core"
    return {"Node name for S&R": kind, "cnr_id": pack}


def widget_values(known: list[tuple[str, str, dict]], values: list[Any]) -> tuple[dict[str, Any], list[Any]]:
    """Widget name -> value, the default where values has no more; then the values that are left."""
    inputs: dict[str, Any] = {}
    for name, kind, options in known:
        if not is_widget(kind, options):
            continue
        inputs[name] = values[0] if values else default(kind, options)
        values = values[1 + len(extra_slots(name, kind, options)) :]
        if kind == DYNAMIC:
            inner, values = widget_values(nested(name, options, inputs[name]), values)
            inputs |= inner
    return inputs, values
