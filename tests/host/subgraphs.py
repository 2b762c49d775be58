"""Parts of workflows, which the frontend calls subgraphs: written as `litegraph` writes graphs, flattened as it queues.

A part alone is a blueprint. Its definition has nodes and links of its own; its inputs come from a node of number -10
and its outputs go to one of number -20.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from harness import Graph
from litegraph import NOTES, SLOT_HEIGHT, Workflow, is_part, sockets, widget_values

INPUTS, OUTPUTS = -10, -20
FIRST = 100  # numbers of parts' nodes begin at 100, 200, ...: in one workflow no two nodes have the same
ASIDE = (160, 60)  # pixels from the nodes to what shows inputs and outputs, and its width


class Part(Workflow):
    """A graph with inputs and outputs. place: which one of its workflow's parts; owner: the workflow's name."""

    def __init__(self, classes: dict[str, type], name: str, description: str, owner: str, place: int = 1) -> None:
        super().__init__(classes, FIRST * place)
        self.name, self.description = name, description
        self.id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"dreamvideo/{owner}/{name}"))
        self.inputs: list[dict] = []
        self.outputs: list[dict] = []

    def input(self, name: str, type_: str) -> tuple[int, int]:
        """A link from the outside."""
        self.inputs.append({"name": name, "type": type_, "links": [], "promoted": False, "value": None, "height": 0})
        return INPUTS, len(self.inputs) - 1

    def promote(self, name: str, type_: str, value: Any, height: int) -> tuple[int, int]:
        link = self.input(name, type_)
        self.inputs[-1] |= {"promoted": True, "value": value, "height": height}
        return link

    def output(self, name: str, source: tuple[int, int]) -> None:
        node, slot = source
        type_ = self.nodes[node - self.first]["outputs"][slot]["type"]
        number = len(self.links) + self.first
        self.links.append([number, node, slot, OUTPUTS, len(self.outputs), type_])
        self.outputs.append({"name": name, "type": type_, "links": [number]})
        self._leaves(node, slot, number)

    def _leaves(self, source: int, output: int, link: int) -> None:
        if source == INPUTS:
            self.inputs[output]["links"].append(link)
        else:
            super()._leaves(source, output, link)

    def definition(self) -> dict:
        """As it stands in a workflow."""
        right = max(left + width for left, _, width, _ in (group.box for group in self.groups))
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        state = {"lastGroupId": len(self.groups), "lastNodeId": self.first + len(self.nodes) - 1}
        state |= {"lastLinkId": self.first + len(self.links) - 1, "lastRerouteId": 0}
        return {
            "id": self.id,
            "version": 1,
            "state": state,
            "revision": 0,
            "config": {},
            "name": self.name,
            "description": self.description,
            "category": "DreamVideo",
            "inputNode": {"id": INPUTS, "bounding": _bounding(-ASIDE[0], self.inputs)},
            "outputNode": {"id": OUTPUTS, "bounding": _bounding(right + ASIDE[1], self.outputs)},
            "inputs": [self._socket(f"in/{about['name']}", about) for about in self.inputs],
            "outputs": [self._socket(f"out/{about['name']}", about) for about in self.outputs],
            "widgets": [],
            "nodes": self.described_nodes(),
            "groups": self.described_groups(),
            "links": [dict(zip(names, link, strict=True)) for link in self.links],
            "extra": {},
        }

    def _socket(self, key: str, about: Mapping[str, Any]) -> dict:
        number = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.id}/{key}"))
        return {"id": number, "name": about["name"], "type": about["type"], "linkIds": about["links"]}

    def blueprint(self) -> dict:
        """A file of `subgraphs`: one node that is the part, and its definition."""
        outside = Workflow(self.classes)
        with outside.group(""):
            outside.place(self)
        found = outside.build(self.name)
        return found | {"groups": [], "extra": {}}


def _bounding(left: float, entries: list[dict]) -> list[float]:
    return [left, 0, 120, 40 + SLOT_HEIGHT * len(entries)]


def to_api(workflow: dict, classes: dict[str, type]) -> Graph:
    """What the frontend queues of a workflow, the nodes of its parts named "outer:inner".

    KeyError for a node or an input that does not exist.
    """
    parts = {part["id"]: part for part in workflow.get("definitions", {}).get("subgraphs", ())}
    graph = Graph()
    _Level(workflow, parts, classes).write(graph)
    return graph


class _Level:
    """A workflow, or one of its parts as it stands in a node of the level above."""

    def __init__(self, about: dict, parts: dict[str, dict], classes: dict[str, type], above: _Level | None = None,
                 node: dict | None = None) -> None:  # fmt: skip
        self.about, self.parts, self.classes, self.above, self.node = about, parts, classes, above, node
        self.nodes = {node["id"]: node for node in about["nodes"]}
        self.links = {}
        for link in about["links"]:
            number, source, slot = (link["id"], link["origin_id"], link["origin_slot"]) if above else link[:3]
            self.links[number] = (source, slot)
        self.prefix = "" if above is None else f"{above.prefix}{node['id']}:"

    def inner(self, node: dict) -> _Level:
        return _Level(self.parts[node["type"]], self.parts, self.classes, self, node)

    def write(self, graph: Graph) -> None:
        for node in self.about["nodes"]:
            if is_part(node["type"]):
                self.inner(node).write(graph)
            elif node["type"] not in NOTES:
                graph[f"{self.prefix}{node['id']}"] = {"class_type": node["type"], "inputs": self.inputs(node)}

    def inputs(self, node: dict) -> dict[str, Any]:
        known = sockets(self.classes[node["type"]])
        inputs, left = widget_values(known, list(node["widgets_values"]))
        if left:
            raise KeyError(f"{node['type']} has values for {len(left)} widgets too many")
        for entry in node["inputs"]:
            if entry["name"] not in {name for name, _, _ in known}:
                raise KeyError(f"{node['type']} has no input {entry['name']}")
            if entry["link"] is not None:
                for value in self.source(*self.links[entry["link"]]):
                    inputs[entry["name"]] = value
        return inputs

    def source(self, node: int, slot: int) -> list[Any]:
        """What a link that begins there brings: one link of the API, or a widget's value; nothing where it is open."""
        if node == INPUTS:
            return self.above.from_outside(self.node, slot)
        found = self.nodes[node]
        if is_part(found["type"]):
            part = self.inner(found)
            return part.source(*part.links[part.about["outputs"][slot]["linkIds"][0]])
        return [[f"{self.prefix}{node}", slot]]

    def from_outside(self, node: dict, slot: int) -> list[Any]:
        """What comes into a part of this level by one of its inputs."""
        entry = node["inputs"][slot]
        if entry["link"] is not None:
            return self.source(*self.links[entry["link"]])
        if "widget" not in entry:
            return []
        return [node["widgets_values"][sum("widget" in each for each in node["inputs"][:slot])]]
