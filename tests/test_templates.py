"""Templates and blueprints as shipped: nothing touches in either of ComfyUI's node designs, or depends on its version.

The new design hangs two footers of 26 pixels below a node, the name of its pack and "Issues".
"""

import json
from itertools import combinations
from pathlib import Path

import pytest

PACK = Path(__file__).parents[1]
FILES = sorted(PACK.glob("workflows/*.json")) + sorted(PACK.glob("subgraphs/*.json"))
TITLE, BELOW, BESIDE, GROUPS = 30, 56, 40, 40  # pixels: a node's title, then the least distances

Box = tuple[float, float, float, float]  # left, top, right, bottom


def parts_of(workflow: dict) -> list[dict]:
    return workflow.get("definitions", {}).get("subgraphs", [])


def levels() -> dict[str, dict]:
    """Every graph that somebody can look at: workflows, and the parts in them and in blueprints."""
    found = {}
    for path in FILES:
        workflow = json.loads(path.read_text("utf-8"))
        if path.parent.name == "workflows":
            found[path.stem] = workflow
        found |= {f"{path.stem}/{part['name']}": part for part in parts_of(workflow)}
    return found


LEVELS = levels()
IDS = {part["id"] for part in LEVELS.values() if "inputNode" in part}
pytestmark = pytest.mark.parametrize("workflow", LEVELS.values(), ids=LEVELS)


def box_of(node: dict) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def group_box(group: dict) -> Box:
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def gaps(one: Box, other: Box) -> tuple[float, float]:
    """Pixels between two boxes across and down; negative where they overlap."""
    return tuple(max(one[axis], other[axis]) - min(one[axis + 2], other[axis + 2]) for axis in (0, 1))


def test_nodes_leave_room_for_footers(workflow):
    for one, other in combinations(workflow["nodes"], 2):
        across, down = gaps(box_of(one), box_of(other))
        assert across >= BESIDE or down >= BELOW, (one["type"], other["type"], across, down)


def test_groups_hold_their_nodes_and_do_not_touch(workflow):
    boxes = [group_box(group) for group in workflow["groups"]]
    for one, other in combinations(boxes, 2):
        assert max(gaps(one, other)) >= GROUPS
    for node in workflow["nodes"]:
        left, top, right, bottom = box_of(node)
        assert any(
            left > x and top > y and right < end and bottom + BELOW <= low for x, y, end, low in boxes
        ), node["type"]  # fmt: skip


def test_stock_nodes_say_only_what_a_template_sets(workflow):
    """Create Video, Save Video and others get new rows and sockets from one ComfyUI to the next."""
    for node in workflow["nodes"]:
        if node["type"].startswith("DreamVideo") or node["type"] in IDS:
            continue
        for sockets, links in ((node["inputs"], "link"), (node["outputs"], "links")):
            assert not sockets or sockets[-1][links], node["type"]
        if node["type"] in ("CreateVideo", "SaveVideo", "LoadVideo", "LoadImage"):
            assert len(node["widgets_values"]) == 1, node["type"]


def test_links_begin_and_end_where_both_ends_say(workflow):
    """The frontend drops a link that only one end knows; -10 and -20 stand for the outside of a part."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(names, link, strict=True)) if isinstance(link, list) else link for link in workflow["links"]]
    assert len({link["id"] for link in links}) == len(links)
    for link in links:
        begin = nodes[link["origin_id"]]["outputs"] if link["origin_id"] > 0 else workflow["inputs"]
        end = nodes[link["target_id"]]["inputs"] if link["target_id"] > 0 else workflow["outputs"]
        begin, end = begin[link["origin_slot"]], end[link["target_slot"]]
        assert link["id"] in (begin["links"] if "links" in begin else begin["linkIds"])
        assert link["id"] in (end["linkIds"] if "linkIds" in end else [end["link"]])
        assert begin["type"] == end["type"] == link["type"]


def test_parts_of_a_workflow_are_its_own(workflow):
    """One that is changed in a workflow changes neither the blueprint nor what another workflow has."""
    assert len(IDS) == sum("inputNode" in part for part in LEVELS.values())
    parts = {part["id"]: part for part in parts_of(workflow)}
    ids = [node["id"] for level in (workflow, *parts.values()) for node in level["nodes"]]
    assert len(set(ids)) == len(ids)
    for node in workflow["nodes"]:
        if node["type"] in parts:
            part = parts[node["type"]]
            assert [entry["name"] for entry in node["inputs"]] == [entry["name"] for entry in part["inputs"]]
            assert [entry["name"] for entry in node["outputs"]] == [entry["name"] for entry in part["outputs"]]
            assert len(node["widgets_values"]) == sum("widget" in entry for entry in node["inputs"])
