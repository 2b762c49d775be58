"""The UNet against diffusers' twin, the authors' released network, and its own promises."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamvideo.files.layouts import diffusers_name
from dreamvideo.models.blocks import TransformerBlock
from dreamvideo.models.call import sinusoid
from dreamvideo.models.config import UNetConfig, temporal_convolutions, transformer_sites
from dreamvideo.models.unet import UNet

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no ../shared")

TINY = UNetConfig(
    dim=32, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, True), head_dim=8, first_heads=8, context_dim=24
)
DEEP = UNetConfig(
    dim=32,
    dim_mult=(1, 2, 2, 2),
    res_blocks=2,
    attention_levels=(True, True, True, False),
    head_dim=16,
    first_heads=8,
    context_dim=24,
)


def randomize(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor random, the zero-initialised ones too, at scales that keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise if name.endswith("bias") else 1 + 0.2 * noise)
    return net.eval()


def inputs(config: UNetConfig, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames * 1000 + height)
    x = torch.randn(batch, config.in_channels, frames, height, width, generator=generator)
    timesteps = torch.randint(0, 1000, (batch,), generator=generator)
    return x, timesteps, torch.randn(batch, 77, config.context_dim, generator=generator)


@pytest.fixture(scope="module")
def tiny() -> UNet:
    return randomize(UNet(TINY)).requires_grad_(False)


def diffusers_twin(net: UNet) -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    config = net.config
    down = ["CrossAttnDownBlock3D" if attends else "DownBlock3D" for attends in config.attention_levels]
    up = ["CrossAttnUpBlock3D" if attends else "UpBlock3D" for attends in reversed(config.attention_levels)]
    twin = diffusers.UNet3DConditionModel(
        block_out_channels=config.channels,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=config.res_blocks,
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.head_dim,
    )
    temporal = {f"{site.name}.proj_{end}.weight" for site in transformer_sites(config) for end in ("in", "out")}
    twin.load_state_dict(
        {
            diffusers_name(name, config.res_blocks): value.flatten(1) if name in temporal else value
            for name, value in net.state_dict().items()
        }
    )
    return twin.eval()


@pytest.mark.parametrize("config", [TINY, DEEP], ids=["tiny", "deep"])
def test_agrees_with_diffusers(config: UNetConfig) -> None:
    net = randomize(UNet(config)).requires_grad_(False)
    twin = diffusers_twin(net)
    lowest = [(2, 2), (3, 2), (2, 4)]  # of the coarsest level; at 1x1 GroupNorm over two numbers is chaotic
    for (batch, frames), (height, width) in zip([(2, 5), (1, 1), (1, 3)], lowest, strict=True):
        x, timesteps, context = inputs(config, batch, frames, height * config.stride, width * config.stride)
        theirs = twin(x, timesteps, context).sample
        torch.testing.assert_close(net(x, timesteps, context), theirs, atol=1e-5, rtol=0)
        assert theirs.std() > 0.1


def test_sinusoid_is_the_originals() -> None:
    # Written out in float64: float32 rounding of t * frequency is 6e-5 at t = 999, hence the tolerance.
    t, half = torch.tensor([0, 1, 500, 999]), 16
    phase = t.double()[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
    expected = torch.cat([phase.cos(), phase.sin()], dim=1)
    assert sinusoid(t, 2 * half).dtype == torch.float32
    torch.testing.assert_close(sinusoid(t, 2 * half).double(), expected, atol=1e-4, rtol=0)
    assert torch.equal(sinusoid(t, 2 * half), sinusoid(t.float(), 2 * half))


class OracleAdapters:
    """The authors' adapters without image condition, as plainly as they can be written."""

    names = {"attn1": "attn_adapter", "attn2": "cross_attn_adapter", "ff": "ff_adapter"}
    norm_across_frames = False

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def network(self, unet: UNet, timesteps: Tensor) -> UNet:
        return unet

    def bind(self, timesteps: Tensor, size: tuple[int, int]) -> OracleAdapters:
        return self

    def add(self, site: str, before: Tensor, after: Tensor, size: tuple[int, int], *, temporal: bool) -> Tensor:
        block, sublayer = site.rsplit(".", 1)
        prefix = f"{block}.{self.names[sublayer]}"
        if f"{prefix}.down_linear.weight" not in self.state:
            return after
        down, up = (
            (self.state[f"{prefix}.{layer}.weight"], self.state[f"{prefix}.{layer}.bias"])
            for layer in ("down_linear", "up_linear")
        )
        return after + F.linear(F.gelu(F.linear(before, *down)), *up)

    def read(self, attend: Callable[[Tensor], Tensor], text: Tensor, size: tuple[int, int]) -> Tensor:
        return text

    def enter(self, block: str, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x

    def source(self, block: str, x: Tensor) -> Tensor:
        return x

    def add_over_time(self, site: str, before: Tensor, after: Tensor) -> Tensor:
        return after


@needs_shared
@pytest.mark.parametrize("kind", ["identity", "motion"])
def test_agrees_with_the_released_network(kind: str) -> None:
    tensors = load_file(SHARED / "oracles" / f"oracle_{kind}.safetensors")
    state = {name[3:]: value for name, value in tensors.items() if name.startswith("sd.")}
    config = UNetConfig(
        dim=32, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, True), head_dim=8, first_heads=6, context_dim=32
    )
    net = UNet(config).eval().requires_grad_(False)
    net.load_state_dict({name: value for name, value in state.items() if "adapter" not in name})
    for frames in (5, 1):
        out = net(tensors[f"in.x{frames}"], tensors["in.t"], tensors["in.y"], OracleAdapters(state))
        torch.testing.assert_close(out, tensors[f"out.f{frames}.noimage"], atol=1e-5, rtol=0)


