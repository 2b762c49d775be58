"""Load Image Base: whole image bases in models/dreamvideo; which base an adapter is for; a CLIP_VISION with them."""

import shutil

import pytest
import torch
from graphs import base as modelscope
from graphs import give, our_sample, pictures, prompts
from harness import Graph, HostError
from image_files import MODULE
from test_host_animatediff import loaded, trainer


@pytest.fixture
def folder(host, image_files):
    """An image base in a folder of its own, in one file and in diffusers' layout."""
    import tiny_image_base as tiny

    from dreamvideo.files.image_layouts import image_diffusers_name
    from dreamvideo.files.tensors import write_safetensors

    root = host.base / "models" / "dreamvideo"
    tiny.write_tiny_image_base(root / "one")
    parts = root / "parts"
    unet = tiny.image_state(image_files)
    named = {image_diffusers_name(name, image_files.config.res_blocks): value for name, value in unet.items()}
    for part, state in (
        ("unet/diffusion_pytorch_model", named),
        ("vae/diffusion_pytorch_model", tiny.vae_state()),
        ("text_encoder/model", tiny.text_state()),
        ("image_encoder/model", tiny.vision_state()),
    ):
        write_safetensors(parts / f"{part}.safetensors", state, {})
    host.forget_file_lists()
    yield root / "one"
    for name in ("one", "parts"):
        shutil.rmtree(root / name, ignore_errors=True)
    host.forget_file_lists()


def from_folder(graph: Graph, name: str = "one/", module: str = "automatic") -> list[list]:
    """Links to the four outputs."""
    node = graph.add("DreamVideoLoadImageBase", base=name, motion_module=module)
    return [[node, slot] for slot in range(4)]


def made(host, parts) -> dict[str, torch.Tensor]:
    """What a base makes of a prompt, and of a picture."""
    graph = Graph()
    model, clip, vae = (give(host, graph, *pair) for pair in zip(("MODEL", "CLIP", "VAE"), parts, strict=False))
    video = our_sample(graph, model, *prompts(graph, clip, "a ball"))
    pixels = graph.add("VAEEncode", pixels=give(host, graph, "IMAGE", pictures(1)), vae=vae)
    found = host.run_with_probe(graph, video, [pixels, 0])
    return {name: each["samples"] for name, each in zip(("video", "picture"), found, strict=True)}


def test_a_folder_is_what_the_stock_loaders_make_of_its_files(host, folder, image_files):
    graph = Graph()
    stock = host.run_with_probe(graph, *loaded(graph)[:3])
    graph = Graph()
    whole = host.run_with_probe(graph, *from_folder(graph))
    graph = Graph()
    parts = host.run_with_probe(graph, *from_folder(graph, "parts/", MODULE))
    assert whole[3] is not None and parts[3] is not None
    wanted = made(host, stock)
    for each in (whole, parts):
        assert each[0].model.fingerprint == stock[0].model.fingerprint
        for name, found in made(host, each).items():
            assert torch.allclose(found, wanted[name], atol=1e-4), name


