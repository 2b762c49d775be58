"""What templates for real bases queue, turned into what tiny ones can do, for tests and thumbnails."""

from __future__ import annotations

from harness import Graph
from image_files import CHECKPOINT, MODULE
from template_parts import TOY, sampling, short

BASE = "text2video_pytorch_model.pth"
DOG_FILE, GUITAR_FILE = "my-dog_00001_.safetensors", "playing-guitar_00001_.safetensors"
SUBJECT_FILE, MOTION_FILE = "my-toy_00001_.safetensors", "circling_00001_.safetensors"  # what the quickstart saves
PHOTOGRAPH, CLIP = "example.png", "my-clip.mp4"
CAPTION = "a person is playing the guitar in a room"
SUBJECT_PROMPT = "a <my-dog> is running on the grass"
MOTION_PROMPT = "a panda is playing the guitar on the beach"
PROMPT = "a <my-dog> is playing the guitar on the beach"
IMAGE_MODEL, MOTION_MODULE = "v1-5-pruned-emaonly-fp16.safetensors", "v3_sd15_mm.ckpt"
SKIING, SKIING_PROMPT = "a man is skiing on the snow", "a panda is skiing on the snow"
# What the real templates hold, and what the embedded base gets in its place.
TOYS = {
    BASE: "embedded",
    IMAGE_MODEL: CHECKPOINT,
    MOTION_MODULE: MODULE,
    SKIING: "a yellow circle circling in the night",
    SKIING_PROMPT: "a red circle circling on the grass",
    DOG_FILE: SUBJECT_FILE,
    GUITAR_FILE: MOTION_FILE,
    CAPTION: "a yellow circle circling in the night",
    SUBJECT_PROMPT: "a <my-toy> on the grass",
    MOTION_PROMPT: "a red circle circling on the grass",
    PROMPT: "a <my-toy> circling on the road",
    "<my-dog>": "<my-toy>",
    "a <my-dog>": "a <my-toy>",
    "dog": "toy",
}
SMALL = {"steps": 0, "token_steps": 0, "learning_rate": 0.0, "token_learning_rate": 0.0, "batch_size": 0}


def on_embedded(graph: Graph, drawn: bool = False) -> Graph:
    """What a template for a real base queues, turned into what a tiny one can do; the embedded base's stay.

    The embedded base, or for an image base the files of `image_files` beside the embedded base's image encoder; its
    sizes, its words, its own training settings; a toy's clip in place of a file that nobody has. drawn: the embedded
    image base in the place of those files, which are laid out as real ones but draw nothing.
    """
    if not any(node["inputs"].get("base") == BASE or "ckpt_name" in node["inputs"] for node in graph.values()):
        return graph
    small = TOY | SMALL | short()
    videos = _replace(graph, "LoadVideo", "DreamVideoToyMedia", {"frames": 8}, {})
    if drawn:
        _load_embedded_image_base(graph)
    parts = {"base": "embedded", "clip_file": "automatic", "vae_file": "automatic", "precision": "default"}
    _replace(graph, "CLIPVisionLoader", "DreamVideoLoadModelScope", parts, {0: 3})
    for node in graph.values():
        if node["inputs"].get("video", [None])[0] in videos and "images_fps" in node["inputs"]:
            node["inputs"]["images"] = [node["inputs"].pop("video")[0], 2]
        inputs, kind = node["inputs"], node["class_type"]
        for name, value in inputs.items():
            if isinstance(value, str):
                inputs[name] = TOYS.get(value, value)
            elif kind.startswith("DreamVideo") and not isinstance(value, list):
                inputs[name] = small.get(name, value)
        if kind in ("DreamVideoSampler", "DreamVideoCompare"):
            inputs["steps"] = sampling("EMBEDDED")["steps"]
    return graph


def _load_embedded_image_base(graph: Graph) -> None:
    loaders = ("CheckpointLoaderSimple", "DreamVideoLoadAnimateDiff", "CLIPVisionLoader")
    modules = [node["inputs"]["motion_module"] for node in graph.values() if node["class_type"] == loaders[1]]
    if modules:
        inputs = {"base": "embedded", "motion_module": "none" if modules == ["none"] else "automatic"}
        for kind in loaders:
            _replace(graph, kind, "DreamVideoLoadImageBase", inputs, {0: 3} if kind == loaders[2] else {})


def _replace(graph: Graph, kind: str, other: str, inputs: dict, outputs: dict[int, int]) -> list[str]:
    """Put another node in the place of each of a kind; the names of these. outputs: of the one -> of the other."""
    found = [name for name, node in graph.items() if node["class_type"] == kind]
    for name in found:
        graph[name] = {"class_type": other, "inputs": dict(inputs)}
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in found:
                node["inputs"][name] = [value[0], outputs.get(value[1], value[1])]
    return found
