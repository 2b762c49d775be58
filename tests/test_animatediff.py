"""The image UNet with motion modules against diffusers' twins, and its own promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_unet import Recorder, inputs, randomize
from torch import Tensor, nn

from dreamvideo.files.image_layouts import image_diffusers_name
from dreamvideo.models.animatediff import ImageUNet, MotionBlock, frame_positions
from dreamvideo.models.blocks import TransformerBlock
from dreamvideo.models.call import fold_frames, unfold_frames
from dreamvideo.models.config import TransformerSite, level_of, temporal_convolutions, transformer_sites
from dreamvideo.models.image_config import ImageUNetConfig
from dreamvideo.models.layers import economical

IMAGE = ImageUNetConfig(
    dim=32, dim_mult=(1, 2, 2), res_blocks=1, attention_levels=(True, True, False), heads=4, context_dim=24
)
V1 = replace(IMAGE, motion_frames=24, norm_across_frames=True)
V2 = replace(IMAGE, motion_frames=32, motion_middle=True)
V3 = replace(IMAGE, motion_frames=32)
DEEP = replace(V3, res_blocks=2, dim_mult=(1, 2, 2, 2), attention_levels=(True, True, True, False), heads=8)
FULL = ImageUNetConfig()
KINDS = {"image": IMAGE, "v1": V1, "v2": V2, "v3": V3, "deep": DEEP}


def made(config: ImageUNetConfig) -> ImageUNet:
    net = randomize(ImageUNet(config)).requires_grad_(False)
    assert isinstance(net, ImageUNet)
    return net


@pytest.fixture(scope="module")
def tiny() -> ImageUNet:
    return made(V2)


def diffusers_twin(net: ImageUNet) -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    config, motion = net.config, net.config.has_motion
    end = "Motion" if motion else "2D"

    def blocks(side: str, levels: tuple[bool, ...]) -> list[str]:
        return [f"CrossAttn{side}Block{end}" if attends else f"{side}Block{end}" for attends in levels]

    shared = {
        "block_out_channels": config.channels,
        "down_block_types": blocks("Down", config.attention_levels),
        "up_block_types": blocks("Up", config.attention_levels[::-1]),
        "layers_per_block": config.res_blocks,
        "cross_attention_dim": config.context_dim,
    }
    if motion:
        twin = diffusers.UNetMotionModel(
            **shared,
            num_attention_heads=config.heads,
            motion_num_attention_heads=config.heads,
            motion_max_seq_length=config.motion_frames,
            use_motion_mid_block=config.motion_middle,
        )
    else:  # what UNet2DConditionModel calls so is the number of heads
        twin = diffusers.UNet2DConditionModel(**shared, attention_head_dim=config.heads)
    state = {image_diffusers_name(name, config.res_blocks): value for name, value in net.state_dict().items()}
    found = twin.load_state_dict(state, strict=False)
    assert not found.unexpected_keys and all(name.endswith(".pos_embed.pe") for name in found.missing_keys)
    _with_the_authors_norms(twin, config.norm_across_frames)
    return twin.eval()


def _with_the_authors_norms(twin: nn.Module, across_frames: bool) -> None:
    """diffusers departs from AnimateDiff in whose statistics a group norm takes: put it right.

    `motion_module.py` folds the frames into the batch before its norm, in all versions; diffusers' takes all frames
    together. `resnet.py` has, for v1 (`use_inflated_groupnorm: false`), a norm on [B, C, F, h, w] in the residual
    blocks and before the output; diffusers' always takes one frame.
    """
    frames: list[int] = []
    twin.register_forward_pre_hook(
        lambda module, args, kwargs: frames.append(args[0].shape[2] if args[0].ndim == 5 else 1), with_kwargs=True
    )
    for name, module in twin.named_modules():
        if not isinstance(module, nn.GroupNorm):
            continue
        plain = module.forward
        if "motion_modules" in name:  # its input is [B, C, F, h, w]

            def forward(x: Tensor, plain: Callable[[Tensor], Tensor] = plain) -> Tensor:
                return unfold_frames(plain(fold_frames(x)), x.shape[2])

            module.forward = forward
        elif across_frames and "attentions" not in name:

            def together(x: Tensor, plain: Callable[[Tensor], Tensor] = plain) -> Tensor:
                return fold_frames(plain(unfold_frames(x, frames[-1])))

            module.forward = together


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_diffusers(kind: str) -> None:
    config = KINDS[kind]
    net = made(config)
    twin = diffusers_twin(net)
    for (batch, frames), (height, width) in zip([(2, 5), (1, 1), (1, 16)], [(2, 2), (3, 2), (2, 4)], strict=True):
        x, timesteps, context = inputs(config, batch, frames, height * config.stride, width * config.stride)
        ours = net(x, timesteps, context)
        if config.has_motion:
            theirs = twin(x.clone(), timesteps, context.repeat_interleave(frames, 0)).sample
        else:  # frame by frame
            folded = twin(fold_frames(x), timesteps.repeat_interleave(frames), context.repeat_interleave(frames, 0))
            theirs = unfold_frames(folded.sample, frames)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert theirs.std() > 0.1


def test_positions_are_the_authors() -> None:
    position, width = torch.arange(32).double()[:, None], 16
    phase = position * 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    found = frame_positions(32, width, torch.zeros(1))
    torch.testing.assert_close(found[:, 0::2].double(), phase.sin(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 1::2].double(), phase.cos(), atol=1e-5, rtol=0)


def parameters(config: ImageUNetConfig) -> int:
    return sum(each.numel() for each in ImageUNet(config, device="meta").parameters())


def test_full_size_counts() -> None:
    # Stable Diffusion 1.5's UNet as its checkpoint has it; of the motion modules, all but their buffers of positions.
    assert parameters(FULL) == 859_520_964
    assert parameters(replace(FULL, motion_frames=24, norm_across_frames=True)) - parameters(FULL) == 417_137_600
    assert parameters(replace(FULL, motion_frames=32, motion_middle=True)) - parameters(FULL) == 453_209_280
    assert len(ImageUNet(FULL, device="meta").state_dict()) == 686


def test_full_size_names_are_the_originals() -> None:
    names = ImageUNet(replace(FULL, motion_frames=32, motion_middle=True), device="meta").state_dict()
    block = "motion.{}.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0.weight"
    for name in (
        "input_blocks.0.0.weight",
        "input_blocks.3.0.op.weight",
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        "middle_block.2.in_layers.0.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.11.1.proj_out.weight",
        "out.2.bias",
        block.format("down_blocks.3.motion_modules.1"),
        block.format("mid_block.motion_modules.0"),
        block.format("up_blocks.0.motion_modules.2"),
    ):
        assert name in names, name
    assert names["input_blocks.4.1.proj_in.weight"].shape == (640, 640, 1, 1)


@pytest.mark.parametrize(("kind", "spatial", "temporal"), [("image", 16, 0), ("v1", 16, 20), ("v2", 16, 21)])
def test_full_size_sites(kind: str, spatial: int, temporal: int) -> None:
    tiny = KINDS[kind]
    config = replace(FULL, motion_frames=tiny.motion_frames, motion_middle=tiny.motion_middle)
    net, sites = ImageUNet(config, device="meta"), transformer_sites(config)
    widths = {
        module.site: (module.norms[0] if isinstance(module, MotionBlock) else module.norm1).normalized_shape[0]
        for module in net.modules()
        if isinstance(module, TransformerBlock | MotionBlock)
    }
    assert {f"{site.name}.transformer_blocks.0": site.width for site in sites} == widths
    assert [site.kind for site in sites].count("spatial") == spatial
    assert [site.kind for site in sites].count("temporal") == temporal
    assert temporal_convolutions(config) == []


def test_depth_of_a_motion_module_is_its_levels() -> None:
    found = {site.name: level_of(f"{site.name}.transformer_blocks.0.ff", DEEP) for site in transformer_sites(DEEP)}
    assert found["motion.down_blocks.0.motion_modules.1.temporal_transformer"] == found["input_blocks.2.1"] == 0
    assert found["motion.up_blocks.3.motion_modules.2.temporal_transformer"] == found["output_blocks.11.1"] == 0
    assert found["motion.down_blocks.2.motion_modules.0.temporal_transformer"] == found["input_blocks.7.1"] == 0.5
    assert level_of("motion.mid_block.motion_modules.0.temporal_transformer", V2) == 1


@pytest.mark.parametrize("kind", ["image", "v2", "deep"])
def test_adapters_are_offered_every_sublayer_once_in_order(kind: str) -> None:
    config = KINDS[kind]
    net, batch, frames, height, width = made(config), 2, 3, 2 * config.stride, 3 * config.stride
    args = inputs(config, batch, frames, height, width)
    seen = Recorder()
    out = net(*args, seen)
    assert torch.equal(out, net(*args))
    sites: list[tuple[TransformerSite, str]] = [
        (site, sublayer) for site in transformer_sites(config) for sublayer in ("attn1", "attn2", "ff")
    ]
    assert [offer[0] for offer in seen.offers] == [
        f"{site.name}.transformer_blocks.0.{sublayer}" for site, sublayer in sites
    ]
    for (site, _), (_, before, after, size, temporal) in zip(sites, seen.offers, strict=True):
        assert temporal == (site.kind == "temporal")
        rows = (size[0] * size[1], frames) if temporal else (frames, size[0] * size[1])
        assert before.shape == after.shape == (batch, *rows, site.width)
    temporal = [site for site in transformer_sites(config) if site.kind == "temporal"]
    assert [block for block, *_ in seen.entered] == [f"{site.name}.transformer_blocks.0" for site in temporal]
    assert not seen.convolutions
    assert not torch.allclose(out, net(*args, Recorder(shift=0.1)), atol=1e-3)


def test_a_motion_module_sees_the_stream_of_every_place_over_time(tiny: ImageUNet) -> None:
    name = "motion.down_blocks.0.motion_modules.0.temporal_transformer"
    captured: list[Tensor] = []
    module = tiny.get_submodule(name)
    hook = module.norm.register_forward_hook(lambda module, args, output: captured.append(output))
    seen = Recorder()
    tiny(*inputs(V2, 2, 3, 8, 12), seen)
    hook.remove()
    before = next(offer[1] for offer in seen.offers if offer[0] == f"{name}.transformer_blocks.0.attn1")
    b, f, row, column = 1, 2, 5, 1
    torch.testing.assert_close(before[b, row * 12 + column, f], module.proj_in(captured[0][b * 3 + f, :, row, column]))


class OtherSource(Recorder):
    """Adapters under which every frame's self-attention reads the frame before it too."""

    def source(self, block: str, x: Tensor) -> Tensor:
        return torch.cat([x, x.roll(1, 1)], dim=2)