def test_an_image_encoder_alone_is_the_engines(host, folder):
    from dreamvideo.encoders.loading import load_encoders
    from dreamvideo.files.base import find_base

    graph = Graph()
    vision = host.run_with_probe(graph, from_folder(graph, "parts/", MODULE)[3])[0]
    engine = load_encoders(find_base(folder.parent / "parts", partial=True)).image
    images = torch.rand(2, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    found = host.module("nodes.host").HostImage(vision)
    assert found.width == engine.width
    assert torch.allclose(found.encode(images), engine.encode(images), atol=2e-3)  # unpaged it stays in half precision


def test_a_folder_trains_and_its_motion_follows_an_image(host, folder):
    from tiny_base import CLIP

    graph = Graph()
    *parts, vision = from_folder(graph)
    learned = trainer(host, graph, "motion", (*parts, None), clip_vision=vision)
    adapter = host.run_with_probe(graph, learned)[0]
    assert adapter.info.adapter_config.condition_dim == CLIP["embed_dim"]
    for parameter in adapter.adapter.parameters():
        parameter.data += 0.02
    graph = Graph()
    model, clip, _, vision = from_folder(graph)
    given = give(host, graph, "DREAMVIDEO_ADAPTER", adapter)
    placed = graph.add("DreamVideoApplyAdapter", model=model, adapter=given, strength=1.0, start_percent=0.0,
                       end_percent=1.0)  # fmt: skip
    words = prompts(graph, clip, "a ball")
    links = [our_sample(graph, [placed, 0], *words)]
    for seed in (0, 1):
        image = give(host, graph, "IMAGE", pictures(1, seed))
        shown = graph.add("DreamVideoEncodeAppearance", positive=words[0], negative=words[1], strength=1.0,
                          negative_strength=-1.0, clip_vision=vision, image=image)  # fmt: skip
        links.append(our_sample(graph, [placed, 0], [shown, 0], [shown, 1]))
    plain, one, other = (each["samples"] for each in host.run_with_probe(graph, *links))
    assert torch.isfinite(one).all()
    assert (plain - one).abs().max() > 1e-4 and (one - other).abs().max() > 1e-5


def test_an_adapter_of_an_image_base_is_refused_on_modelscope(host, image_files):
    graph = Graph()
    adapter = host.run_with_probe(graph, trainer(host, graph, "motion", loaded(graph)))[0]
    graph = Graph()
    placed = graph.add("DreamVideoApplyAdapter", model=[modelscope(graph), 0], strength=1.0, start_percent=0.0,
                       end_percent=1.0, adapter=give(host, graph, "DREAMVIDEO_ADAPTER", adapter))  # fmt: skip
    with pytest.raises(HostError, match="another kind of base: .*load the base it was trained on, or train it again"):
        host.run_with_probe(graph, [placed, 0])


def test_what_a_folder_lacks_is_told(host, folder):
    def told(link, graph):
        with pytest.raises(HostError) as error:
            host.run_with_probe(graph, link)
        return str(error.value)

    graph = Graph()
    assert "Load Image Base" in told([modelscope(graph, "one/"), 0], graph)
    graph = Graph()
    assert "Load ModelScope T2V" in told(from_folder(graph, "tiny/")[0], graph)
    graph = Graph()
    assert "no folder 'gone/'" in told(from_folder(graph, "gone/")[0], graph)
    (folder / MODULE).unlink()
    for path in (host.base / "models" / "animatediff_models").glob("*"):
        assert path.name in (MODULE, "lora.safetensors")
    (host.base / "models" / "animatediff_models" / MODULE).rename(folder.parent / "aside.safetensors")
    host.forget_file_lists()
    try:
        graph = Graph()
        assert "has no motion module. Get v3_sd15_mm.ckpt" in told(from_folder(graph)[0], graph)
        graph = Graph()
        assert host.run_with_probe(graph, from_folder(graph, module="none")[0])[0] is not None
    finally:
        (folder.parent / "aside.safetensors").rename(host.base / "models" / "animatediff_models" / MODULE)
        host.forget_file_lists()
    (folder / "dreamy.safetensors").unlink()
    graph = Graph()
    assert "holds no Stable Diffusion 1.5 checkpoint" in told(from_folder(graph)[0], graph)


def test_the_embedded_image_base_is_the_engines(host):
    """With the motion module and without."""
    from dreamvideo.base import EMBEDDED_FOLDER, image_base_beside, open_base
    from dreamvideo.files.base import find_base

    files = image_base_beside(find_base(EMBEDDED_FOLDER))
    found = []
    for module, path in (("automatic", files.motion_module), ("none", None)):
        graph = Graph()
        model, clip, vae, vision = host.run_with_probe(graph, *from_folder(graph, "embedded", module))
        assert vision is not None
        engine = open_base(unet=files.unet, motion_module=path, clip=files.clip, vae=files.vae, dtype=torch.float32)
        assert model.model.fingerprint == engine.fingerprint
        assert model.model.diffusion_model.config.to_dict() == engine.unet.config.to_dict()
        found.append(made(host, (model, clip, vae))["video"])
    assert all(torch.isfinite(video).all() for video in found)
    assert not torch.allclose(*found, atol=1e-3)
