"""What holds whether the host keeps a model's weights where they are loaded or pages them in as they are used."""

from dataclasses import replace

import pytest
import torch
from graphs import (
    base,
    give,
    need_weight_patches,
    our_sample,
    prompts,
    random_adapter,
    stock_sample,
    with_lora,
)
from harness import Cancelled, Graph
from test_host_agreement import close
from test_host_training import STATES, forget_states, start, train_motion


@pytest.fixture
def loaded(host):
    graph = Graph()
    loader = base(graph)
    return host.run_with_probe(graph, *([loader, index] for index in range(4)))


def is_dynamic(host, patcher):
    return host.module("nodes.host.paging").is_dynamic(patcher)


def test_models_are_paged_where_the_host_pages(host, loaded, request):
    paged = "paged" in request.node.callspec.id
    assert is_dynamic(host, loaded[0]) == is_dynamic(host, loaded[1].patcher) == paged


@pytest.mark.parametrize("precision", ["default", "fp32", "fp16", "bf16", "fp8_e4m3fn"])
def test_a_base_keeps_the_precision_it_is_loaded_with(host, precision):
    """Of the embedded base, whose file is in float16."""
    graph = Graph()
    loader = graph.add("DreamVideoLoadModelScope", base="embedded", clip_file="automatic", vae_file="automatic",
                       precision=precision)  # fmt: skip
    positive, negative = prompts(graph, [loader, 1], "a red ball")
    video = stock_sample(graph, [loader, 0], positive, negative, frames=2, steps=1)
    model, video = host.run_with_probe(graph, [loader, 0], video)
    wanted = host.module("nodes.loaders").PRECISIONS[precision]
    unet = model.model.diffusion_model
    assert video["samples"].isfinite().all()
    assert wanted in (None, model.model.get_dtype()) and model.model.get_dtype() == unet.weight_dtype
    kept = host.module("nodes.host.paging").static_clone(model).model.diffusion_model
    assert {tensor.dtype for tensor in kept.state_dict().values()} == {unet.weight_dtype}


def test_the_network_that_trains_is_the_one_that_is_loaded(host, loaded, monkeypatch):
    """Forwards and previews run on it alone, its weights lie still, and the MODEL's LoRA counts among them."""
    model = loaded[0]
    need_weight_patches(host)
    ran, unet_class = set(), host.module("nodes.host.model").HostUNet
    whole = unet_class.forward

    def forward(unet, *given, **named):
        ran.add(unet)
        return whole(unet, *given, **named)

    monkeypatch.setattr(unet_class, "forward", forward)
    results = []
    for each in (model, with_lora(model)):
        graph, loader, common = start(host)
        common["model"] = give(host, graph, "MODEL", each)
        node = train_motion(host, graph, common, loader, preview_every=3, resume=False, seed=71)
        results.append(host.run_with_probe(graph, [node, 0], [node, 1]))
    paged = is_dynamic(host, model)
    assert host.previews and (model.model.diffusion_model not in ran) == paged
    for unet in ran:
        assert not any(hasattr(layer, "_v") for layer in unet.modules())
    (plain, plain_loss), (patched, patched_loss) = results
    assert plain_loss["loss"] != patched_loss["loss"]
    assert plain.info.base_fingerprint == patched.info.base_fingerprint == model.model.fingerprint


def test_pages_would_spoil_a_backward_pass(host, loaded):
    """Why training asks for weights that stay. That this fails shows that the simulation can."""
    model = loaded[0]
    if not is_dynamic(host, model):
        pytest.skip("Nothing is paged here.")
    import comfy.model_management

    unet = host.module("nodes.host").unet_of(model)
    adapters = host.module("dreamvideo")
    adapter = random_adapter(host, "motion").adapter
    with torch.inference_mode(False), torch.enable_grad():
        comfy.model_management.load_models_gpu([model])
        host.module("nodes.host.training").heal(unet)
        adapter.requires_grad_()
        x, context = torch.randn(1, 4, 2, 8, 8).to(unet.dtype), torch.randn(1, 77, 64)
        stack = adapters.AdapterStack([adapters.StackEntry(adapter)])
        unet(x, torch.tensor([500]), context, adapters=stack).square().sum().backward()
    gradients = [parameter.grad for parameter in adapter.parameters() if parameter.grad is not None]
    assert not all(gradient.isfinite().all() for gradient in gradients)


def test_a_network_that_cannot_be_loaded_twice_is_told(host, loaded, monkeypatch):
    model = loaded[0].clone()
    if not is_dynamic(host, model):
        pytest.skip("Nothing is paged here.")
    model.cached_patcher_init = None
    with pytest.raises(ValueError, match="pages the weights of this T2VModel .* --disable-dynamic-vram"):
        host.module("nodes.host.paging").static_clone(model)


