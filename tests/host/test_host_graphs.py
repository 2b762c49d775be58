"""Every node but the trainers, in a real ComfyUI, beside the stock nodes."""

import json
from dataclasses import replace

import graphs
import pytest
import torch
from graphs import (
    SIZE,
    base,
    give,
    need_weight_patches,
    our_sample,
    pictures,
    prompts,
    random_adapter,
    stock_sample,
    with_lora,
)
from harness import PACK, Graph


@pytest.fixture(scope="module")
def start():
    """A graph with the base, a prompt, and an empty one."""
    graph = Graph()
    loader = base(graph)
    positive, negative = prompts(graph, [loader, 1], "a red ball rolls on the grass")
    return graph, loader, positive, negative


def copied(graph):
    new = Graph()
    new.update({name: {**node, "inputs": dict(node["inputs"])} for name, node in graph.items()})
    return new


def test_all_nodes_are_there(host):
    told = json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(host.ours) == set(told)


def test_stock_nodes_sample_and_decode_a_video(host, start):
    graph, loader, positive, negative = start
    graph = copied(graph)
    latent = stock_sample(graph, [loader, 0], positive, negative)
    images = graph.add("VAEDecode", samples=latent, vae=[loader, 2])
    got = host.run_with_probe(graph, latent, [images, 0])
    assert got[0]["samples"].shape == (4, 4, 8, 8)
    assert got[1].shape == (4, 64, 64, 3) and got[1].isfinite().all() and got[1].std() > 0


def test_vision_and_text_encode_with_stock_nodes(host, start):
    graph, loader, positive, _ = start
    graph = copied(graph)
    image = give(host, graph, "IMAGE", pictures(1))
    vision = graph.add("CLIPVisionEncode", clip_vision=[loader, 3], image=image, crop="center")
    condition, seen = host.run_with_probe(graph, positive, [vision, 0])
    assert condition[0][0].shape == (1, 77, 64)
    assert seen["image_embeds"].shape == (1, 64)


def test_stock_loader_recognises_modelscope(host):
    """With a file of the standard norm groups and heads of 64, which is all that stock loading can know."""
    from safetensors.torch import save_file

    unet = host.module("dreamvideo")
    config = unet.UNetConfig(dim=64, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, True), context_dim=64)
    folder = host.base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    save_file(unet.UNet(config).state_dict(), folder / "standard.safetensors")
    host.forget_file_lists()
    graph = Graph()
    loaded = graph.add("UNETLoader", unet_name="standard.safetensors", weight_dtype="default")
    model = host.run_with_probe(graph, [loaded, 0])[0]
    assert type(model.model).__name__ == "T2VModel"
    assert model.model.diffusion_model.config == config


def test_adapters_act_on_a_clone_only_and_in_any_order(host, start):
    graph, loader, positive, negative = start
    graph = copied(graph)
    identity = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    motion = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "motion", 1))

    def applied(model, adapter, **options):
        settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **options}
        return [graph.add("DreamVideoApplyAdapter", model=model, adapter=adapter, **settings), 0]

    plain = [loader, 0]
    one, two = applied(plain, identity), applied(plain, motion)
    results = [
        stock_sample(graph, model, positive, negative)
        for model in (plain, one, two, applied(one, motion), applied(two, identity), applied(plain, identity,
                      strength=0.0))
    ]  # fmt: skip
    again = our_sample(graph, plain, positive, negative)
    got = [each["samples"] for each in host.run_with_probe(graph, *results, again)]
    base_video, first, second, both, turned, off, _ = got
    assert not torch.allclose(base_video, first, atol=1e-3)
    assert not torch.allclose(base_video, second, atol=1e-3)
    assert not torch.allclose(first, both, atol=1e-3)
    torch.testing.assert_close(both, turned, atol=1e-4, rtol=1e-4)
    assert torch.equal(base_video, off)

    graph = copied(start[0])
    alone = host.run_with_probe(graph, stock_sample(graph, plain, positive, negative))[0]["samples"]
    assert torch.equal(alone, base_video)  # what was applied in another graph is not there


