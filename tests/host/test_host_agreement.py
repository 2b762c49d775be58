"""The host's encoders, sampler and trainers against the engine's own."""

import pytest
import torch
from graphs import base, give, need_weight_patches, our_sample, pictures, prompts, random_adapter, stock_sample
from harness import Graph, HostError


@pytest.fixture(scope="module")
def parts(host):
    """(MODEL, CLIP, VAE, CLIP_VISION) of the host and the engine's UNet and encoders, of the same files."""
    graph = Graph()
    loader = base(graph)
    loaded = host.run_with_probe(graph, *([loader, index] for index in range(4)))
    engine = host.module("dreamvideo")
    folder = host.base / "models" / "dreamvideo" / "tiny"
    files = engine.find_base(folder)
    unet = engine.load_unet(files.unet)
    return loaded, unet, host.module("dreamvideo.encoders.loading").load_encoders(files)


def close(a, b, tolerance=2e-4):
    torch.testing.assert_close(a, b, atol=tolerance * float(b.abs().max()), rtol=0)


def test_text(host, parts):
    (_, clip, _, _), _, engine = parts
    text = host.module("nodes.host").HostText(clip)
    vectors = {"<thing>": torch.randn(2, 64, generator=torch.Generator().manual_seed(0)) * 0.1}
    prompts = ["", "a red ball rolls on the grass", "a <thing>'s house, and (brackets:1.3)", "ball " * 90]
    with torch.no_grad():
        close(text.encode(prompts, vectors), engine.text.encode(prompts, vectors))
    close(text.embed_word("plushie"), engine.text.embed_word("plushie"))
    assert text.width == engine.text.width == 64


WEIGHTED = [
    "a (red:1.4) ball",
    "((a red)) ball, (on (the:0.5) grass:1.2)",
    r"a \(red\) ball \\(rolls\\)",
    "(a <thing>'s (house:1.3):0.8) <thing>",
    "a) (red:2) ball",
    "a (red ball (rolls) (",
    "(a: red) (:2) () (ball:-1) (x:1e-1) (red:1.5",
    "(<thing>:0)",
    "((((deep))))))",
]


def test_weights_in_prompts(host, parts):
    """On the command line as in CLIP Text Encode, and in a trainer's previews."""
    (_, clip, _, _), _, engine = parts
    nodes = host.module("nodes.host")
    vectors = {"<thing>": torch.randn(2, 64, generator=torch.Generator().manual_seed(0)) * 0.1}
    stock = nodes.with_tokens(clip, vectors)
    with torch.no_grad():
        ours = engine.text.encode(WEIGHTED, vectors, weighted=True)
        close(nodes.HostText(clip).encode(WEIGHTED, vectors, weighted=True), ours)
        for prompt, state in zip(WEIGHTED, ours, strict=True):
            close(stock.encode_from_tokens_scheduled(stock.tokenize(prompt))[0][0][0], state)


def test_captions_have_no_weights(host, parts):
    (_, clip, _, _), _, engine = parts
    captions = [*(caption.replace("<thing>", "dog") for caption in WEIGHTED), r"a \(b\) \\( c"]
    with torch.no_grad():
        close(host.module("nodes.host").HostText(clip).encode(captions), engine.text.encode(captions))


def test_captions_that_are_too_long(host, parts, caplog):
    (_, clip, _, _), _, engine = parts
    vectors = {"<thing>": torch.zeros(1, 64)}
    for text in (host.module("nodes.host").HostText(clip), engine.text):
        caplog.clear()
        text.encode(["ball " * 75 + "and a red dog"])
        assert "79 tokens" in caplog.text and "'and a red dog'" in caplog.text
        with pytest.raises(ValueError, match="76 tokens.*'<thing>'"):
            text.encode(["ball " * 75 + "<thing>"], vectors)


def test_gradient_reaches_learned_tokens(host, parts):
    (_, clip, _, _), _, engine = parts
    module = host.module("nodes.host")
    with torch.inference_mode(False):
        host.module("nodes.host.training").heal(clip.cond_stage_model)
        gradients = []
        for text in (module.HostText(clip), engine.text):
            vectors = torch.full((1, 64), 0.05, requires_grad=True)
            text.encode(["a <thing>"], {"<thing>": vectors}).square().sum().backward()
            gradients.append(vectors.grad)
    close(*gradients, tolerance=1e-3)


def test_image_features(host, parts):
    (_, _, _, vision), _, engine = parts
    images = pictures(3).movedim(-1, 1)
    close(host.module("nodes.host").HostImage(vision).encode(images), engine.image.encode(images))


