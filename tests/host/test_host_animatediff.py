"""AnimateDiff in the host: a stock checkpoint's MODEL and a motion module, trained on and sampled."""

import pytest
import torch
from graphs import SIZE, give, need_weight_patches, our_sample, pictures, prompts, random_adapter, stock_sample
from harness import Graph, HostError
from image_files import CHECKPOINT, LORA, MODULE


def loaded(graph: Graph, module: str = MODULE) -> tuple[list, list, list, list]:
    """Links to the video model, clip, vae, and the image model."""
    stock = graph.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    node = graph.add("DreamVideoLoadAnimateDiff", model=[stock, 0], motion_module=module)
    return [node, 0], [stock, 1], [stock, 2], [stock, 0]


def trainer(host, graph: Graph, kind: str, parts, **options) -> list:
    model, clip, vae, _ = parts
    common = {"model": model, "clip": clip, "vae": vae, "steps": 2, "learning_rate": 1e-2, "seed": 0,
              "batch_size": 1, "preview_every": 0, "snapshot_every": 0, "gradient_checkpointing": "off",
              "resume": False, "filename_prefix": kind}  # fmt: skip
    common["method"] = options.pop("method", "dreamvideo")
    images = give(host, graph, "IMAGE", pictures(2 if kind == "subject" else 4))
    if kind == "subject":
        node = graph.add("DreamVideoTrainSubject", images=images, placeholder="<it>", class_word="ball",
                         captions="a <it>", token_steps=2, token_learning_rate=1e-2, **common, **options)  # fmt: skip
    else:
        clips = graph.add("DreamVideoMotionClips", images=images, caption="a ball", frames=4, fps=8.0,
                          images_fps=8.0, **SIZE)  # fmt: skip
        node = graph.add("DreamVideoTrainMotion", clips=[clips, 0], captions=[clips, 1], frames=[clips, 2],
                         text_drop=0.5, image_drop="automatic", **common, **options)  # fmt: skip
    return [node, 0]


def test_it_predicts_what_the_engines_own_network_does(host, image_files):
    graph = Graph()
    (model,) = host.run_with_probe(graph, loaded(graph)[0])
    inner = model.model
    assert inner.model_sampling.linear_start == pytest.approx(0.00085)
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, 0)
    assert torch.allclose(inner.model_sampling.sigmas.double().cpu(), ((1 - kept) / kept).sqrt(), rtol=1e-4)
    video, text = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 77, 24)
    unet = host.module("nodes.host").HostUNet
    kept_model = host.module("nodes.host.paging").static_clone(model)
    host.management.load_models_gpu([kept_model])
    assert isinstance(kept_model.model.diffusion_model, unet)
    with torch.no_grad():
        ours = image_files(video, torch.tensor([500]), text)
        frames = video[0].transpose(0, 1)
        found = kept_model.model.diffusion_model(
            frames, torch.full((4,), 500.0), text.expand(4, -1, -1), transformer_options={"cond_or_uncond": [0]}
        )
    assert torch.allclose(found.transpose(0, 1)[None], ours, atol=1e-4)
    assert inner.fingerprint == host.module("dreamvideo.files.fingerprint").fingerprint(image_files)


