"""Wrong wiring, each with its own sentence."""

import html
import re
import shutil
from dataclasses import replace

import pytest
import torch
from graphs import SIZE, base, give, our_sample, pictures, prompts, random_adapter, stock_sample
from harness import WINDOW, Cancelled, Graph, HostError
from safetensors import safe_open

pytestmark = pytest.mark.parametrize("host", ["static"], indirect=True)


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
    fails(host, graph, [apply, 0], "This MODEL is a Linear, not a video model")


def test_text_of_another_width(host, graph):
    graph, loader = graph
    wrong = give(host, graph, "CONDITIONING", [[torch.zeros(1, 77, 768), {}]])
    fails(host, graph, stock_sample(graph, [loader, 0], wrong, wrong), "text states of width 768 and this MODEL reads")


def test_adapter_of_another_base(host, graph):
    graph, loader = graph
    files = adapters = host.module("dreamvideo")
    unet = host.module("dreamvideo.models.config").UNetConfig()
    config = adapters.AdapterConfig.identity()
    info = files.AdapterInfo(kind="identity", adapter_config=config, unet_config=unet)
    adapter = files.TrainedAdapter(adapters.Adapter(config, unet, device="meta"), info, {}, None)
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
    fails(host, graph, odd, "72 x 64 pixels does not divide by 16.*64 x 64 and 80 x 64")
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


@pytest.mark.parametrize("prefix", ["a:b", "aux/x", "con", "dog.", "x/dog ", "a\x1bb", "<img>", "d" * 300])
def test_names_that_some_system_does_not_take(host, prefix):
    with pytest.raises(ValueError, match="^The file name "):
        host.module("nodes.host").numbered(prefix, "dreamvideo", ".safetensors")


def test_folders_in_names_are_written_either_way(host):
    numbered = host.module("nodes.host").numbered
    assert numbered("cats\\tom", "dreamvideo", ".x") == numbered("cats/tom", "dreamvideo", ".x")


@pytest.mark.parametrize("name", ["cfg", "offset_noise", "prior_strength"])
def test_nan_is_told(host, graph, name):
    graph, loader = graph
    positive, negative = prompts(graph, [loader, 1], "a ball")
    nan = give(host, graph, "FLOAT", float("nan"))
    fails(host, graph, our_sample(graph, [loader, 0], positive, negative, **{name: nan}), f"{name} is 'nan'")


@pytest.mark.parametrize("name", ["base", "precision"])
def test_null_is_told(host, name):
    graph = Graph()
    nothing = {**LOADER, name: give(host, graph, "COMBO", None)}
    fails(host, graph, [graph.add("DreamVideoLoadModelScope", **nothing), 0], f"{name} holds nothing")


HOSTILE = "<img src=x onerror=alert(1)> [[here|https://x.org]] **dog**"


def test_text_of_files_is_text_on_the_page(host):
    """And plain where it goes on to other nodes."""
    loaded = random_adapter(host, "identity")
    loaded = replace(loaded, info=replace(loaded.info, class_word=HOSTILE, placeholder="<thing>"))
    graph = Graph()
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", loaded)
    info = graph.add("DreamVideoAdapterInfo", adapter=adapter)
    saved = graph.add("DreamVideoSaveAdapter", adapter=adapter, filename_prefix="page", save_embedding=False)
    host.server.texts.clear()
    description, path = host.run_with_probe(graph, [info, 0], [saved, 0])
    assert HOSTILE in description and "<thing>" in description and path.endswith("page_00001_.safetensors")
    shown = [text for outputs in host.executor.history_result["outputs"].values() for text in outputs.get("text", ())]
    assert len(shown) == len(host.server.texts) == 2
    for text in (*shown, *host.server.texts):
        assert not set("<>[*") & set(text)
    assert description in map(html.unescape, shown) and description in map(html.unescape, host.server.texts)


def test_what_is_missing_is_named(host):
    folder = host.base / "models" / "dreamvideo" / "half"
    folder.mkdir(exist_ok=True)
    (folder / "unet.safetensors").write_bytes((host.base / "models/dreamvideo/tiny/unet.safetensors").read_bytes())
    graph = Graph()
    fails(host, graph, [base(graph, "half/"), 0], "lacks its text and image encoder and autoencoder. Get .*laion.*half")