def test_adapters_say_what_a_spatial_self_attention_reads(tiny: ImageUNet) -> None:
    x, timesteps, context = inputs(V2, 1, 2, 8, 8)
    alike = x[:, :, :1].repeat(1, 1, 2, 1, 1)
    still = made(IMAGE)  # without motion modules frames differ by nothing but what they read
    plain, other = (still(alike, timesteps, context, adapters) for adapters in (None, OtherSource()))
    torch.testing.assert_close(plain, other, atol=1e-5, rtol=0)  # the same tokens twice are the same softmax
    assert not torch.allclose(tiny(x, timesteps, context), tiny(x, timesteps, context, OtherSource()), atol=1e-3)


@pytest.mark.parametrize("kind", ["image", "v1", "v3"])
def test_frames_know_of_one_another_through_the_motion_modules_alone(kind: str) -> None:
    net = made(KINDS[kind])
    x, timesteps, context = inputs(net.config, 1, 4, 8, 8)
    whole, first = net(x, timesteps, context), net(x[:, :, :1], timesteps, context)
    assert torch.allclose(whole[:, :, :1], first, atol=1e-5) == (kind == "image")


def test_a_new_motion_module_leaves_the_pictures_alone() -> None:
    net, still = ImageUNet(V3), made(IMAGE)
    assert not net.load_state_dict(still.state_dict(), strict=False).unexpected_keys
    args = inputs(V3, 1, 4, 8, 8)
    torch.testing.assert_close(net.eval()(*args), still(*args), atol=1e-6, rtol=0)