def test_window_and_mask(host, start):
    graph, loader, positive, negative = start
    graph = copied(graph)
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    nowhere = give(host, graph, "MASK", torch.zeros(1, 64, 64))
    common = {"model": [loader, 0], "adapter": adapter, "strength": 1.0}
    masked = graph.add("DreamVideoApplyAdapter", start_percent=0.0, end_percent=1.0, mask=nowhere, **common)
    early = graph.add("DreamVideoApplyAdapter", start_percent=0.0, end_percent=0.4, **common)
    models = ([loader, 0], [masked, 0], [early, 0])
    got = host.run_with_probe(graph, *(stock_sample(graph, model, positive, negative, steps=4) for model in models))
    plain, masked, early = (each["samples"] for each in got)
    torch.testing.assert_close(plain, masked, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, early, atol=1e-3)


def test_ramp_and_depth(host, start):
    graph, loader, positive, negative = start
    graph = copied(graph)
    adapter = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    common = {"model": [loader, 0], "adapter": adapter, "start_percent": 0.0, "end_percent": 1.0}
    models = [
        graph.add("DreamVideoApplyAdapter", strength=0.5, **common),
        graph.add("DreamVideoApplyAdapter", strength=1.0, ramp_start=0.5, ramp_end=0.5, **common),
        graph.add("DreamVideoApplyAdapter", strength=1.0, depth_outer=0.5, depth_middle=0.5, **common),
        graph.add("DreamVideoApplyAdapter", strength=1.0, ramp_end=0.0, **common),
        graph.add("DreamVideoApplyAdapter", strength=1.0, depth_outer=0.0, **common),
    ]
    got = host.run_with_probe(graph, *(stock_sample(graph, [model, 0], positive, negative) for model in models))
    half, by_ramp, by_depth, *others = (each["samples"] for each in got)
    torch.testing.assert_close(half, by_ramp, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(half, by_depth, atol=1e-4, rtol=1e-4)
    assert not any(torch.allclose(half, other, atol=1e-3) for other in others)


@pytest.mark.parametrize("sample", [stock_sample, our_sample])
def test_guidance_towards_a_subject(host, start, sample):
    """A file says from where on, and the node goes before it."""
    graph, loader, positive, negative = start
    graph = copied(graph)
    loaded = random_adapter(host, "identity")
    told = replace(loaded, info=replace(loaded.info, extra={"guided_from": 0.0}))
    adapter, other = (give(host, graph, "DREAMVIDEO_ADAPTER", each) for each in (loaded, told))
    common = {"model": [loader, 0], "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    models = [
        graph.add("DreamVideoApplyAdapter", adapter=adapter, guided_from=0.0, **common),
        graph.add("DreamVideoApplyAdapter", adapter=other, **common),
        graph.add("DreamVideoApplyAdapter", adapter=other, guided_from=1.0, **common),
        graph.add("DreamVideoApplyAdapter", adapter=adapter, **common),
    ]
    got = host.run_with_probe(graph, *(sample(graph, [model, 0], positive, negative) for model in models))
    guided, as_told, not_guided, plain = (each["samples"] for each in got)
    assert torch.equal(guided, as_told) and torch.equal(not_guided, plain)
    assert not torch.allclose(guided, plain, atol=1e-3)


def test_a_file_says_from_where_on_it_acts_and_the_node_goes_before_it(host, start):
    graph, loader, positive, negative = start
    graph = copied(graph)
    loaded = random_adapter(host, "identity")
    told = replace(loaded, info=replace(loaded.info, extra={"acts_from": 0.5}))
    adapter, other = (give(host, graph, "DREAMVIDEO_ADAPTER", each) for each in (loaded, told))
    common = {"model": [loader, 0], "strength": 1.0, "end_percent": 1.0}
    models = [
        graph.add("DreamVideoApplyAdapter", adapter=adapter, start_percent=0.5, **common),
        graph.add("DreamVideoApplyAdapter", adapter=other, start_percent=-1.0, **common),
        graph.add("DreamVideoApplyAdapter", adapter=other, start_percent=0.0, **common),
        graph.add("DreamVideoApplyAdapter", adapter=adapter, start_percent=-1.0, **common),
    ]
    got = host.run_with_probe(graph, *(our_sample(graph, [model, 0], positive, negative) for model in models))
    late, as_told, throughout, plain = (each["samples"] for each in got)
    assert torch.equal(late, as_told) and torch.equal(throughout, plain)
    assert not torch.allclose(late, plain, atol=1e-3)


@pytest.mark.parametrize("sample", [stock_sample, our_sample])
def test_a_region_reads_a_prompt_of_its_own(host, start, sample):
    graph, loader, positive, negative = start
    graph = copied(graph)
    other = [graph.add("CLIPTextEncode", clip=[loader, 1], text="a cat swims"), 0]
    whole = graph.add("DreamVideoPartOfVideo", frames=4, left=0.0, right=1.0, top=0.0, bottom=1.0, start=0.0, end=1.0)
    left = graph.add("DreamVideoPartOfVideo", frames=4, left=0.0, right=0.5, top=0.0, bottom=1.0, start=0.0, end=1.0)
    everywhere, half = (
        graph.add("DreamVideoPromptRegion", positive=positive, region_prompt=other, mask=[part, 0])
        for part in (whole, left)
    )
    prompts = (positive, other, [everywhere, 0], [half, 0])
    got = host.run_with_probe(graph, *(sample(graph, [loader, 0], each, negative) for each in prompts))
    own, others, whole, half = (each["samples"] for each in got)
    torch.testing.assert_close(whole, others, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(half, own, atol=1e-2) and not torch.allclose(half, others, atol=1e-2)


def test_lora_works_beside_adapters_in_both_orders(host, start):
    need_weight_patches(host)
    graph, loader, positive, negative = start
    model = host.run_with_probe(copied(graph), [loader, 0])[0]
    apply = host.module("nodes.adapters").apply
    adapter = random_adapter(host, "identity")
    first = with_lora(apply(model, None, adapter)[0])
    second = apply(with_lora(model), None, adapter)[0]
    plain = with_lora(model)

    graph = copied(graph)
    videos = []
    for each in (first, second, plain, model):
        videos.append(stock_sample(graph, give(host, graph, "MODEL", each), positive, negative))
    a, b, only, base_video = (each["samples"] for each in host.run_with_probe(graph, *videos))
    torch.testing.assert_close(a, b)
    assert not torch.allclose(a, only, atol=1e-3)
    assert not torch.allclose(only, base_video, atol=1e-3)


def test_placeholder_works_in_the_stock_text_encode(host, start):
    graph, loader, *_ = start
    graph = copied(graph)
    adapter = random_adapter(host, "identity")
    link = give(host, graph, "DREAMVIDEO_ADAPTER", adapter)
    applied = graph.add("DreamVideoApplyAdapter", model=[loader, 0], clip=[loader, 1], adapter=link, strength=1.0,
                        start_percent=0.0, end_percent=1.0)  # fmt: skip
    texts = ["a <thing>'s house", "a (<thing>:1.3), on the grass", "a ball"]
    known = [[graph.add("CLIPTextEncode", clip=[applied, 1], text=text), 0] for text in texts]
    plain = [[graph.add("CLIPTextEncode", clip=[loader, 1], text=text), 0] for text in texts]
    got = [each[0][0] for each in host.run_with_probe(graph, *known, *plain)]
    assert not torch.allclose(got[0], got[3], atol=1e-3)
    assert not torch.allclose(got[1], got[4], atol=1e-3)
    assert torch.equal(got[2], got[5])


def test_appearance_guidance_reaches_motion_adapters_only(host, start):
    graph, loader, positive, negative = start
    graph = copied(graph)
    subject = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    motion = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "motion", 1))
    image = give(host, graph, "IMAGE", pictures(1))
    moved = graph.add("DreamVideoApplyAdapter", model=[loader, 0], adapter=motion, strength=1.0, start_percent=0.0,
                      end_percent=1.0)  # fmt: skip
    common = {"positive": positive, "negative": negative, "strength": 1.0, "negative_strength": 1.0}
    by_image = graph.add("DreamVideoEncodeAppearance", clip_vision=[loader, 3], image=image, **common)
    by_subject = graph.add("DreamVideoEncodeAppearance", subject=subject, **common)
    pairs = [(positive, negative), ([by_image, 0], [by_image, 1]), ([by_subject, 0], [by_subject, 1])]
    got = host.run_with_probe(graph, *(stock_sample(graph, [moved, 0], *pair) for pair in pairs),
                              *(stock_sample(graph, [loader, 0], *pair) for pair in pairs[:2]))  # fmt: skip
    none, image, subject, plain, plain_image = (each["samples"] for each in got)
    assert not torch.allclose(none, image, atol=1e-3)
    assert not torch.allclose(image, subject, atol=1e-3)
    assert torch.equal(plain, plain_image)