@pytest.mark.parametrize(
    "widget, file, words",
    [
        ("base", "text2video_pytorch_model.pth", "Get text2video.* on ModelScope: put it into models/diffusion_models"),
        ("clip_file", "open_clip_pytorch_model.bin", "not in list|Get open_clip.* put it into models/text_encoders"),
        ("vae_file", "VQGAN_autoencoder.pth", "not in list|Get VQGAN.* put it into models/vae"),
    ],
)
def test_an_absent_file_is_told_with_its_source(host, widget, file, words):
    graph = Graph()
    node = graph.add("DreamVideoLoadModelScope", **{**LOADER, widget: file})
    fails(host, graph, [node, 0], words)
    module = host.module("nodes.loaders")
    with pytest.raises(ValueError, match=words.rpartition("|")[2]):
        module.base_files(*({**LOADER, widget: file}[name] for name in ("base", "clip_file", "vae_file")))


def test_a_deleted_adapters_folder_leaves_the_loader(host, graph):
    graph, loader = graph
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    saved = graph.add("DreamVideoSaveAdapter", adapter=adapter, filename_prefix="gone", save_embedding=False)
    node = host.nodes.NODE_CLASS_MAPPINGS["DreamVideoLoadAdapter"]
    aside = host.base / "output" / "dreamvideo-aside"
    folder = aside.with_name("dreamvideo")
    folder.mkdir(exist_ok=True)
    node.INPUT_TYPES()  # the host keeps what it has listed
    folder.rename(aside)
    try:
        assert node.INPUT_TYPES()["required"]["adapter_file"]
        path = host.run_with_probe(graph, [saved, 0])[0]
        assert path == "dreamvideo/gone_00001_.safetensors"
        assert "gone_00001_.safetensors" in str(node.INPUT_TYPES()["required"]["adapter_file"])
        assert any("Saved " in text and path in text for text in host.server.texts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        host.forget_file_lists()


@pytest.mark.parametrize("window, told_to", [(True, {WINDOW}), (False, set())])
def test_text_goes_to_the_window_that_queued(host, window, told_to):
    """To all windows it would stand on whatever node has the same id there."""
    graph = Graph()
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    graph.add("DreamVideoSaveAdapter", adapter=adapter, filename_prefix="told", save_embedding=False)
    host.server.text_windows.clear()
    host.run(graph, window)
    assert host.server.text_windows == told_to


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
    node = _trainer(host, graph, loader, **change)
    fails(host, graph, [node, 0], words)


def test_clip_without_frames(host):
    graph = Graph()
    common = {"caption": "a ball", "frames": 4, "fps": 8.0, "images_fps": 8.0, **SIZE}
    fails(host, graph, [graph.add("DreamVideoMotionClips", **common), 0], "There is no clip")
    graph = Graph()
    one = graph.add("DreamVideoMotionClips", images=give(host, graph, "IMAGE", pictures(1)), **common)
    fails(host, graph, [one, 0], "at least two frames")


def test_out_of_memory_keeps_what_was_learned(host, graph, monkeypatch):
    graph, loader = graph
    node = _trainer(host, graph, loader, steps=4)
    unet, calls = host.module("nodes.host").HostUNet, []
    forward = unet.forward

    def full_on_the_third(self, *args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no room for 20 GiB")
        return forward(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(unet, "forward", full_on_the_third)
        fails(host, graph, [node, 0], "Training ran out of memory: set gradient_checkpointing to on.*is kept.*20 GiB")
    trained, loss = host.run_with_probe(graph, [node, 0], [node, 1])
    assert trained.info.steps == len(loss["loss"]) == 4
    assert len(host.progress) == 2  # steps 3 and 4: the first two were kept
    assert_nothing_partial(host)


def _trainer(host, graph, loader, *, model=None, clip=None, vae=None, steps=1, images=None, **change):
    settings = {"placeholder": "<thing>", "class_word": "ball", "captions": "", "vectors": 1, "steps": steps,
                "learning_rate": 0.01, "batch_size": 1, "seed": 0, "preview_every": 0, "gradient_checkpointing": "off",
                "resume": True, **change}  # fmt: skip
    images = pictures(2) if images is None else images
    return graph.add("DreamVideoTrainTextualInversion", model=model or [loader, 0], clip=clip or [loader, 1],
                     vae=vae or [loader, 2], images=give(host, graph, "IMAGE", images), **settings)  # fmt: skip


def assert_nothing_partial(host):
    files = [path for path in (host.base / "output").rglob("*") if path.is_file()]
    assert not [path for path in files if ".part" in path.name or path.name.startswith(".")]
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                assert list(opened.keys())


def test_cancelled_training_leaves_no_adapter_file(host, graph):
    graph, loader = graph
    node = _trainer(host, graph, loader, steps=9, seed=77)
    graph.add("DreamVideoSaveAdapter", adapter=[node, 0], filename_prefix="never", save_embedding=True)
    host.cancel_after = 2
    with pytest.raises(Cancelled):
        host.run(graph)
    assert not list(host.base.rglob("*never*"))
    assert_nothing_partial(host)


def odd_clip():
    from types import SimpleNamespace

    return SimpleNamespace(cond_stage_model=torch.nn.Linear(1, 1))


def odd_vae(channels):
    from types import SimpleNamespace

    return SimpleNamespace(first_stage_model=torch.nn.Linear(1, 1), latent_channels=channels)


@pytest.mark.parametrize(
    "socket, kind, value, words",
    [
        ("model", "MODEL", sd_model(), "This MODEL is a Linear, not a video model"),
        (
            "clip",
            "CLIP",
            odd_clip(),
            "This CLIP is a Linear, which no base here reads: take that of Load ModelScope T2V",
        ),
        ("vae", "VAE", odd_vae(16), "This VAE is a Linear with 16 latent channels"),
    ],
)
def test_trainer_names_what_is_of_the_wrong_kind(host, graph, socket, kind, value, words):
    graph, loader = graph
    node = _trainer(host, graph, loader, **{socket: give(host, graph, kind, value)})
    fails(host, graph, [node, 0], words)


def test_clip_of_another_width(host, graph):
    graph, loader = graph
    stage, transformer = torch.nn.Module(), torch.nn.Module()
    transformer.get_input_embeddings = lambda: torch.nn.Embedding(4, 768)
    stage.clip, stage.clip_l = "clip_l", torch.nn.Module()
    stage.clip_l.transformer = transformer
    wide = odd_clip()
    wide.cond_stage_model = stage
    node = _trainer(host, graph, loader, clip=give(host, graph, "CLIP", wide))
    fails(host, graph, [node, 0], "This CLIP has text states of width 768 and the MODEL reads 64")


def odd_vision(width=None):
    """A CLIP_VISION with projected features of a width, or without any."""
    from types import SimpleNamespace

    network = torch.nn.Module()
    if width:
        network.visual_projection = torch.nn.Linear(8, width)
    return SimpleNamespace(model=network)


@pytest.mark.parametrize(
    "width, words",
    [
        (None, "This CLIP_VISION gives no projected features: use OpenCLIP ViT-H-14"),
        (
            768,
            "This CLIP_VISION gives features of width 768 and the base's own 64: use the one",
        ),
    ],
)
def test_another_clip_vision(host, graph, width, words):
    graph, loader = graph
    node = _trainer(host, graph, loader, clip_vision=give(host, graph, "CLIP_VISION", odd_vision(width)))
    fails(host, graph, [node, 0], words)


def test_guidance_of_another_width(host, graph):
    graph, loader = graph
    guided = [[torch.zeros(1, 77, 64), {"dreamvideo_appearance": torch.zeros(1, 768)}]]
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "motion"))
    apply = graph.add("DreamVideoApplyAdapter", model=[loader, 0], adapter=adapter, strength=1.0, start_percent=0.0,
                      end_percent=1.0)  # fmt: skip
    wrong = give(host, graph, "CONDITIONING", guided)
    fails(host, graph, stock_sample(graph, [apply, 0], wrong, wrong), "reads image features of width 64")


def test_nodes_that_sample_name_another_kind_of_model(host, graph):
    graph, loader = graph
    model = give(host, graph, "MODEL", sd_model())
    positive, negative = prompts(graph, [loader, 1], "a ball")
    fails(host, graph, our_sample(graph, model, positive, negative), "This MODEL is a Linear, not a video model")


@pytest.mark.parametrize("shape", [(1, 4, 3, 8, 8), (2, 16, 8, 8)])
def test_latent_of_another_kind(host, graph, shape):
    graph, loader = graph
    positive, negative = prompts(graph, [loader, 1], "a ball")
    latent = give(host, graph, "LATENT", {"samples": torch.ones(shape)})
    sampled = stock_sample(graph, [loader, 0], positive, negative)
    graph[sampled[0]]["inputs"]["latent_image"] = latent
    fails(host, graph, sampled, r"This LATENT has the shape \[.*Empty Latent Image")


def test_latent_of_a_size_that_does_not_divide(host, graph):
    graph, loader = graph
    positive, negative = prompts(graph, [loader, 1], "a ball")
    sampled = stock_sample(graph, [loader, 0], positive, negative)
    graph[graph[sampled[0]]["inputs"]["latent_image"][0]]["inputs"]["width"] = 72
    fails(host, graph, sampled, "72 x 64 pixels does not divide by 16")


def test_adapter_of_a_base_with_other_weights(host, graph):
    graph, loader = graph
    other = random_adapter(host, "identity")
    model = host.run_with_probe(graph, [loader, 0])[0]
    weights = {key: 1.3 * tensor.flip(0) for key, tensor in model.model.diffusion_model.state_dict().items()}
    mark = host.module("dreamvideo.files.fingerprint").fingerprint(weights)
    other = replace(other, info=replace(other.info, base_fingerprint=mark))
    apply = graph.add("DreamVideoApplyAdapter", model=[loader, 0], adapter=give(host, graph, "DREAMVIDEO_ADAPTER",
                      other), strength=1.0, start_percent=0.0, end_percent=1.0)  # fmt: skip
    fails(host, graph, [apply, 0], "for another base: one of the same architecture with other weights")


def test_token_of_another_width(host, graph):
    graph, loader = graph
    files = host.module("dreamvideo")
    info = files.AdapterInfo(kind="token", placeholder="<thing>", class_word="ball")
    token = give(host, graph, "DREAMVIDEO_ADAPTER", files.TrainedAdapter(None, info, {"<thing>": torch.ones(1, 1024)},
                 None))  # fmt: skip
    apply = graph.add("DreamVideoApplyAdapter", model=[loader, 0], clip=[loader, 1], adapter=token, strength=1.0,
                      start_percent=0.0, end_percent=1.0)  # fmt: skip
    fails(host, graph, [apply, 1], "<thing> was learned for text states of width 1024 and this CLIP has 64")


LOADER = {"base": "tiny/", "clip_file": "automatic", "vae_file": "automatic", "precision": "default"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.safetensors", "tiny/../../../secret.safetensors",
                                  "link.safetensors", "away/", "..", "C:\\secret.safetensors", "a\0b"])  # fmt: skip