def test_deltas_are_the_hosts_patches_and_merged_once(host, loaded, monkeypatch):
    model, clip, *_ = loaded
    need_weight_patches(host)
    deltas = host.module("dreamvideo.models.deltas")
    monkeypatch.setattr(deltas, "merge", lambda *_: pytest.fail("Weight deltas are merged in a forward."))
    adapter = random_adapter(host, "weights")
    applied = host.module("nodes.adapters").apply(model, None, adapter, 0.8)[0]
    names = {f"diffusion_model.{name}" for name in adapter.adapter.changes()}
    assert set(applied.patches) == names and not model.patches
    graph = Graph()
    conditions = prompts(graph, give(host, graph, "CLIP", clip), "a red ball")
    videos = [stock_sample(graph, give(host, graph, "MODEL", each), *conditions) for each in (model, applied)]
    plain, changed = (each["samples"] for each in host.run_with_probe(graph, *videos))
    assert not torch.allclose(plain, changed, atol=1e-3)
    host.module("nodes.host.deltas").take_off_deltas(applied)
    assert not applied.patches


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)], ids="{0[0]}-{0[1]}".format)
def test_deltas_in_their_part_of_the_way(host, loaded, window):
    """As the engine's, which merges them for each prediction: beside a LoRA of the host and on the other half none."""
    model, clip, *_ = loaded
    adapter = random_adapter(host, "weights")
    graph = Graph()
    link = [graph.add("DreamVideoApplyAdapter", model=give(host, graph, "MODEL", model),
                      adapter=give(host, graph, "DREAMVIDEO_ADAPTER", adapter), strength=0.8, start_percent=window[0],
                      end_percent=window[1]), 0]  # fmt: skip
    conditions = prompts(graph, give(host, graph, "CLIP", clip), "a red ball")
    got = host.run_with_probe(graph, our_sample(graph, link, *conditions, steps=4, cfg=5.0))[0]["samples"]
    expected = engine_sample(host, adapter, window)
    close(got * 0.18215, expected, tolerance=2e-3)


def test_small_deltas_count_on_a_base_in_eight_bits(host):
    """They are added to what the weights are worth, and not rounded away with them."""
    adapter = random_adapter(host, "weights")
    with torch.no_grad():
        for name, parameter in adapter.adapter.named_parameters():
            if name.endswith(".up"):
                parameter.mul_(0.02)
    graph = Graph()
    loader = graph.add("DreamVideoLoadModelScope", base="tiny/", clip_file="automatic", vae_file="automatic",
                       precision="fp8_e4m3fn")  # fmt: skip
    link = [graph.add("DreamVideoApplyAdapter", model=[loader, 0], strength=0.8, start_percent=0.0, end_percent=1.0,
                      adapter=give(host, graph, "DREAMVIDEO_ADAPTER", adapter)), 0]  # fmt: skip
    conditions = prompts(graph, [loader, 1], "a red ball")
    videos = [our_sample(graph, each, *conditions, steps=4, cfg=5.0) for each in ([loader, 0], link)]
    plain, changed = (each["samples"] * 0.18215 for each in host.run_with_probe(graph, *videos))
    wanted = engine_sample(host, adapter, stored=torch.float8_e4m3fn) - engine_sample(host, stored=torch.float8_e4m3fn)
    assert wanted.abs().max() > 1e-4
    close(changed - plain, wanted, tolerance=0.05)


def engine_sample(host, adapter=None, window=(0.0, 1.0), stored=None):
    """[4, 4, 8, 8]: the engine's video of the tiny base, its weights rounded to a precision."""
    engine = adapters = host.module("dreamvideo")
    files = engine.find_base(host.base / "models" / "dreamvideo" / "tiny")
    unet, encoders = engine.load_unet(files.unet), host.module("dreamvideo.encoders.loading").load_encoders(files)
    if stored is not None:
        for parameter in unet.parameters():
            parameter.data = parameter.data.to(stored).float()
    noise = host.module("nodes.sampling").start(unet.config, 1, 4, 64, 64, 0.1)
    with torch.no_grad():
        cond, uncond = encoders.text.encode(["a red ball", ""]).split(1)
    stack = None
    if adapter is not None:
        stack = adapters.AdapterStack([adapters.StackEntry(adapter.adapter, 0.8, window=window)])
    latents = host.module("dreamvideo.sampling").sample_latents(
        unet, cond, uncond, noise.transpose(0, 1)[None], stack=stack, steps=4, guidance=5.0
    )
    return latents[0].transpose(0, 1)