def test_autoencoder(host, parts):
    (_, _, vae, _), _, engine = parts
    ours = host.module("nodes.host").HostVAE(vae)
    images = pictures(3).movedim(-1, 1)
    mine, theirs = ours.encode(images), engine.vae.encode(images)
    close(mine.mean, theirs.mean)
    close(mine.std, theirs.std)
    close(ours.decode(theirs.mean), engine.vae.decode(theirs.mean))


@pytest.mark.parametrize("kinds", [(), ("identity", "motion"), ("weights", "motion")], ids="-".join)
def test_sampler(host, parts, kinds):
    """DreamVideo Sampler and the engine's sampling, from the same noise."""
    (model, clip, *_), unet, engine = parts
    if "weights" in kinds:
        need_weight_patches(host)
    adapters, sampling = host.module("dreamvideo"), host.module("dreamvideo.sampling")
    loaded = [random_adapter(host, kind) for kind in kinds]
    feature = torch.randn(1, 64, generator=torch.Generator().manual_seed(5))
    graph = Graph()
    link = give(host, graph, "MODEL", model)
    for each in loaded:
        adapter = give(host, graph, "DREAMVIDEO_ADAPTER", each)
        link = [graph.add("DreamVideoApplyAdapter", model=link, adapter=adapter, strength=0.8, start_percent=0.0,
                          end_percent=1.0), 0]  # fmt: skip
    positive, negative = prompts(graph, give(host, graph, "CLIP", clip), "a red ball")
    if loaded:
        from types import SimpleNamespace

        subject = give(host, graph, "DREAMVIDEO_ADAPTER", SimpleNamespace(features=feature))
        guided = graph.add("DreamVideoEncodeAppearance", positive=positive, negative=negative, strength=1.0,
                           negative_strength=0.5, subject=subject)  # fmt: skip
        positive, negative = [guided, 0], [guided, 1]
    got = host.run_with_probe(graph, our_sample(graph, link, positive, negative, steps=4, cfg=5.0))[0]["samples"]

    config = unet.config
    noise = host.module("nodes.sampling").start(config, 1, 4, 64, 64, 0.1)
    with torch.no_grad():
        cond, uncond = engine.text.encode(["a red ball", ""]).split(1)
    stack = adapters.AdapterStack([adapters.StackEntry(each.adapter, 0.8) for each in loaded]) if loaded else None
    expected = sampling.sample_latents(
        unet, cond, uncond, noise.transpose(0, 1)[None], stack=stack, feature=feature if loaded else None,
        feature_strengths=(0.5, 1.0), steps=4, guidance=5.0,
    )  # fmt: skip
    close(got * 0.18215, expected[0].transpose(0, 1), tolerance=2e-3)


def test_guidance_draws_towards_a_subject(host, parts):
    """From the second of two steps on, as in the engine."""
    _, unet, engine = parts
    sampling, adapters = host.module("dreamvideo.sampling"), host.module("dreamvideo.models.stack")
    loaded = random_adapter(host, "identity")
    graph = Graph()
    loader = base(graph)
    placed = graph.add("DreamVideoApplyAdapter", model=[loader, 0], strength=1.0, start_percent=0.0, end_percent=1.0,
                       guided_from=0.6, adapter=give(host, graph, "DREAMVIDEO_ADAPTER", loaded))  # fmt: skip
    positive, negative = prompts(graph, [loader, 1], "a red ball")
    got = host.run_with_probe(graph, our_sample(graph, [placed, 0], positive, negative))[0]["samples"]
    noise = host.module("nodes.sampling").start(unet.config, 1, 4, 64, 64, 0.1)
    with torch.no_grad():
        cond, uncond = engine.text.encode(["a red ball", ""]).split(1)
    stack = adapters.AdapterStack([adapters.StackEntry(loaded.adapter, guided_from=0.6)])
    expected = sampling.sample_latents(
        unet, cond, uncond, noise.transpose(0, 1)[None], stack=stack, steps=2, guidance=9.0
    )
    close(got * 0.18215, expected[0].transpose(0, 1), tolerance=2e-3)


