"""The templates as shipped: nothing touches in either of ComfyUI's node designs, nothing depends on its version.

The new design hangs two footers of 26 pixels below a node, the name of its pack and "Issues".
"""

import json
from itertools import combinations
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "workflows").glob("*.json"))
TITLE, BELOW, BESIDE, GROUPS = 30, 56, 40, 40  # pixels: a node's title, then the least distances

Box = tuple[float, float, float, float]  # left, top, right, bottom

pytestmark = pytest.mark.parametrize("workflow", [json.loads(path.read_text("utf-8")) for path in FILES],
                                     ids=[path.stem for path in FILES])  # fmt: skip


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
        if node["type"].startswith("DreamVideo"):
            continue
        for sockets, links in ((node["inputs"], "link"), (node["outputs"], "links")):
            assert not sockets or sockets[-1][links], node["type"]
        if node["type"] in ("CreateVideo", "SaveVideo", "LoadVideo", "LoadImage"):
            assert len(node["widgets_values"]) == 1, node["type"]