def test_full_size_counts_and_sites() -> None:
    net = UNet(UNetConfig(), device="meta")
    assert len(net.state_dict()) == 1480
    assert sum(parameter.numel() for parameter in net.parameters()) == 1_411_233_860
    sites = transformer_sites(net.config)
    widths = {m.site: m.norm1.normalized_shape[0] for m in net.modules() if isinstance(m, TransformerBlock)}
    assert {f"{site.name}.transformer_blocks.0": site.width for site in sites} == widths
    assert [site.kind for site in sites].count("spatial") == 16
    assert [site.kind for site in sites].count("temporal") == 17
    convolutions = temporal_convolutions(net.config)
    found = {name.rpartition(".")[0]: m.in_channels for name, m in net.named_modules() if isinstance(m, nn.Conv3d)}
    assert {site.name: site.channels for site in convolutions} == found and len(convolutions) == 88


@needs_shared
def test_full_size_keys_are_the_originals() -> None:
    expected = json.loads((SHARED / "oracles" / "full_size_keys.json").read_text())["base"]
    state = UNet(UNetConfig(), device="meta").state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == expected


class Recorder:
    """Adapters that note what they are offered and, if told to, shift the stream."""

    norm_across_frames = False

    def __init__(self, shift: float | None = None) -> None:
        self.shift = shift
        self.binds: list[tuple[Tensor, tuple[int, int]]] = []
        self.offers: list[tuple[str, Tensor, Tensor, tuple[int, int], bool]] = []
        self.entered: list[tuple[str, torch.Size, tuple[int, int]]] = []
        self.convolutions: list[tuple[str, Tensor, Tensor]] = []

    def network(self, unet: UNet, timesteps: Tensor) -> UNet:
        return unet

    def bind(self, timesteps: Tensor, size: tuple[int, int]) -> Recorder:
        self.binds.append((timesteps, size))
        return self

    def add(self, site: str, before: Tensor, after: Tensor, size: tuple[int, int], *, temporal: bool) -> Tensor:
        self.offers.append((site, before, after, size, temporal))
        return after if self.shift is None else after + self.shift * before.roll(1, -1)

    def read(self, attend: Callable[[Tensor], Tensor], text: Tensor, size: tuple[int, int]) -> Tensor:
        return text

    def enter(self, block: str, x: Tensor, size: tuple[int, int]) -> Tensor:
        self.entered.append((block, x.shape, size))
        return x

    def source(self, block: str, x: Tensor) -> Tensor:
        return x

    def add_over_time(self, site: str, before: Tensor, after: Tensor) -> Tensor:
        self.convolutions.append((site, before, after))
        return after if self.shift is None else after + self.shift * before.roll(1, 2)


