"""Properties of adapters and their stack, files, and agreement with what the authors' network computes."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dreamvideo.files.adapter_info import AdapterInfo, check_fits
from dreamvideo.files.adapters import load_adapter, save_adapter
from dreamvideo.files.foreign_adapters import save_authors_adapter, save_authors_embedding
from dreamvideo.models.adapters import Adapter, AdapterConfig, Bottleneck
from dreamvideo.models.config import UNetConfig, level_of, transformer_sites
from dreamvideo.models.stack import LAST_TIMESTEP, AdapterStack, StackEntry
from dreamvideo.models.unet import UNet

ORACLES = Path(__file__).parents[2] / "shared" / "oracles"
needs_oracles = pytest.mark.skipif(not ORACLES.is_dir(), reason="needs ../shared/oracles")

# The configuration of the oracles.
TINY = UNetConfig(
    dim=32, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, True), head_dim=8, first_heads=6, context_dim=32
)
WIDTH = 24  # of image features
CONFIGS = {"identity": AdapterConfig.identity(), "motion": AdapterConfig.motion(condition_dim=WIDTH)}
SPATIAL_SITE = "input_blocks.1.1.transformer_blocks.0.attn2"
TEMPORAL_SITE = "input_blocks.1.2.transformer_blocks.0.attn2"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


@pytest.fixture(scope="module")
def unet() -> UNet:
    """Every weight random: a new UNet's residual branches are zero, and adapters would not show."""
    model = UNet(TINY).eval().requires_grad_(False)
    for index, parameter in enumerate(model.parameters()):
        drawn = random(*parameter.shape, seed=index)
        parameter.data.copy_(drawn / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1 + 0.2 * drawn)
    return model


def trained(kind: str, seed: int = 1, **overrides) -> Adapter:
    """An adapter whose residuals are not zero."""
    base = CONFIGS[kind].to_dict()
    config = AdapterConfig.from_dict({**base, **overrides})
    adapter = Adapter(config, TINY, generator=generator(seed))
    for name, parameter in adapter.named_parameters():
        if "up_linear" in name:
            parameter.data.copy_(0.2 * random(*parameter.shape, seed=seed))
    return adapter


def inputs(batch: int = 2, frames: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    timesteps = torch.tensor([800, 100, 500][:batch])
    return random(batch, 4, frames, 4, 8), timesteps, random(batch, 77, TINY.context_dim, seed=5)


@torch.no_grad()
def run(unet: UNet, stack: AdapterStack | None, batch: int = 2, frames: int = 3) -> torch.Tensor:
    return unet(*inputs(batch, frames), adapters=stack)


def differs(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).abs().max() > 1e-3


# What an adapter is


@pytest.mark.parametrize(("kind", "tensors", "parameters"), [("identity", 64, 12_409_120), ("motion", 306, 77_966_496)])
def test_full_size(kind, tensors, parameters):
    config = AdapterConfig.identity() if kind == "identity" else AdapterConfig.motion()
    state = Adapter(config, UNetConfig(), device="meta").state_dict()
    assert len(state) == tensors
    assert sum(value.numel() for value in state.values()) == parameters
    if ORACLES.is_dir():
        keys = json.loads((ORACLES / "full_size_keys.json").read_text())[kind]
        assert {key: list(value.shape) for key, value in state.items()} == keys


@pytest.mark.parametrize("kind", CONFIGS)
def test_initialisation_comes_from_the_generator_alone(kind):
    before = torch.get_rng_state()
    first, again, other = (Adapter(CONFIGS[kind], TINY, generator=generator(seed)).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key, value in first.items():
        if "up_linear" in key:
            assert not value.any()
        else:
            fan_in = first[key.replace("bias", "weight")].shape[1]
            assert not torch.equal(value, other[key])
            assert value.abs().max() <= fan_in**-0.5
            assert value.abs().max() > 0.5 * fan_in**-0.5


def test_configuration_decides_sites_and_widths():
    serial = Adapter(AdapterConfig.identity(sublayers=("ff", "attn1"), hidden=5, placement="serial"), TINY)
    spatial = [site for site in transformer_sites(TINY) if site.kind == "spatial"]
    assert len(serial.state_dict()) == len(spatial) * 2 * 4
    for site in spatial:
        assert serial.at(f"{site.name}.transformer_blocks.0.attn2") is None
        assert serial.at(f"{site.name}.transformer_blocks.0.ff").down_linear.weight.shape == (5, site.width)
    assert AdapterConfig.from_dict(json.loads(json.dumps(serial.config.to_dict()))) == serial.config


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "style"}, {"sublayers": ()}, {"sublayers": ("attn3",)}, {"hidden": 0}, {"placement": "middle"}],
)
def test_nonsense_configuration_is_refused(wrong):
    with pytest.raises(ValueError, match="dapter"):
        AdapterConfig(**{"kind": "motion", "sublayers": ("attn1",), **wrong})


