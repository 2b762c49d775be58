"""The templates: they fit the nodes as they are, and run on the embedded base with few steps."""

import json
import shutil

import pytest
import torch
from graphs import random_adapter
from harness import PACK
from make_workflows import ALL, write
from on_embedded import MOTION_FILE, SUBJECT_FILE, on_embedded
from over_http import FEW

from subgraphs import to_api

FILES = sorted((PACK / "workflows").glob("*.json"))
BLUEPRINTS = sorted((PACK / "subgraphs").glob("*.json"))
WEIGHTS = PACK / "dreamvideo" / "nano" / "weights" / "unet.safetensors"


@pytest.fixture(scope="module")
def media(host):
    """What the templates take from the input and output folders."""
    from PIL import Image

    Image.new("RGB", (80, 64), "red").save(host.base / "input" / "example.png")
    files = host.module("dreamvideo")
    for name, kind in ((SUBJECT_FILE, "identity"), (MOTION_FILE, "motion")):
        made = random_adapter(host, kind)
        tokens = {word.replace("thing", "my-toy"): rows for word, rows in made.tokens.items()}
        path = host.base / "output" / "dreamvideo" / name
        files.save_adapter(path, made.adapter, made.info, tokens, made.features)
    host.forget_file_lists()
    yield
    for name in (SUBJECT_FILE, MOTION_FILE):
        (host.base / "output" / "dreamvideo" / name).unlink()


def test_every_template_is_there():
    assert [path.stem for path in FILES] == sorted(ALL)


def test_templates_are_as_described(host, tmp_path):
    write(host.nodes.NODE_CLASS_MAPPINGS, tmp_path)
    assert sorted(path.name for path in (tmp_path / "subgraphs").iterdir()) == [path.name for path in BLUEPRINTS]
    for path in FILES + BLUEPRINTS:
        ours, found = (json.loads((folder / path.relative_to(PACK)).read_text("utf-8")) for folder in (tmp_path, PACK))
        levels = [[each, *each.get("definitions", {}).get("subgraphs", ())] for each in (ours, found)]
        assert len(levels[0]) == len(levels[1])
        for one, other in zip(*levels, strict=True):
            shapes = [[(node["type"], len(node["widgets_values"])) for node in each["nodes"]] for each in (one, other)]
            assert shapes[0] == shapes[1] and one["links"] == other["links"]


def test_parts_are_flattened_with_what_stands_outside(host):
    workflow = json.loads((PACK / "workflows" / "1_quickstart.json").read_text(encoding="utf-8"))
    outer = next(node for node in workflow["nodes"] if node.get("title") == "Learn the toy")
    names = [entry["name"] for entry in outer["inputs"] if "widget" in entry]
    outer["widgets_values"][names.index("steps_of_word")] = 123
    graph = to_api(workflow, host.nodes.NODE_CLASS_MAPPINGS)
    (name,) = [name for name, node in graph.items() if node["class_type"] == "DreamVideoTrainSubject"]
    assert name.partition(":")[0] == str(outer["id"])
    assert graph[name]["inputs"]["token_steps"] == 123
    links = [value for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert links and all(source in graph for source, _ in links)
    assert graph[graph[name]["inputs"]["images"][0]]["class_type"] == "DreamVideoToyMedia"


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="The embedded base has no UNet weights here.")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_template_runs(host, media, image_files, path):
    graph = on_embedded(to_api(json.loads(path.read_text(encoding="utf-8")), host.nodes.NODE_CLASS_MAPPINGS))
    for node in graph.values():
        for name in FEW.keys() & node["inputs"].keys():
            node["inputs"][name] = FEW[name]
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = "example.png"
    shutil.rmtree(host.base / "output" / "video", ignore_errors=True)
    torch.manual_seed(0)
    host.server.text_nodes.clear()
    host.run(graph)
    trained = {name for name, node in graph.items() if "Train" in node["class_type"]}
    around = {name.partition(":")[0] for name in trained}  # what stands in a part is told on its outside, too
    assert trained | around <= host.server.text_nodes
    wanted = sum(node["class_type"] == "SaveVideo" for node in graph.values())
    assert len(list((host.base / "output" / "video").rglob("*.mp4"))) == wanted