def test_a_lora_counts_before_and_behind_the_loader(host, image_files):
    need_weight_patches(host)
    import comfy.sd

    graph = Graph()
    video, _, _, image = loaded(graph)
    stock, plain = host.run_with_probe(graph, image, video)
    generator = torch.Generator().manual_seed(3)
    up, down = (torch.randn(shape, generator=generator) for shape in ((32, 4), (4, 32)))
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    before = host.module("nodes.host").with_motion_module(
        comfy.sd.load_lora_for_models(stock, None, lora, 1.0, 0.0)[0],
        host.base / "models" / "animatediff_models" / MODULE,
    )
    behind = comfy.sd.load_lora_for_models(plain, None, lora, 1.0, 0.0)[0]
    results = []
    for each in (plain, before, behind):
        graph = Graph()
        stock_node = graph.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
        words = prompts(graph, [stock_node, 1], "a ball")
        sampled = stock_sample(graph, give(host, graph, "MODEL", each), *words)
        results.append(host.run_with_probe(graph, sampled)[0]["samples"])
    assert torch.allclose(results[1], results[2], atol=1e-5)
    assert (results[0] - results[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["subject", "motion"])
def test_trains_and_both_samplers_take_it(host, image_files, kind):
    graph = Graph()
    parts = loaded(graph)
    learned = trainer(host, graph, kind, parts)
    adapter = host.run_with_probe(graph, learned)[0]
    assert adapter.info.unet_config.family == "image" and adapter.adapter is not None
    graph = Graph()
    model, clip, _, _ = loaded(graph)
    for parameter in adapter.adapter.parameters():
        parameter.data += 0.02
    placed = graph.add("DreamVideoApplyAdapter", model=model, clip=clip, adapter=give(host, graph,
                       "DREAMVIDEO_ADAPTER", adapter), strength=1.0, start_percent=0.0, end_percent=1.0)  # fmt: skip
    words = prompts(graph, [placed, 1], "a ball")
    links = [stock_sample(graph, on, *words) for on in (model, [placed, 0])]
    links += [our_sample(graph, on, *words) for on in (model, [placed, 0])]
    plain, changed, ours_plain, ours = (each["samples"] for each in host.run_with_probe(graph, *links))
    assert plain.shape == ours.shape == (4, 4, 8, 8)
    for one, other in ((plain, changed), (ours_plain, ours)):
        assert torch.isfinite(other).all() and (one - other).abs().max() > 1e-4


def test_tune_a_video_learns_a_clip_and_inverts_it(host, image_files):
    graph = Graph()
    parts = loaded(graph, "none")
    learned = trainer(host, graph, "motion", parts, method="tune_a_video")
    adapter = host.run_with_probe(graph, learned)[0]
    assert adapter.info.kind == "tune_a_video"
    graph = Graph()
    model, clip, vae, _ = loaded(graph, "none")
    placed = graph.add("DreamVideoApplyAdapter", model=model, adapter=give(host, graph, "DREAMVIDEO_ADAPTER", adapter),
                       strength=1.0, start_percent=0.0, end_percent=1.0)  # fmt: skip
    words = prompts(graph, clip, "a ball")
    prior = graph.add("VAEEncode", pixels=give(host, graph, "IMAGE", pictures(4)), vae=vae)
    links = [our_sample(graph, on, *words, prior=[prior, 0], prior_strength=1.0) for on in (model, [placed, 0])]
    plain, tuned = (each["samples"] for each in host.run_with_probe(graph, *links))
    assert torch.isfinite(tuned).all() and (plain - tuned).abs().max() > 1e-4


def fails(host, graph: Graph, link: list, told: str) -> None:
    with pytest.raises(HostError, match=told):
        host.run_with_probe(graph, link)


def test_what_does_not_go_together_is_refused(host, image_files):
    graph = Graph()
    model, clip, _, _ = loaded(graph)
    words = prompts(graph, clip, "a ball")
    fails(host, graph, our_sample(graph, model, *words, frames=33), "positions for 32 frames and the video has 33")
    graph = Graph()
    fails(host, graph, loaded(graph, LORA)[0], "is a motion LoRA, not a motion module")
    graph = Graph()
    fails(host, graph, loaded(graph, "missing.ckpt")[0], "no motion module .*models/animatediff_models")
    graph = Graph()
    again = graph.add("DreamVideoLoadAnimateDiff", model=loaded(graph)[0], motion_module=MODULE)
    fails(host, graph, [again, 0], "is a video model already")
    graph = Graph()
    ours = give(host, graph, "DREAMVIDEO_ADAPTER", random_adapter(host, "motion"))
    placed = graph.add("DreamVideoApplyAdapter", model=loaded(graph)[0], adapter=ours, strength=1.0,
                       start_percent=0.0, end_percent=1.0)  # fmt: skip
    fails(host, graph, [placed, 0], "another kind of base: it was made for a ModelScope text-to-video UNet")
    graph = Graph()
    lora = graph.add("DreamVideoLoadAdapter", adapter_file=LORA)
    fails(host, graph, [lora, 0], "motion LoRA")


@pytest.mark.parametrize(
    ("shape", "told"), [("xl", "a Stable Diffusion XL UNet"), ("two", "a Stable Diffusion 2 UNet")]
)
def test_other_image_models_are_refused(host, image_files, shape, told):
    graph = Graph()
    (stock,) = host.run_with_probe(graph, loaded(graph)[3])
    image = host.module("nodes.host.image")
    state = image._weights(stock)
    if shape == "xl":
        state["label_emb.0.0.weight"] = torch.zeros(2, 2)
    else:
        state = {key: each[..., 0, 0] if key.endswith("proj_in.weight") else each for key, each in state.items()}
    with pytest.raises(ValueError, match=told):
        image._config(stock, state)