def test_sampler_with_prior(host, start):
    graph, loader, positive, negative = start
    graph = copied(graph)
    clip = graph.add("VAEEncode", pixels=give(host, graph, "IMAGE", pictures(4)), vae=[loader, 2])
    plain = our_sample(graph, [loader, 0], positive, negative)
    prior = our_sample(graph, [loader, 0], positive, negative, prior=[clip, 0], prior_strength=0.5)
    a, b = (each["samples"] for each in host.run_with_probe(graph, plain, prior))
    assert a.shape == b.shape == (4, 4, 8, 8) and not torch.allclose(a, b, atol=1e-3)


def test_a_priors_noise_is_found_under_the_empty_prompt(host, start):
    graph, loader, positive, negative = start
    graph = copied(graph)
    clip = graph.add("VAEEncode", pixels=give(host, graph, "IMAGE", pictures(4)), vae=[loader, 2])
    crowd = [graph.add("CLIPTextEncode", clip=[loader, 1], text="a crowd"), 0]
    prior = {"prior": [clip, 0], "prior_strength": 0.5, "cfg": 1.0}  # of the negative prompt only the prior is left
    pairs = ((negative, {}), (crowd, {"clip": [loader, 1]}), (crowd, {}))
    drawn = [our_sample(graph, [loader, 0], positive, other, **prior, **more) for other, more in pairs]
    empty, with_clip, without = (each["samples"] for each in host.run_with_probe(graph, *drawn))
    assert torch.equal(empty, with_clip) and not torch.allclose(empty, without, atol=1e-4)