def test_a_batch_is_its_videos() -> None:
    for net in map(made, (V1, V2)):
        x, timesteps, context = inputs(net.config, 2, 3, 8, 12)
        together = net(x, timesteps, context)
        for i in range(2):
            alone = net(x[i : i + 1], timesteps[i : i + 1], context[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_checkpointing_and_economical_layers_change_nothing(kind: str) -> None:
    config = KINDS[kind]
    args = inputs(config, 1, 3, 8, 8)
    results = []
    for operations, checkpointing in ((nn, False), (nn, True), (economical(nn), False)):
        net = randomize(ImageUNet(config, operations=operations)).train()
        net.gradient_checkpointing = checkpointing
        out = net(*args, Recorder(shift=0.1))
        out.square().mean().backward()
        results.append((out.detach(), {name: each.grad for name, each in net.named_parameters()}))
    (out, gradients), checkpointed, economic = results
    assert torch.equal(out, checkpointed[0])
    for name, gradient in gradients.items():
        assert gradient is not None and torch.equal(gradient, checkpointed[1][name]), name
    torch.testing.assert_close(out, economic[0], atol=1e-5, rtol=0)


def test_layers_come_from_operations_and_attention_from_the_argument(tiny: ImageUNet) -> None:
    names = ("Conv1d", "Conv2d", "Conv3d", "Linear", "GroupNorm", "LayerNorm")
    own = SimpleNamespace(**{name: type(f"Own{name}", (getattr(nn, name),), {}) for name in names})
    lengths = set()

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lengths.add((q.shape[-2], k.shape[-2]))
        assert q.shape[1] == V2.heads
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v

    net = ImageUNet(V2, operations=own, attention=attention)
    net.load_state_dict(tiny.state_dict())
    for name, module in net.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            assert type(module).__name__.startswith("Own"), name
    args = inputs(V2, 1, 3, 8, 8)
    torch.testing.assert_close(net.eval()(*args), tiny(*args), atol=1e-5, rtol=0)
    assert {(3, 3), (64, 64), (3 * 64, 77), (16, 16), (3 * 16, 77)} <= lengths


def test_more_frames_than_positions_are_refused() -> None:
    net = ImageUNet(V1, device="meta")
    with pytest.raises(ValueError, match="positions for 24 frames and the video has 25: ask for 24 or fewer"):
        net(torch.zeros(1, 4, 25, 8, 8), torch.zeros(1), torch.zeros(1, 77, 24))
    made(IMAGE)(*inputs(IMAGE, 1, 33, 4, 4))  # no motion module, no limit


def test_config_survives_json_and_refuses_what_cannot_be_built() -> None:
    told = json.loads(json.dumps(V2.to_dict()))
    assert told.pop("family") == "image" and ImageUNetConfig.from_dict(told) == V2
    with pytest.raises(ValueError, match="heads"):
        ImageUNetConfig(heads=7)
    with pytest.raises(ValueError, match="needs motion_frames"):
        ImageUNetConfig(motion_middle=True)
    with pytest.raises(ValueError, match="one attention flag a level"):
        ImageUNetConfig(dim_mult=(1, 2))