def test_adapters_are_offered_every_sublayer_once_in_order() -> None:
    net = randomize(UNet(DEEP)).requires_grad_(False)
    batch, frames, height, width = 2, 3, 16, 24
    x, timesteps, context = inputs(DEEP, batch, frames, height, width)
    seen = Recorder()
    out = net(x, timesteps, context, seen)

    assert torch.equal(out, net(x, timesteps, context))
    assert [(list(t), size) for t, size in seen.binds] == [(list(timesteps), (height, width))]
    sites = [(site, sublayer) for site in transformer_sites(DEEP) for sublayer in ("attn1", "attn2", "ff")]
    assert [offer[0] for offer in seen.offers] == [
        f"{site.name}.transformer_blocks.0.{sublayer}" for site, sublayer in sites
    ]
    for (site, _), (_, before, after, size, temporal) in zip(sites, seen.offers, strict=True):
        positions = size[0] * size[1]
        assert size[0] * width == size[1] * height
        assert temporal == (site.kind == "temporal")
        rows = (positions, frames) if temporal else (frames, positions)
        assert before.shape == after.shape == (batch, *rows, site.width)
    temporal = [offer for offer in seen.offers if offer[4] and offer[0].endswith("attn1")]
    assert seen.entered == [(site.removesuffix(".attn1"), before.shape, size) for site, before, _, size, _ in temporal]
    assert [site for site, *_ in seen.convolutions] == [site.name for site in temporal_convolutions(DEEP)]
    for site, (name, before, after) in zip(temporal_convolutions(DEEP), seen.convolutions, strict=True):
        assert before.shape == after.shape and before.shape[:3] == (batch, site.channels, frames)
        conv = net.get_submodule(name)[-1]
        assert torch.equal(conv(before), after)
    levels = {site.name: offer[3] for (site, _), offer in zip(sites, seen.offers, strict=True)}
    assert levels["input_blocks.1.1"] == levels["output_blocks.11.2"] == (16, 24)
    assert levels["middle_block.1"] == (2, 3)
    assert not torch.allclose(out, net(x, timesteps, context, Recorder(shift=0.1)), atol=1e-3)


def test_adapters_see_the_stream_and_its_positions_row_major(tiny: UNet) -> None:
    captured: dict[str, Tensor] = {}
    hooks = [
        tiny.get_submodule(f"{name}.norm").register_forward_hook(
            lambda module, args, output, name=name: captured.update({name: output})
        )
        for name in ("input_blocks.1.1", "input_blocks.1.2")
    ]
    seen = Recorder()
    tiny(*inputs(TINY, 2, 3, 4, 6), seen)
    for hook in hooks:
        hook.remove()
    offers = {site: (before, after) for site, before, after, *_ in seen.offers}

    b, f, row, column, position = 1, 2, 3, 1, 3 * 6 + 1
    spatial, temporal = tiny.input_blocks[1][1], tiny.input_blocks[1][2]
    before, after = offers["input_blocks.1.1.transformer_blocks.0.attn1"]
    expected = spatial.proj_in(captured["input_blocks.1.1"][b * 3 + f, :, row, column])
    torch.testing.assert_close(before[b, f, position], expected)
    block = spatial.transformer_blocks[0]
    torch.testing.assert_close(after, before + block.attn1(block.norm1(before)))

    before, _ = offers["input_blocks.1.2.transformer_blocks.0.attn1"]
    normed = captured["input_blocks.1.2"].flatten(3)[b, :, f, position]  # [B, C, F, N] -> [C]
    torch.testing.assert_close(before[b, position, f], temporal.proj_in(normed[:, None])[:, 0])


def test_text_is_projected_once_a_video(tiny: UNet) -> None:
    shapes = []
    hook = (
        tiny.input_blocks[1][1]
        .transformer_blocks[0]
        .attn2.to_k.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    )
    tiny(*inputs(TINY, 2, 5, 4, 4))
    hook.remove()
    assert shapes == [(2, 77, TINY.context_dim)]


