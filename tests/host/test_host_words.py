"""Words with a vector for every layer, and attention to the mask, in the host's prompts, samplers and trainers."""

import pytest
import torch
from graphs import base, give, our_sample, pictures, prompts, random_adapter, stock_sample
from harness import Graph, HostError

LAYERS = 7  # of the tiny base that read the text
RUN = {"batch_size": 2, "seed": 3, "preview_every": 0, "gradient_checkpointing": "off", "resume": False}
WORD = {"placeholder": "<thing>", "class_word": "ball", "captions": ""}


def word(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def parts(host):
    graph = Graph()
    loader = base(graph)
    loaded = host.run_with_probe(graph, *([loader, index] for index in range(4)))
    files = host.module("dreamvideo").find_base(host.base / "models" / "dreamvideo" / "tiny")
    unet = host.module("dreamvideo").load_unet(files.unet)
    return loaded, unet, host.module("dreamvideo.encoders.loading").load_encoders(files)


def token(host, rows: torch.Tensor):
    dv = host.module("dreamvideo")
    return dv.TrainedAdapter(None, dv.AdapterInfo("token", placeholder="<thing>"), {"<thing>": rows}, None)


def close(a, b, tolerance=2e-4):
    torch.testing.assert_close(a, b, atol=tolerance * float(b.abs().max()), rtol=0)


@pytest.mark.parametrize("text", ["a <thing> on the grass", "a (<thing>:1.3) and (red:0.5) <other>"])
def test_texts_are_the_engines_for_every_layer(host, parts, text):
    (_, clip, _, _), _, engine = parts
    nodes, layered = host.module("nodes.host"), host.module("dreamvideo.encoders.layered")
    vectors = {"<thing>": word(LAYERS, 2), "<other>": word(1, seed=5)}
    knows = nodes.with_tokens(nodes.with_tokens(clip, vectors), {"<more>": word(1)}).clone()  # and so does a clone
    with torch.no_grad():
        shown, values = knows.encode_from_tokens_scheduled(knows.tokenize(text))[0]
        texts = host.module("nodes.host.layered").texts_of(shown, values)
        wanted = layered.encode(engine.text, [text], vectors, weighted=True)
        close(texts, wanted)
        close(layered.encode(nodes.HostText(clip), [text], vectors, weighted=True), wanted)
        mean = {name: rows.mean(0) if rows.ndim == 3 else rows for name, rows in vectors.items()}
        close(shown, engine.text.encode([text], mean, weighted=True))
        plain = knows.encode_from_tokens_scheduled(knows.tokenize("a red ball"))[0]
    assert host.module("nodes.host.layered").texts_of(*plain) is None
    assert "Layered" in type(knows).__name__ and "Layered" not in type(clip).__name__  # which is as it was


def test_places_are_the_engines(host, parts):
    (_, clip, _, _), _, engine = parts
    captions, vectors = ["a <thing> on the grass", "two (big) ones, <thing>"], {"<thing>": word(2)}
    found = host.module("nodes.host").HostText(clip).places(captions, vectors)
    assert torch.equal(found, engine.text.places(captions, vectors)) and found.sum(1).tolist() == [2, 2]


def test_sampler(host, parts):
    """DreamVideo Sampler and the engine's sampling, from the same noise."""
    (model, clip, *_), unet, engine = parts
    rows, text = word(LAYERS, 1), "a <thing> on the grass"
    graph = Graph()
    apply = graph.add("DreamVideoApplyAdapter", model=give(host, graph, "MODEL", model),
                      adapter=give(host, graph, "DREAMVIDEO_ADAPTER", token(host, rows)), strength=1.0,
                      start_percent=0.0, end_percent=1.0, clip=give(host, graph, "CLIP", clip))  # fmt: skip
    positive, negative = prompts(graph, [apply, 1], text)
    node = our_sample(graph, [apply, 0], positive, negative, steps=4, cfg=5.0)
    got = host.run_with_probe(graph, node)[0]["samples"]
    noise = host.module("nodes.sampling").start(unet.config, 1, 4, 64, 64, 0.1)
    with torch.no_grad():
        found = host.module("dreamvideo.encoders.layered").encode(engine.text, [text, ""], {"<thing>": rows})
    sample = host.module("dreamvideo.sampling").sample_latents
    expected = sample(unet, *found.split(1), noise.transpose(0, 1)[None], steps=4, guidance=5.0)
    close(got * 0.18215, expected[0].transpose(0, 1), tolerance=2e-3)


def test_layers_that_are_equal_are_an_ordinary_word_and_act_with_regions_and_adapters(host):
    rows, videos = word(1), []
    for each in (rows, rows.expand(LAYERS, -1, -1), rows + word(LAYERS, 1, seed=9)):
        graph = Graph()
        loader = base(graph)
        chain = [[loader, 0], [loader, 1]]
        for adapter in (token(host, each), random_adapter(host, "motion")):
            given = give(host, graph, "DREAMVIDEO_ADAPTER", adapter)
            node = graph.add("DreamVideoApplyAdapter", model=chain[0], clip=chain[1], adapter=given, strength=1.0,
                             start_percent=0.0, end_percent=1.0)  # fmt: skip
            chain = [[node, 0], [node, 1]]
        positive, negative = prompts(graph, chain[1], "a ball")
        own = [graph.add("CLIPTextEncode", clip=chain[1], text="a (<thing>:1.2)"), 0]
        part = graph.add("DreamVideoPartOfVideo", frames=4, left=0.0, right=0.5, top=0.0, bottom=1.0, start=0.0,
                         end=1.0)  # fmt: skip
        region = graph.add("DreamVideoPromptRegion", positive=positive, region_prompt=own, mask=[part, 0])
        samples = (stock_sample(graph, chain[0], each, negative) for each in (own, [region, 0], positive))
        videos.append([each["samples"] for each in host.run_with_probe(graph, *samples)])
    plain, equal, layered = videos
    for one, other in zip(plain, equal, strict=True):
        torch.testing.assert_close(one, other, atol=5e-4, rtol=2e-4)  # texts side by side round otherwise than one
    assert not torch.allclose(plain[0], layered[0], atol=1e-3) and not torch.allclose(plain[1], layered[1], atol=1e-3)
    torch.testing.assert_close(plain[2], layered[2])  # who does not say the word has nothing of it


def test_what_other_nodes_make_of_the_text_holds(host):
    graph = Graph()
    loader = base(graph)
    given = give(host, graph, "DREAMVIDEO_ADAPTER", token(host, word(LAYERS, 1)))
    node = graph.add("DreamVideoApplyAdapter", model=[loader, 0], clip=[loader, 1], adapter=given, strength=1.0,
                     start_percent=0.0, end_percent=1.0)  # fmt: skip
    positive, negative = prompts(graph, [node, 1], "a <thing>", "a ball")
    zeroed = [graph.add("ConditioningZeroOut", conditioning=positive), 0]
    plain = [graph.add("ConditioningZeroOut", conditioning=negative), 0]
    one, other = host.run_with_probe(graph, *(stock_sample(graph, [loader, 0], positive, each)
                                              for each in (zeroed, plain)))  # fmt: skip
    torch.testing.assert_close(one["samples"], other["samples"])


def test_a_word_of_another_base_is_told(host):
    graph = Graph()
    loader = base(graph)
    given = give(host, graph, "DREAMVIDEO_ADAPTER", token(host, word(LAYERS + 1, 1)))
    node = graph.add("DreamVideoApplyAdapter", model=[loader, 0], clip=[loader, 1], adapter=given, strength=1.0,
                     start_percent=0.0, end_percent=1.0)  # fmt: skip
    positive, negative = prompts(graph, [node, 1], "a <thing>")
    with pytest.raises(HostError, match="learned on another base"):
        host.run_with_probe(graph, stock_sample(graph, [loader, 0], positive, negative))


MASK = torch.zeros(2, 64, 64)
MASK[:, 16:44, :40] = 1


def trained(host, kind: str, masks=MASK, **options):
    graph = Graph()
    loader = base(graph)
    common = {"model": [loader, 0], "clip": [loader, 1], "vae": [loader, 2]}
    photos = give(host, graph, "IMAGE", pictures(2))
    masked = {} if masks is None else {"masks": give(host, graph, "MASK", masks)}
    settings = {**RUN, **WORD, "steps": 3, "learning_rate": 0.01, "images": photos, **masked, **options}
    node = graph.add(f"DreamVideoTrain{kind}", **common, **settings)
    positive, negative = prompts(graph, [node, 3], "a <thing> on the grass")
    return host.run_with_probe(graph, [node, 0], [node, 1], stock_sample(graph, [node, 2], positive, negative))


def test_a_word_is_trained_with_a_vector_a_layer_and_samples(host):
    found, losses, video = trained(host, "TextualInversion", vectors=2, layered_token="on", mask_attention="on")
    plain, others, _ = trained(host, "TextualInversion", vectors=2)
    assert found.tokens["<thing>"].shape == (LAYERS, 2, 64) and plain.tokens["<thing>"].shape == (2, 64)
    assert 0 < losses["loss"][0] - others["loss"][0] <= 0.01  # a fresh one is an ordinary one, but for the maps' loss
    assert video["samples"].isfinite().all() and found.tokens["<thing>"].std(0).min() > 0
    assert "2 vectors for each of 7 layers" in host.module("nodes.adapters").describe(found)
    with pytest.raises(HostError, match="these photographs have none"):
        trained(host, "TextualInversion", None, vectors=1, mask_attention="on")


def test_a_subject_beyond_the_paper(host):
    options = {"token_steps": 2, "token_learning_rate": 0.01, "method": "dreamvideo_plus"}
    found, losses, video = trained(host, "Subject", **options)
    assert found.info.extra["method"] == "identity_plus" and len(losses["loss"]) == 5
    assert video["samples"].isfinite().all()
    without, *_ = trained(host, "Subject", None, **options)  # no masks: it says so and goes on
    assert without.tokens.keys() == found.tokens.keys()