def test_halves_of_guidance_may_come_one_by_one(host, loaded):
    """As hosts send them where memory is short, or to two cards."""
    import comfy.model_management

    model = loaded[0]
    inner, key = host.module("nodes.host").unet_of(model), host.module("nodes.host.model").KEY
    entry = host.module("dreamvideo.models.stack").StackEntry(random_adapter(host, "motion").adapter)
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(6, 4, 8, 8, generator=generator), torch.randn(6, 77, 64, generator=generator)
    feature, strength = torch.randn(6, 64, generator=generator), torch.ones(6, 1)
    t = torch.full((6,), 500.0)

    def predicted(part, halves):
        options = {"cond_or_uncond": halves, key: (entry,)}
        conditions = {f"{key}_appearance": feature[part], f"{key}_appearance_strength": strength[part]}
        return inner(x[part], t[part], context[part], transformer_options=options, **conditions)

    feature[3:] = feature[3]
    feature[:3] = feature[0]
    context[3:], context[:3] = context[3].clone(), context[0].clone()
    with torch.no_grad():
        comfy.model_management.load_models_gpu([model])
        both = predicted(slice(0, 6), [0, 1])
        one_by_one = torch.cat([predicted(slice(0, 3), [0]), predicted(slice(3, 6), [1])])
    close(both, one_by_one, tolerance=1e-5)


def test_what_was_trained_is_written_by_the_node_that_trained_it(host):
    forget_states(host)
    graph, loader, common = start(host)
    train_motion(host, graph, common, loader, 2, seed=81, filename_prefix="by-itself")
    host.run(graph)  # nothing takes its outputs
    files = list((host.base / "output" / "dreamvideo").glob("by-itself_*.safetensors"))
    assert len(files) == 1
    info = host.module("dreamvideo").load_adapter(files[0]).info
    assert info.kind == "motion" and info.steps == 2
    assert any("Saved motion adapter" in text and files[0].name in text for text in host.server.texts)
    files[0].unlink()


@pytest.mark.parametrize("host", ["static"], indirect=True)
def test_states_of_what_is_done_leave_output_and_others_stay(host):
    """However many others succeed, and whatever their name, what was cancelled can be gone on from."""
    forget_states(host)
    graph, loader, common = start(host)
    cancelled = train_motion(host, graph, common, loader, 6, seed=91)
    host.cancel_after = 3
    with pytest.raises(Cancelled):
        host.run(graph)
    states = host.base / "output" / STATES
    kept = {path: path.read_bytes() for path in states.rglob("*.safetensors")}
    assert len(kept) == 1
    note = next(iter(kept)).with_name("note.txt")  # a user's own
    note.write_text("mine")
    for seed in range(92, 96):
        other, loader, common = start(host)
        train_motion(host, other, common, loader, 1, seed=seed)
        host.run(other)
    assert {path: path.read_bytes() for path in states.rglob("*.safetensors")} == kept
    assert len(list((host.base / "temp" / STATES).iterdir())) == host.module("dreamvideo.training.places").SHELVED
    assert host.run_with_probe(graph, [cancelled, 0])[0].info.steps == 6
    assert [path for path in states.rglob("*") if path.is_file()] == [note]


def test_an_adapter_of_another_base_where_it_is_wanted(host, loaded):
    model = loaded[0]
    adapter = random_adapter(host, "identity")
    foreign = model.model.fingerprint.replace(":", ":9", 1)
    adapter = replace(adapter, info=replace(adapter.info, base_fingerprint=foreign))
    apply = host.module("nodes.adapters").apply
    with pytest.raises(ValueError, match="other weights.*other_base"):
        apply(model, None, adapter)
    assert apply(model, None, adapter, other_base=True)[0] is not model
    graph = Graph()
    parts = {
        name: give(host, graph, name.upper(), part)
        for name, part in zip(("model", "clip", "vae"), loaded, strict=False)
    }
    sheet = graph.add("DreamVideoCompare", **parts, adapter_1=give(host, graph, "DREAMVIDEO_ADAPTER", adapter),
                      prompt="a <thing>", negative_prompt="", seed=0, steps=1, cfg=5.0, frames=2, width=64, height=64,
                      other_base=True)  # fmt: skip
    assert host.run_with_probe(graph, [sheet, 0])[0].ndim == 4


def test_attention_over_more_rows_than_the_host_takes_at_once(host, monkeypatch):
    import comfy.ldm.modules.attention as attention

    ours = host.module("nodes.host.model")._attention
    q, k, v = torch.randn(3, 10, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for limit in (2**31, 4):
        monkeypatch.setattr(attention, "SDP_BATCH_LIMIT", limit)
        torch.testing.assert_close(ours(q, k, v), whole)