def test_a_batch_is_its_videos(tiny: UNet) -> None:
    x, timesteps, context = inputs(TINY, 2, 3, 4, 6)
    together = tiny(x, timesteps, context)
    for i in range(2):
        alone = tiny(x[i : i + 1], timesteps[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


def test_new_network_predicts_zero_and_every_residual_is_closed() -> None:
    net = UNet(TINY).eval()
    args = inputs(TINY, 1, 2, 4, 4)
    assert not net(*args).any()
    nn.init.normal_(net.out[-1].weight)
    out = net(*args)
    for module in net.modules():  # with residuals closed, what happens inside them must not matter
        if isinstance(module, TransformerBlock):
            randomize(module)
    assert out.any() and torch.equal(out, net(*args))


@pytest.mark.parametrize("frames", [1, 3])
def test_checkpointing_changes_nothing(frames: int) -> None:
    net = randomize(UNet(TINY)).train()  # dropout on: what is computed again must draw the same mask
    x, timesteps, context = inputs(TINY, 1, frames, 4, 4)
    results, calls = [], []
    hook = net.middle_block[0].register_forward_pre_hook(lambda *_: calls.append(None))
    for net.gradient_checkpointing in (False, True):
        net.zero_grad()
        calls.clear()
        torch.manual_seed(3)
        out = net(x, timesteps, context, Recorder(shift=0.1))
        out.square().mean().backward()
        assert len(calls) == (2 if net.gradient_checkpointing else 1)
        results.append((out.detach(), {name: p.grad for name, p in net.named_parameters()}))
    hook.remove()
    temporal = [site.name for site in transformer_sites(TINY) if site.kind == "temporal"]
    unread = {  # of a single frame: attention to one token needs its value alone
        f"{name}.transformer_blocks.0.{attention}.{projection}.weight"
        for name in temporal
        for attention in ("attn1", "attn2")
        for projection in ("to_q", "to_k")
    }
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        if frames == 1 and name in unread:
            assert gradient is None and results[1][1][name] is None, name
        else:
            assert gradient is not None and torch.equal(gradient, results[1][1][name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny: UNet, dtype: torch.dtype) -> None:
    half = copy.deepcopy(tiny).to(dtype)
    assert half.dtype == dtype
    x, timesteps, context = inputs(TINY, 1, 2, 4, 4)
    out, exact = half(x.to(dtype), timesteps, context.to(dtype)), tiny(x, timesteps, context)
    assert out.dtype == dtype and out.isfinite().all()
    bound = 0.1 if dtype == torch.bfloat16 else 0.02
    assert (out.float() - exact).square().mean().sqrt() < bound * exact.std()


def test_layers_come_from_operations_and_attention_from_the_argument(tiny: UNet) -> None:
    names = ("Conv1d", "Conv2d", "Conv3d", "Linear", "GroupNorm", "LayerNorm")
    own = SimpleNamespace(**{name: type(f"Own{name}", (getattr(nn, name),), {}) for name in names})
    lengths = []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lengths.append((q.shape[-2], k.shape[-2]))
        assert q.shape[-1] == TINY.head_dim
        return (q @ k.transpose(-1, -2) * TINY.head_dim**-0.5).softmax(-1) @ v

    net = UNet(TINY, operations=own, attention=attention)
    net.load_state_dict(tiny.state_dict())
    for name, module in net.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            assert type(module).__name__.startswith("Own"), name
    args = inputs(TINY, 1, 3, 4, 4)
    torch.testing.assert_close(net.eval()(*args), tiny(*args), atol=1e-5, rtol=0)
    assert {(3, 3), (16, 16), (3 * 16, 77), (4, 4), (3 * 4, 77)} == set(lengths)


def test_a_timestep_may_be_a_float(tiny: UNet) -> None:
    x, timesteps, context = inputs(TINY, 1, 1, 4, 4)
    assert torch.equal(tiny(x, timesteps, context), tiny(x, timesteps.float(), context))


@pytest.mark.parametrize(
    ("height", "width", "named"),
    [(20, 33, "32 x 16 and 40 x 24"), (16, 20, "16 x 16 and 24 x 16"), (4, 8, "sizes: 8 x 8.")],
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest(height: int, width: int, named: str) -> None:
    net = UNet(DEEP, device="meta")
    with pytest.raises(ValueError, match=f"{width} x {height} cells does not divide by 8") as error:
        net(torch.zeros(1, 4, 2, height, width), torch.zeros(1), torch.zeros(1, 77, 24))
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("x", "timesteps", "context", "named"),
    [
        ((1, 4, 8, 8), (1,), (1, 77, 24), "latents"),
        ((1, 3, 2, 8, 8), (1,), (1, 77, 24), "latents"),
        ((1, 4, 0, 8, 8), (1,), (1, 77, 24), "latents"),
        ((2, 4, 2, 8, 8), (1,), (2, 77, 24), "timestep"),
        ((2, 4, 2, 8, 8), (), (2, 77, 24), "timestep"),
        ((2, 4, 2, 8, 8), (2,), (1, 77, 24), "text state"),
        ((2, 4, 2, 8, 8), (2,), (2, 77, 1024), "text state"),
        ((2, 4, 2, 8, 8), (2,), (77, 24), "text state"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x: tuple, timesteps: tuple, context: tuple, named: str) -> None:
    net = UNet(TINY, device="meta")
    with pytest.raises(ValueError, match=named):
        net(torch.zeros(x), torch.zeros(timesteps), torch.zeros(context))


def test_norm_groups_reach_every_group_norm() -> None:
    net = UNet(replace(TINY, norm_groups=4), device="meta")
    assert {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)} == {4}
    assert {m.num_groups for m in UNet(TINY, device="meta").modules() if isinstance(m, nn.GroupNorm)} == {32}


def test_config_survives_json_and_refuses_what_cannot_be_built() -> None:
    assert UNetConfig.from_dict(json.loads(json.dumps(DEEP.to_dict()))) == DEEP
    assert UNetConfig().channels == (320, 640, 1280, 1280)
    assert (UNetConfig().stride, UNetConfig().embed_dim) == (8, 1280)
    with pytest.raises(ValueError, match="use_fps"):
        UNetConfig.from_dict({"use_fps": True})
    with pytest.raises(ValueError, match="one attention flag a level"):
        UNetConfig(dim_mult=(1, 2))
    with pytest.raises(ValueError, match="48 channels"):
        UNetConfig(dim=48, head_dim=16)
    with pytest.raises(ValueError, match="head_dim 128"):
        UNetConfig(head_dim=128)
