"""The templates: they fit the nodes as they are, and run on the embedded base with few steps."""

import json
import shutil

import pytest
import torch
from graphs import random_adapter
from harness import PACK
from litegraph import to_api
from make_workflows import ALL, MOTION_FILE, SUBJECT_FILE, on_embedded, write
from over_http import FEW

FILES = sorted((PACK / "workflows").glob("*.json"))
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
    for path in FILES:
        ours, found = (json.loads(each.read_text(encoding="utf-8")) for each in (tmp_path / path.name, path))
        shapes = [[(node["type"], len(node["widgets_values"])) for node in each["nodes"]] for each in (ours, found)]
        assert shapes[0] == shapes[1] and ours["links"] == found["links"]


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="The embedded base has no UNet weights here.")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_template_runs(host, media, path):
    graph = on_embedded(to_api(json.loads(path.read_text(encoding="utf-8")), host.nodes.NODE_CLASS_MAPPINGS))
    for node in graph.values():
        for name in FEW.keys() & node["inputs"].keys():
            node["inputs"][name] = FEW[name]
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = "example.png"
    shutil.rmtree(host.base / "output" / "video", ignore_errors=True)
    torch.manual_seed(0)
    host.run(graph)
    wanted = sum(node["class_type"] == "SaveVideo" for node in graph.values())
    assert len(list((host.base / "output" / "video").rglob("*.mp4"))) == wanted