@pytest.mark.parametrize("widget", ["base", "clip_file", "vae_file", "adapter_file"])
def test_reading_stays_in_its_folders(host, links, name, widget):
    graph = Graph()
    if widget == "adapter_file":
        node = graph.add("DreamVideoLoadAdapter", adapter_file=name)
    else:
        node = graph.add("DreamVideoLoadModelScope", **{**LOADER, widget: name})
    with pytest.raises(HostError) as error:
        host.run_with_probe(graph, [node, 0])
    assert re.search(r"There is no |not in list|is a link to a file elsewhere|not a file below", str(error.value))


@pytest.mark.parametrize("prefix", ["/x", "../x", "a/../../x", "away/x", "a\0b", ".."])
def test_writing_stays_in_its_folder(host, graph, links, prefix):
    graph, loader = graph
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    saved = graph.add("DreamVideoSaveAdapter", adapter=adapter, filename_prefix=prefix, save_embedding=False)
    fails(host, graph, [saved, 0], "leads out of the output folder")
    assert list(links.iterdir()) == [links / "secret.safetensors"]


@pytest.fixture
def links(host):
    """A folder outside, and links to it in every folder that a widget names; the folder."""
    outside = host.base.parent / "outside"
    outside.mkdir(exist_ok=True)
    shutil.copy(host.base / "models/dreamvideo/tiny/unet.safetensors", outside / "secret.safetensors")
    made = []
    models = [host.base / "models" / name for name in ("diffusion_models", "text_encoders", "vae", "dreamvideo")]
    for folder in (*models, host.base / "output" / "dreamvideo"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in (("link.safetensors", outside / "secret.safetensors"), ("away", outside)):
            made.append(folder / name)
            made[-1].symlink_to(target)
    host.forget_file_lists()
    yield outside
    for link in made:
        link.unlink()
    host.forget_file_lists()


def test_dots_in_a_name_stay_and_nothing_is_overwritten(host, graph):
    graph, loader = graph
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    one, two = (
        graph.add("DreamVideoSaveAdapter", adapter=adapter, filename_prefix="v1.5 dog", save_embedding=switch)
        for switch in (False, True)
    )
    paths = host.run_with_probe(graph, [one, 0], [two, 0])
    assert sorted(paths) == [f"dreamvideo/v1.5 dog_0000{number}_.safetensors" for number in (1, 2)]