# What a stack does to the UNet


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("placement", ["parallel", "serial"])
def test_fresh_adapter_is_the_base_bit_for_bit(unet, kind, placement):
    config = AdapterConfig.from_dict({**CONFIGS[kind].to_dict(), "placement": placement})
    stack = AdapterStack([StackEntry(Adapter(config, TINY))], feature=random(1, WIDTH))
    assert torch.equal(run(unet, stack), run(unet, None))


@pytest.mark.parametrize("kind", CONFIGS)
def test_strength_scales_and_zero_is_the_base(unet, kind):
    base = run(unet, None)
    full, half, none = (run(unet, AdapterStack([StackEntry(trained(kind), strength)])) for strength in (1, 0.5, 0))
    assert torch.equal(none, base)
    assert torch.equal(run(unet, AdapterStack([])), base)
    assert differs(full, base) and differs(half, base) and differs(half, full)


def test_order_of_a_stack_does_not_matter(unet):
    entries = [
        StackEntry(trained("identity", 1), 0.7),
        StackEntry(trained("identity", 2), 0.4, mask=torch.eye(8)),
        StackEntry(trained("motion", 3)),
        StackEntry(trained("motion", 4), 0.5, window=(0.0, 0.6)),
    ]
    feature = random(2, WIDTH)
    forward = run(unet, AdapterStack(entries, feature))
    torch.testing.assert_close(run(unet, AdapterStack(entries[::-1], feature)), forward, atol=1e-5, rtol=1e-5)
    for index in range(len(entries)):
        assert differs(run(unet, AdapterStack(entries[:index] + entries[index + 1 :], feature)), forward)