@pytest.mark.parametrize("drops", [(0.5,), (0.0,), (0.5, 0.0)])
def test_the_blank_images_strength_follows_the_motions(host, start, drops):
    """One where every motion saw blank images in training, else none: as the engine has it."""
    graph, loader, positive, negative = start
    graph, link = copied(graph), [loader, 0]
    for seed, drop in enumerate(drops):
        motion = random_adapter(host, "motion", seed)
        motion = replace(motion, info=replace(motion.info, extra={"settings": {"p_image_drop": drop}}))
        link = [graph.add("DreamVideoApplyAdapter", model=link, adapter=give(host, graph, "DREAMVIDEO_ADAPTER", motion),
                          strength=1.0, start_percent=0.0, end_percent=1.0), 0]  # fmt: skip
    subject = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "identity"))
    common = {"positive": positive, "negative": negative, "strength": 1.0, "subject": subject}
    shown = [graph.add("DreamVideoEncodeAppearance", negative_strength=each, **common) for each in (-1.0, 0.0, 1.0)]
    videos = host.run_with_probe(graph, *(our_sample(graph, link, [each, 0], [each, 1]) for each in shown))
    automatic, none, whole = (each["samples"] for each in videos)
    assert not torch.equal(none, whole)
    assert torch.equal(automatic, whole if all(drops) else none)