@pytest.mark.parametrize("sample", [our_sample, stock_sample])
def test_regions_that_are_drawn_apart(host, parts, sample):
    """For half of the steps, with an adapter in one of them, as in the engine; the stock sampler takes them, too."""
    _, unet, engine = parts
    sampling, adapters = host.module("dreamvideo.sampling"), host.module("dreamvideo.models.stack")
    regions = host.module("dreamvideo.models.regions")
    loaded = random_adapter(host, "identity")
    halves = [regions.part_of_video(4, across=across) for across in ((0.0, 0.5), (0.5, 1.0))]
    graph = Graph()
    loader = base(graph)
    masks = [
        [graph.add("DreamVideoPartOfVideo", frames=4, left=left, right=left + 0.5, top=0.0, bottom=1.0, start=0.0,
                   end=1.0), 0] for left in (0.0, 0.5)
    ]  # fmt: skip
    placed = graph.add("DreamVideoApplyAdapter", model=[loader, 0], clip=[loader, 1], strength=1.0, start_percent=0.0,
                       end_percent=1.0, mask=masks[0],
                       adapter=give(host, graph, "DREAMVIDEO_ADAPTER", loaded))  # fmt: skip
    positive, negative = prompts(graph, [placed, 1], "a red ball")
    own = [[graph.add("CLIPTextEncode", clip=[placed, 1], text=text), 0] for text in ("a cat", "a dog")]
    for text, mask in zip(own, masks, strict=True):
        node = graph.add("DreamVideoPromptRegion", positive=positive, negative=negative, region_prompt=text, mask=mask,
                         apart=0.5)  # fmt: skip
        positive, negative = [node, 0], [node, 1]
    got = host.run_with_probe(graph, sample(graph, [placed, 0], positive, negative))[0]["samples"]
    if sample is stock_sample:
        for name in (positive[0], negative[0]):
            graph[name]["inputs"]["apart"] = 0.0
        together = host.run_with_probe(graph, sample(graph, [placed, 0], positive, negative))[0]["samples"]
        assert torch.isfinite(got).all() and not torch.allclose(got, together, atol=1e-2)
        return

    noise = host.module("nodes.sampling").start(unet.config, 1, 4, 64, 64, 0.1)
    with torch.no_grad():
        cond, uncond, *texts = engine.text.encode(["a red ball", "", "a cat", "a dog"]).split(1)
    apart = [regions.Region(text, half, 0.5) for text, half in zip(texts, halves, strict=True)]
    stack = adapters.AdapterStack([adapters.StackEntry(loaded.adapter, mask=halves[0])], regions=apart)
    expected = sampling.sample_latents(
        unet, cond, uncond, noise.transpose(0, 1)[None], stack=stack, steps=2, guidance=9.0
    )
    close(got * 0.18215, expected[0].transpose(0, 1), tolerance=2e-3)


def test_a_region_apart_wants_the_negative_prompt(host):
    graph = Graph()
    loader = base(graph)
    positive, negative = prompts(graph, [loader, 1], "a red ball")
    part = graph.add("DreamVideoPartOfVideo", frames=4, left=0.0, right=0.5, top=0.0, bottom=1.0, start=0.0, end=1.0)
    node = graph.add("DreamVideoPromptRegion", positive=positive, region_prompt=negative, mask=[part, 0], apart=0.5)
    with pytest.raises(HostError, match="connect it to negative"):
        host.run_with_probe(graph, our_sample(graph, [loader, 0], [node, 0], negative))


def test_stock_ddim_is_the_papers(host, parts):
    """KSampler's ddim with ddim_uniform, given noise of the right size, ends where the engine does."""
    import comfy.sample

    (model, clip, *_), unet, engine = parts
    sampling, diffusion = host.module("dreamvideo.sampling"), host.module("dreamvideo.models.diffusion")
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    sigma = host.module("nodes.host.sampling")._Ddim(10, diffusion.SCHEDULE).sigma(diffusion.ddim_timesteps(10)[0])
    scaled = noise * (1 + sigma**2) ** 0.5 / sigma  # the host multiplies by sigma
    with torch.inference_mode():
        conditions = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red ball", "")]
        got = comfy.sample.sample(
            model, scaled, 10, 5.0, "ddim", "ddim_uniform", *conditions, torch.zeros_like(noise), seed=0,
            disable_pbar=True,
        )  # fmt: skip
    with torch.no_grad():
        cond, uncond = engine.text.encode(["a red ball", ""]).split(1)
    expected = sampling.sample_latents(unet, cond, uncond, noise.transpose(0, 1)[None], steps=10, guidance=5.0)
    # The host goes on to no noise at all where the authors stop at the first cumulative alpha.
    close(got * 0.18215, expected[0].transpose(0, 1), tolerance=0.05)


def test_one_prediction_is_the_engines(host, parts):
    (model, *_), unet, _ = parts
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 3, 8, 8, generator=generator), torch.randn(2, 77, 64, generator=generator)
    t = torch.tensor([10.0, 600.0])
    inner = host.module("nodes.host").unet_of(model)
    frames = x.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        got = inner(frames, t.repeat_interleave(3), context.repeat_interleave(3, 0),
                    transformer_options={"cond_or_uncond": [0, 1]})  # fmt: skip
        close(got, unet(x, t, context).transpose(1, 2).flatten(0, 1), tolerance=1e-5)