def test_gradients_reach_adapters_only(unet):
    adapter = trained("motion")
    stack = AdapterStack([StackEntry(adapter)], feature=random(2, WIDTH))
    unet(*inputs(), adapters=stack).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_gradient_checkpointing_gives_the_same_gradients(unet):
    gradients = []
    for checkpointing in (False, True):
        adapter = trained("identity")
        unet.gradient_checkpointing = checkpointing
        try:
            stack = AdapterStack([StackEntry(adapter, mask=torch.eye(8))])
            unet(*inputs(), adapters=stack).square().mean().backward()
        finally:
            unet.gradient_checkpointing = False
        gradients.append([parameter.grad for parameter in adapter.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_float32_adapter_beside_a_bfloat16_stream():
    adapter = trained("motion")
    before, after = (random(2, 6, 3, 32, seed=seed).bfloat16() for seed in (1, 2))
    bound = AdapterStack([StackEntry(adapter)], random(1, WIDTH)).bind(torch.tensor([5, 6]), size=(2, 3))
    x = bound.add(TEMPORAL_SITE, before, after, (2, 3), temporal=True)
    assert x.dtype == torch.bfloat16
    x.float().sum().backward()
    assert adapter.at(TEMPORAL_SITE).down_linear.weight.grad.dtype == torch.float32


def test_to_leaves_the_adapters_of_others_alone():
    adapter = trained("motion")
    stack = AdapterStack([StackEntry(adapter, 0.5, mask=torch.eye(4))], random(1, WIDTH), torch.tensor([0.0, 1.0]))
    half = stack.to("cpu", torch.float16)
    assert next(half.entries[0].adapter.parameters()).dtype == torch.float16
    assert next(adapter.parameters()).dtype == torch.float32
    assert stack.to("cpu", torch.float32).entries[0].adapter is adapter
    assert half.entries[0].strength == 0.5


# Appearance guidance


def test_three_condition_states_are_distinct(unet):
    stack = AdapterStack([StackEntry(trained("motion"))])
    image, zero = stack.with_condition(random(1, WIDTH)), stack.with_condition(torch.zeros(1, WIDTH))
    none = run(unet, stack)
    assert differs(run(unet, image), none)
    assert differs(run(unet, zero), none)
    assert differs(run(unet, image), run(unet, zero))
    assert torch.equal(run(unet, stack.with_condition(random(1, WIDTH), strength=0.0)), none)


def test_identity_adapters_do_not_read_the_image(unet):
    stack = AdapterStack([StackEntry(trained("identity"))])
    assert torch.equal(run(unet, stack.with_condition(random(1, WIDTH))), run(unet, stack))


def test_guidance_pair_in_one_batch_equals_separate_runs(unet):
    x, timesteps, context = inputs(3)
    features = torch.cat([torch.zeros(1, WIDTH), random(2, WIDTH)])
    strengths = torch.tensor([0.0, 1.0, 0.5])
    stack = AdapterStack([StackEntry(trained("motion")), StackEntry(trained("identity"), 0.5)])
    with torch.no_grad():
        batch = unet(x, timesteps, context, adapters=stack.with_condition(features, strengths))
        for index in range(3):
            row = slice(index, index + 1)
            condition = (None,) if index == 0 else (features[row], float(strengths[index]))
            alone = unet(x[row], timesteps[row], context[row], adapters=stack.with_condition(*condition))
            torch.testing.assert_close(batch[row], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("placement", ["parallel", "serial"])
def test_one_condition_row_equals_a_condition_at_every_token(placement):
    adapter = trained("motion", placement=placement)
    bottleneck = adapter.at(TEMPORAL_SITE)
    before, after = (random(2, 6, 3, 32, seed=seed) for seed in (1, 2))  # [B, N, F, C]
    x = before if placement == "parallel" else after
    strengths = torch.tensor([0.5, 1.0])
    for feature in (random(2, WIDTH), random(2, 3, WIDTH)):
        stack = AdapterStack([StackEntry(adapter, 0.7)], feature, strengths)
        got = stack.bind(torch.tensor([1, 2]), (2, 3)).add(TEMPORAL_SITE, before, after, (2, 3), temporal=True)
        per_frame = feature if feature.ndim == 3 else feature[:, None].expand(2, 3, WIDTH)
        condition = bottleneck.condition_linear(per_frame[:, None].expand(2, 6, 3, WIDTH))
        hidden = F.gelu(bottleneck.down_linear(x + strengths.reshape(2, 1, 1, 1) * condition))
        torch.testing.assert_close(got, after + 0.7 * bottleneck.up_linear(hidden), atol=1e-6, rtol=1e-5)


def test_condition_costs_one_row_a_video():
    adapter = trained("motion")
    before = random(2, 96, 5, 32)

    def flops(feature):
        bound = AdapterStack([StackEntry(adapter)], feature).bind(torch.tensor([1, 2]), (8, 12))
        with FlopCounterMode(display=False) as counter:
            bound.add(TEMPORAL_SITE, before, before, (8, 12), temporal=True)
        return counter.get_total_flops()

    assert flops(random(2, WIDTH)) - flops(None) == 2 * 2 * (WIDTH * 32 + 32 * 16)


def test_conditions_that_do_not_fit_are_refused(unet):
    stack = AdapterStack([StackEntry(trained("motion"))])
    with pytest.raises(ValueError, match="width 24, not 7"):
        stack.with_condition(random(1, 7))
    with pytest.raises(ValueError, match="3 image features for 2 samples"):
        run(unet, stack.with_condition(random(3, WIDTH)))
    with pytest.raises(ValueError, match="3 feature strengths for 2 samples"):
        run(unet, stack.with_condition(random(1, WIDTH), torch.ones(3)))
    with pytest.raises(ValueError, match="features for 4 frames, but the video has 3"):
        run(unet, stack.with_condition(random(2, 4, WIDTH)))


# Where and when


@pytest.mark.parametrize(("kind", "site"), [("identity", SPATIAL_SITE), ("motion", TEMPORAL_SITE)])
@pytest.mark.parametrize("moving", [False, True])
def test_mask_confines_an_adapter_to_its_region(kind, site, moving):
    frames, size, temporal = 3, (2, 4), kind == "motion"
    mask = torch.zeros(frames, 8, 16)
    mask[:, :, :8] = 1  # left half
    mask[1:, :4] = 0 if moving else mask[1:, :4]  # and later only its lower half
    level = F.avg_pool2d(mask, 4).flatten(1)[None, ..., None]  # [1, F, N, 1]
    before, after = (random(2, frames, 8, 32, seed=seed) for seed in (1, 2))  # [B, F, N, C]

    def add(mask):
        arrange = (lambda x: x.transpose(1, 2)) if temporal else (lambda x: x)
        bound = AdapterStack([StackEntry(trained(kind), mask=mask)]).bind(torch.tensor([1, 2]), size)
        return arrange(bound.add(site, arrange(before), arrange(after), size, temporal=temporal))

    free, masked = add(None), add(mask if moving else mask[0])
    torch.testing.assert_close(masked, torch.where(level == 1, free, after), atol=0, rtol=0)
    assert differs(free, after)


def test_mask_at_every_level_of_the_unet(unet):
    adapter = trained("identity")
    base, free = run(unet, None), run(unet, AdapterStack([StackEntry(adapter)]))
    assert torch.equal(run(unet, AdapterStack([StackEntry(adapter, mask=torch.ones(3, 64, 128))])), free)
    assert torch.equal(run(unet, AdapterStack([StackEntry(adapter, mask=torch.zeros(5, 7))])), base)
    grey = run(unet, AdapterStack([StackEntry(adapter, mask=torch.full((5, 7), 0.5))]))
    torch.testing.assert_close(grey, run(unet, AdapterStack([StackEntry(adapter, 0.5)])))
    with pytest.raises(ValueError, match="mask has 4 frames, but the video has 3"):
        run(unet, AdapterStack([StackEntry(adapter, mask=torch.ones(4, 8, 8))]))


def test_window_and_ramp_act_per_timestep(unet):
    adapter = trained("identity")  # the inputs' timesteps are 800 (position 0.2) and 100 (0.9)
    base, free = run(unet, None), run(unet, AdapterStack([StackEntry(adapter)]))
    early = run(unet, AdapterStack([StackEntry(adapter, window=(0.0, 0.5))]))
    torch.testing.assert_close(early, torch.stack([free[0], base[1]]), atol=1e-6, rtol=1e-5)
    assert torch.equal(run(unet, AdapterStack([StackEntry(adapter, window=(0.4, 0.6))])), base)
    ramp = run(unet, AdapterStack([StackEntry(adapter, window=(0.1, 1.0), ramp=(0.0, 0.9))]))  # 0.1 and 0.8 there
    positions = 1 - torch.tensor([800, 100]) / LAST_TIMESTEP
    wanted = [run(unet, AdapterStack([StackEntry(adapter, float(p - 0.1))]))[i] for i, p in enumerate(positions)]
    torch.testing.assert_close(ramp, torch.stack(wanted), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["identity", "motion"])
def test_depth_weighs_each_level_of_the_unet(unet, kind):
    adapter = trained(kind)
    sites = sorted({level_of(site, unet.config) for site in adapter.modules_at})
    assert sites[0] == 0 and sites[-1] == 1
    assert torch.equal(
        run(unet, AdapterStack([StackEntry(adapter, depth=(0.5, 0.5))])),
        run(unet, AdapterStack([StackEntry(adapter, 0.5)])),
    )
    scaled = copy.deepcopy(adapter)
    with torch.no_grad():
        for site in scaled.modules_at:
            up = scaled.at(site).up_linear
            for parameter in (up.weight, up.bias):
                parameter.mul_(0.2 + 0.8 * level_of(site, unet.config))
    torch.testing.assert_close(
        run(unet, AdapterStack([StackEntry(adapter, depth=(0.2, 1.0))])), run(unet, AdapterStack([StackEntry(scaled)]))
    )
    assert differs(run(unet, AdapterStack([StackEntry(adapter, depth=(1.0, 0.0))])), run(unet, None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": float("nan")},
        {"window": (0.6, 0.4)},
        {"window": (0.0, 1.5)},
        {"mask": torch.ones(2, 2) * 255},
        {"mask": torch.ones(2)},
        {"ramp": (0.0, float("inf"))},
        {"depth": (float("nan"), 1.0)},
        {"guided_from": -0.5},
        {"guided_from": float("nan")},
    ],
)
def test_nonsense_entries_are_refused(wrong):
    with pytest.raises(ValueError, match="[Aa]dapter"):
        StackEntry(Adapter(CONFIGS["identity"], TINY), **wrong)


def test_adapter_of_another_unet_is_refused_in_the_forward(unet):
    wider = Adapter(CONFIGS["identity"], UNetConfig(**{**TINY.to_dict(), "dim": 64}))
    with pytest.raises(ValueError, match="identity adapter is for another UNet: .* width 64, but the UNet has 32"):
        run(unet, AdapterStack([StackEntry(wider)]))


# Agreement with the authors' network


@needs_oracles
@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_agreement_with_the_authors_network(kind):
    data = load_file(ORACLES / f"oracle_{kind}.safetensors")
    state = {key.removeprefix("sd."): value for key, value in data.items() if key.startswith("sd.")}
    unet, adapter = UNet(TINY).eval(), Adapter(CONFIGS[kind], TINY)
    adapter.load_state_dict({key: value for key, value in state.items() if "_adapter." in key})
    unet.load_state_dict({key: value for key, value in state.items() if "_adapter." not in key})
    stack = AdapterStack([StackEntry(adapter)])
    image = data.get("in.y_image", torch.zeros(2, 1, WIDTH))[:, 0]
    stacks = {
        "ag1.0": stack.with_condition(image),
        "ag0.5": stack.with_condition(image, 0.5),
        "ag0.0": stack.with_condition(image, 0.0),
        "noimage": stack,
        "zeroimage": stack.with_condition(torch.zeros_like(image)),
    }
    runs = {f"f{frames}.{name}": stack for frames in (5, 1) for name, stack in stacks.items()}
    if "in.y_image_per_frame" in data:
        runs["f5.perframe"] = stack.with_condition(data["in.y_image_per_frame"])
    for name, adapters in runs.items():
        x = data["in.x5" if name.startswith("f5") else "in.x1"]
        got = unet(x, data["in.t"], data["in.y"], adapters=adapters)
        torch.testing.assert_close(got, data[f"out.{name}"], atol=1e-5, rtol=0, msg=lambda text, name=name: name + text)


@needs_oracles
@pytest.mark.parametrize("kind", CONFIGS)
def test_authors_adapters_load_and_can_be_written(kind, tmp_path):
    loaded = load_adapter(ORACLES / "fixtures" / f"{kind}_adapter_00000013.pth", TINY)
    assert loaded.info.kind == kind and loaded.info.steps == 13
    assert loaded.adapter.config == CONFIGS[kind]
    save_authors_adapter(tmp_path / "again.pth", loaded.adapter, 13)
    written = torch.load(tmp_path / "again.pth", weights_only=True)
    original = torch.load(ORACLES / "fixtures" / f"{kind}_adapter_00000013.pth", weights_only=True)
    assert written["step"] == original["step"]
    assert list(written["state_dict"]) == list(original["state_dict"])
    for key, value in original["state_dict"].items():
        assert torch.equal(value, written["state_dict"][key])
        assert isinstance(written["state_dict"][key], nn.Parameter)


@needs_oracles
def test_authors_text_embedding_loads():
    loaded = load_adapter(ORACLES / "fixtures" / "text_embedding_of_star_0003000.pth")
    assert loaded.adapter is None and loaded.info.kind == "token"
    assert loaded.tokens["*"].shape == (1, 32)


# Files


@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip_of_a_file(kind, tmp_path):
    adapter = trained(kind, hidden=7, placement="serial")
    info = AdapterInfo(
        kind=kind,
        base_fingerprint="abc",
        class_word="plushie",
        placeholder="<my-wölf>",
        captions=("a <my-wölf>", "a <my-wölf> on grass"),
        steps=800,
        learning_rate=1e-5,
        seed=3,
        extra={"resolution": [256, 256]},
    )
    tokens, features = {"<my-wölf>": random(2, 32)}, random(4, WIDTH)
    paths = [tmp_path / f"{index}.safetensors" for index in range(4)]
    for path in paths:
        save_adapter(path, adapter, info, tokens, features)
    assert len({path.read_bytes() for path in paths}) == 1

    loaded = load_adapter(paths[0])
    assert loaded.adapter.config == adapter.config and loaded.adapter.unet_config == TINY
    for key, value in adapter.state_dict().items():
        assert torch.equal(loaded.adapter.state_dict()[key], value)
    assert all(parameter.requires_grad for parameter in loaded.adapter.parameters())
    assert torch.equal(loaded.tokens["<my-wölf>"], tokens["<my-wölf>"])
    assert torch.equal(loaded.features, features)
    named = {"captions", "steps", "learning_rate", "seed", "extra", "class_word", "placeholder", "base_fingerprint"}
    for name in named:
        assert getattr(loaded.info, name) == getattr(info, name)
    check_fits(loaded.info, TINY, "abc", kind=kind)
    assert set(load_file(paths[0])) >= set(adapter.state_dict())  # any safetensors reader opens it


def test_file_of_tokens_alone(tmp_path):
    vectors = random(3, 32)
    info = AdapterInfo(kind="token", placeholder="<cat>", unet_config=TINY)
    save_adapter(tmp_path / "cat.safetensors", None, info, {"<cat>": vectors[:1], "<dog>": vectors[1:]})
    loaded = load_adapter(tmp_path / "cat.safetensors")
    assert loaded.adapter is None and loaded.features is None
    assert torch.equal(loaded.tokens["<cat>"], vectors[:1]) and torch.equal(loaded.tokens["<dog>"], vectors[1:])
    check_fits(loaded.info, TINY, "whatever")


def test_authors_containers_round_trip(tmp_path):
    adapter, vectors = trained("motion", sublayers=("ff",), hidden=9, condition_dim=None), random(2, 32)
    save_authors_adapter(tmp_path / "motion.pth", adapter, 600)
    save_authors_embedding(tmp_path / "token.pth", vectors, token="<cat>", token_id=7)
    loaded = load_adapter(tmp_path / "motion.pth", TINY)
    assert loaded.adapter.config == adapter.config and loaded.info.steps == 600
    assert torch.equal(load_adapter(tmp_path / "token.pth").tokens["<cat>"], vectors)
    with pytest.raises(ValueError, match="serial"):
        save_authors_adapter(tmp_path / "serial.pth", trained("identity", placement="serial"), 1)


def test_check_fits_says_what_the_file_is():
    def info(kind, **more):
        return AdapterInfo(kind, adapter_config=CONFIGS.get(kind), unet_config=TINY, steps=800, **more)

    with pytest.raises(ValueError, match=r"kind identity \(identity adapter for <wolf>, 800 steps\).*kind motion"):
        check_fits(info("identity", placeholder="<wolf>"), TINY, kind="motion")
    with pytest.raises(ValueError, match="motion adapter, 800 steps is for another base: .* width 32/48/64.* 320/512"):
        check_fits(info("motion"), UNetConfig(context_dim=32))
    with pytest.raises(ValueError, match="learned token, 800 steps is for another base: .* 32, but this base has 1024"):
        check_fits(info("token"), UNetConfig())
    with pytest.raises(ValueError, match="identity adapter, 800 steps is for another base: .* other weights"):
        check_fits(info("identity", base_fingerprint="a"), TINY, "b")
    check_fits(info("identity", base_fingerprint="a"), TINY, "b", same_base=lambda mine, theirs: True)
    check_fits(info("identity"), TINY, "b")  # the file does not name its base


class Payload:
    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_pickle_with_code_is_refused_and_not_run(tmp_path):
    payload = Payload()
    payload.folder = str(tmp_path / "code-ran")
    torch.save({"state_dict": payload, "step": 1}, tmp_path / "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"state_dict": payload}, protocol=2))
    for name in ("zip.pth", "bare.pth"):
        with pytest.raises(ValueError, match=f"{name} carries Python code .* not run"):
            load_adapter(tmp_path / name)
    assert not (tmp_path / "code-ran").exists()


def test_files_of_other_kinds_are_named(tmp_path):
    foreign = {
        "LoRA": "unet.down_blocks.0.attn1.to_q_lora.down.weight",
        "text-to-video UNet": "input_blocks.1.0.temopral_conv.conv1.0.weight",
        "CLIP": "visual.proj",
        "'fc.weight'": "fc.weight",
    }
    for index, (name, key) in enumerate(foreign.items()):
        path = tmp_path / f"{index}.safetensors"
        save_file({key: torch.zeros(2)}, path)
        with pytest.raises(ValueError, match=f"{path.name} is no adapter: it holds .*{name}"):
            load_adapter(path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth is no adapter: it holds no tensors"):
        load_adapter(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(ValueError, match="epoch.pth is no adapter"):
        load_adapter(tmp_path / "epoch.pth")


def test_missing_empty_and_truncated_files(tmp_path):
    whole, pth = tmp_path / "whole.safetensors", tmp_path / "whole.pth"
    save_adapter(whole, trained("identity"), AdapterInfo("identity"))
    save_authors_adapter(pth, trained("identity"), 1)
    for path in (whole, pth):
        data = path.read_bytes()
        for length in (len(data) // 2, len(data) - 40, 40):
            cut = tmp_path / f"cut{path.suffix}"
            cut.write_bytes(data[:length])
            with pytest.raises(ValueError, match="cut.* truncated or damaged"):
                load_adapter(cut, TINY)
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.safetensors").write_text("hello, this is no adapter")
    for name, reason in [("empty.pth", "is empty"), ("text.safetensors", "neither"), ("none.pth", "does not exist")]:
        with pytest.raises(ValueError, match=reason):
            load_adapter(tmp_path / name)
    with pytest.raises(ValueError, match="but a folder"):
        load_adapter(tmp_path)


def test_weights_that_are_no_weights(tmp_path):
    good = trained("identity").state_dict()
    key = next(iter(good))
    broken = {
        "NaN or infinite": torch.full_like(good[key], float("nan")),
        "a str, not a tensor": "weights",
        "int64 tensor": good[key].long(),
    }
    for reason, value in broken.items():
        torch.save({"state_dict": {**good, key: value}, "step": 1}, tmp_path / "broken.pth")
        with pytest.raises(ValueError, match=f"broken.pth.*down_linear.weight .*{reason}"):
            load_adapter(tmp_path / "broken.pth", TINY)
    sick = trained("identity")
    next(sick.parameters()).data.fill_(float("inf"))
    path = tmp_path / "sick.safetensors"
    path.write_text("an earlier result")
    with pytest.raises(ValueError, match="sick.safetensors is not written: .* NaN or infinite"):
        save_adapter(path, sick, AdapterInfo("identity"))
    assert path.read_text() == "an earlier result"


def test_authors_adapter_that_does_not_fit(tmp_path):
    save_authors_adapter(tmp_path / "tiny.pth", trained("identity"), 1)
    with pytest.raises(ValueError, match=r"tiny.pth \(identity adapter, 1 steps\) does not fit .* 32/64, .* 16 trans"):
        load_adapter(tmp_path / "tiny.pth")
    state = dict(trained("identity").state_dict())
    del state["middle_block.1.transformer_blocks.0.cross_attn_adapter.up_linear.bias"]
    torch.save({"state_dict": state}, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match="middle_block.*up_linear.bias is missing, expected"):
        load_adapter(tmp_path / "partial.pth", TINY)
    both = {**trained("identity").state_dict(), **trained("motion").state_dict()}
    torch.save({"state_dict": both}, tmp_path / "both.pth")
    with pytest.raises(ValueError, match="both.pth mixes an identity and a motion adapter"):
        load_adapter(tmp_path / "both.pth", TINY)


def test_damaged_or_future_metadata(tmp_path):
    adapter = trained("identity")
    good = AdapterInfo("identity", adapter_config=adapter.config, unet_config=TINY).to_metadata()
    broken = {
        "format version 4": {"format_version": "4"},
        "damaged.*'style'": {"kind": "style"},
        "damaged.*'motion'": {"kind": "motion"},
        "damaged: Adapter placement": {"adapter_config": json.dumps({**adapter.config.to_dict(), "placement": "?"})},
        "damaged": {"unet_config": "{"},
    }
    for reason, change in broken.items():
        save_file(adapter.state_dict(), tmp_path / "a.safetensors", {**good, **change})
        with pytest.raises(ValueError, match=f"a.safetensors .*{reason}"):
            load_adapter(tmp_path / "a.safetensors")


def test_info_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="describes a motion file, but what is to be saved is of kind identity"):
        save_adapter(tmp_path / "a.safetensors", trained("identity"), AdapterInfo("motion"))
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("shifted", [False, True])
def test_without_gradients_a_residual_is_the_same_and_its_inputs_stay(shifted):
    generator = torch.Generator().manual_seed(0)
    bottleneck = Bottleneck(8, 4, None, {})
    for parameter in bottleneck.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x, shift = torch.randn(2, 3, 5, 8, generator=generator), torch.randn(2, 1, 5, 4, generator=generator)
    given = x.clone(), shift.clone()
    kept = bottleneck(x, shift if shifted else None)
    with torch.no_grad():
        found = bottleneck(x, shift if shifted else None)
    torch.testing.assert_close(found, kept.detach(), atol=1e-6, rtol=1e-6)
    assert torch.equal(x, given[0]) and torch.equal(shift, given[1])