def test_save_load_info_and_embedding(host, start):
    graph = Graph()
    adapter = random_adapter(host, "identity")
    link = give(host, graph, "DREAMVIDEO_ADAPTER", adapter)
    saved = graph.add("DreamVideoSaveAdapter", adapter=link, filename_prefix="cat/thing", save_embedding=True)
    info = graph.add("DreamVideoAdapterInfo", adapter=link)
    path, text = host.run_with_probe(graph, [saved, 0], [info, 0])
    assert path == "dreamvideo/cat/thing_00001_.safetensors" and (host.base / "output" / path).is_file()
    assert "identity adapter" in text and "<thing> (1 vectors)" in text
    host.forget_file_lists()

    graph = Graph()
    loader = base(graph)
    loaded = graph.add("DreamVideoLoadAdapter", adapter_file="cat/thing_00001_.safetensors")
    embedded = graph.add("CLIPTextEncode", clip=[loader, 1], text="a embedding:thing-thing_00001")
    applied = graph.add("DreamVideoApplyAdapter", model=[loader, 0], clip=[loader, 1], adapter=[loaded, 0],
                        strength=1.0, start_percent=0.0, end_percent=1.0)  # fmt: skip
    named = graph.add("CLIPTextEncode", clip=[applied, 1], text="a <thing>")
    got, by_embedding, by_name = host.run_with_probe(graph, [loaded, 0], [embedded, 0], [named, 0])
    for key, tensor in adapter.adapter.state_dict().items():
        assert torch.equal(got.adapter.state_dict()[key], tensor)
    torch.testing.assert_close(by_embedding[0][0], by_name[0][0])


def test_compare_gives_one_sheet(host, start):
    graph, loader, *_ = start
    graph = copied(graph)
    links = [give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, kind)) for kind in ("identity", "motion")]
    sheet = graph.add(
        "DreamVideoCompare", model=[loader, 0], clip=[loader, 1], vae=[loader, 2], adapter_1=links[0],
        adapter_2=links[1], prompt="a <thing> on the grass", negative_prompt="", seed=0, steps=2, cfg=5.0, frames=2,
        **SIZE,
    )  # fmt: skip
    image = host.run_with_probe(graph, [sheet, 0])[0]
    assert image.ndim == 4 and image.shape[0] == 1 and image.shape[1] > 4 * 128


def test_data_nodes_show_what_is_trained_on(host):
    graph = Graph()
    photos = give(host, graph, "IMAGE", torch.rand(2, 100, 80, 3))
    mask = give(host, graph, "MASK", torch.ones(2, 100, 80))
    subject = graph.add("DreamVideoSubjectImages", images=photos, masks=mask, invert_masks=False, **SIZE)
    common = {"frames": 4, "fps": 8.0, "images_fps": 16.0, **SIZE}
    clip = give(host, graph, "IMAGE", graphs.pictures(16))
    first = graph.add("DreamVideoMotionClips", images=clip, caption="a ball rolls", **common)
    second = graph.add("DreamVideoMotionClips", images=clip, caption="a ball jumps", more_clips=[first, 0],
                       more_captions=[first, 1], **common)  # fmt: skip
    probe = graph.probe([subject, 0], [subject, 1], [second, 0], [second, 1])
    got = host.run(graph)[probe]
    assert got["value_0"][0].shape == (2, 64, 64, 3) and got["value_1"][0].shape == (2, 64, 64)
    assert [clip.shape[0] for clip in got["value_2"]] == [8, 8]  # a second at half the rate
    assert got["value_3"] == ["a ball rolls", "a ball jumps"]
