"""Wrong wiring, each with its own sentence."""

import pytest
import torch
from graphs import SIZE, base, give, our_sample, pictures, prompts, random_adapter, stock_sample
from harness import Graph, HostError


@pytest.fixture
def graph(host):
    graph = Graph()
    return graph, base(graph)


def fails(host, graph, link, words):
    with pytest.raises(HostError, match=words):
        host.run_with_probe(graph, link)


def sd_model():
    """Something whose MODEL is no text-to-video model."""
    from types import SimpleNamespace

    return SimpleNamespace(model=torch.nn.Linear(1, 1))


def test_another_kind_of_model(host, graph):
    graph, loader = graph
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    apply = graph.add("DreamVideoApplyAdapter", model=give(host, graph, "MODEL", sd_model()), adapter=adapter,
                      strength=1.0, start_percent=0.0, end_percent=1.0)  # fmt: skip
    fails(host, graph, [apply, 0], "This MODEL is a Linear, not a ModelScope")


def test_text_of_another_width(host, graph):
    graph, loader = graph
    wrong = give(host, graph, "CONDITIONING", [[torch.zeros(1, 77, 768), {}]])
    fails(host, graph, stock_sample(graph, [loader, 0], wrong, wrong), "text states of width 768 and this MODEL reads")


def test_adapter_of_another_base(host, graph):
    graph, loader = graph
    files, adapters = host.module("dreamvideo.adapter_files"), host.module("dreamvideo.adapters")
    unet = host.module("dreamvideo.unet").UNetConfig()
    config = adapters.AdapterConfig.identity()
    info = files.AdapterInfo(kind="identity", adapter_config=config, unet_config=unet)
    adapter = files.LoadedAdapter(adapters.Adapter(config, unet, device="meta"), info, {}, None)
    apply = graph.add("DreamVideoApplyAdapter", model=[loader, 0], adapter=give(host, graph, "DREAMVIDEO_ADAPTER",
                      adapter), strength=1.0, start_percent=0.0, end_percent=1.0)  # fmt: skip
    fails(host, graph, [apply, 0], "for another base")


def test_window_that_ends_before_it_starts(host, graph):
    graph, loader = graph
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    apply = graph.add("DreamVideoApplyAdapter", model=[loader, 0], adapter=adapter, strength=1.0, start_percent=0.9,
                      end_percent=0.2)  # fmt: skip
    fails(host, graph, [apply, 0], "the end must come after the start")


def test_sizes_and_shapes(host, graph):
    graph, loader = graph
    positive, negative = prompts(graph, [loader, 1], "a ball")
    odd = our_sample(graph, [loader, 0], positive, negative, width=72)
    fails(host, graph, odd, "72 x 64 pixels do not divide by 16.*64 x 64 and 80 x 64")
    graph = Graph()
    loader = base(graph)
    positive, negative = prompts(graph, [loader, 1], "a ball")
    prior = give(host, graph, "LATENT", {"samples": torch.zeros(2, 4, 8, 8)})
    sampled = our_sample(graph, [loader, 0], positive, negative, prior=prior, prior_strength=0.5)
    fails(host, graph, sampled, r"latents of shape \[2, 4, 8, 8\] and the video \[4, 4, 8, 8\]")


def test_names_that_lead_out(host, graph):
    graph, loader = graph
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    saved = graph.add("DreamVideoSaveAdapter", adapter=adapter, filename_prefix="../../etc/x", save_embedding=False)
    fails(host, graph, [saved, 0], "leads out of the output folder")
    assert not list(host.base.parent.glob("etc"))
    other = Graph()
    fails(host, other, [other.add("DreamVideoLoadAdapter", adapter_file="../../x.safetensors"), 0], "x.safetensors")
    other = Graph()
    fails(host, other, [base(other, "../../"), 0], r"\.\./\.\./")


def test_what_is_missing_is_named(host):
    folder = host.base / "models" / "dreamvideo" / "half"
    folder.mkdir(exist_ok=True)
    (folder / "unet.safetensors").write_bytes((host.base / "models/dreamvideo/tiny/unet.safetensors").read_bytes())
    graph = Graph()
    fails(host, graph, [base(graph, "half/"), 0], "lacks its text and image encoder and autoencoder. Get .*laion.*half")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"placeholder": "dog"}, "ordinary word"),
        ({"captions": "a ball"}, "lacks the placeholder"),
        ({"captions": "a <thing>\na <thing>\na <thing>"}, "3 captions for 2 photographs"),
    ],
)
def test_training_inputs(host, graph, change, words):
    graph, loader = graph
    settings = {"placeholder": "<thing>", "class_word": "ball", "captions": "", "vectors": 1, "steps": 1,
                "learning_rate": 0.01, "batch_size": 1, "seed": 0, "preview_every": 0, "gradient_checkpointing": False,
                "resume": True, **change}  # fmt: skip
    node = graph.add("DreamVideoTrainTextualInversion", model=[loader, 0], clip=[loader, 1], vae=[loader, 2],
                     images=give(host, graph, "IMAGE", pictures(2)), **settings)  # fmt: skip
    fails(host, graph, [node, 0], words)


def test_clip_without_frames(host):
    graph = Graph()
    common = {"caption": "a ball", "frames": 4, "fps": 8.0, "images_fps": 8.0, **SIZE}
    fails(host, graph, [graph.add("DreamVideoMotionClips", **common), 0], "There is no clip")
    graph = Graph()
    one = graph.add("DreamVideoMotionClips", images=give(host, graph, "IMAGE", pictures(1)), **common)
    fails(host, graph, [one, 0], "at least two frames")
