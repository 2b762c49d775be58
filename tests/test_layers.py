"""Economical layers: the same results and gradients as torch's, with less kept and less done."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fakes import CONFIG, tiny_unet
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from dreamvideo.models.adapters import Adapter, AdapterConfig
from dreamvideo.models.config import transformer_sites
from dreamvideo.models.layers import economical
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.models.unet import UNet

LAYERS = economical(nn)


def twins(kind: str, *shape: object, **geometry: object) -> tuple[nn.Module, nn.Module]:
    plain = getattr(nn, kind)(*shape, **geometry).requires_grad_(False)
    ours = getattr(LAYERS, kind)(*shape, **geometry).requires_grad_(False)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


CASES = [
    (("Conv1d", 4, 6, 1), {}, (2, 4, 9)),
    (("Conv2d", 4, 6, 3), {"padding": 1}, (2, 4, 6, 8)),
    (("Conv2d", 4, 6, 3), {"padding": 1, "stride": 2}, (2, 4, 7, 8)),
    (("Conv2d", 4, 6, 1), {}, (2, 4, 3, 3)),
    (("Conv3d", 4, 4, (3, 1, 1)), {"padding": (1, 0, 0)}, (2, 4, 5, 1, 6)),
    (("Conv3d", 4, 6, (3, 1, 1)), {"padding": (1, 0, 0)}, (2, 4, 5, 3, 2)),
    (("Conv3d", 4, 4, (3, 1, 1)), {"padding": (1, 0, 0)}, (2, 4, 1, 1, 6)),
    (("Conv3d", 4, 4, 3), {"padding": 1}, (2, 4, 3, 3, 2)),
    (("GroupNorm", 2, 4), {}, (2, 4, 3, 5)),
    (("GroupNorm", 2, 4), {}, (2, 4, 32, 32)),
    (("GroupNorm", 2, 4), {}, (2, 4, 3, 5, 6)),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("layer", "geometry", "shape"), CASES)
def test_results_and_gradients_are_torchs(layer, geometry, shape, channels_last):
    plain, ours = twins(*layer, **geometry)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    results, gradients = [], []
    for each in (plain, ours):
        results.append(each(x))
        gradients.append(torch.autograd.grad(results[-1].square().sum(), x)[0])
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


def kept(layer: nn.Module, x: torch.Tensor) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    own = {parameter.data_ptr() for parameter in layer.parameters()}
    with saved_tensors_hooks(lambda t: shapes.append(t.shape) if t.data_ptr() not in own else None, lambda t: t):
        layer(x)
    return shapes


def test_a_frozen_convolution_does_not_keep_its_input():
    plain, ours = twins("Conv2d", 4, 6, 3, padding=1)
    x = torch.randn(2, 4, 6, 8, requires_grad=True)
    assert x.shape in kept(plain, x) and kept(ours, x) == []


def test_weights_that_are_trained_get_their_gradients():
    plain, ours = twins("Conv3d", 4, 4, (3, 1, 1), padding=(1, 0, 0))
    for frames in (1, 3):
        x = torch.randn(1, 4, frames, 2, 2)
        gradients = []
        for each in (plain, ours):
            each.zero_grad()
            each.requires_grad_(True)
            each(x).square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in each.parameters()])
        torch.testing.assert_close(gradients[1], gradients[0])


def test_layers_that_hand_over_other_weights_are_served():
    class Casting(nn.Conv2d):  # as a host's layer does: the weight it keeps is not the one it computes with
        def forward(self, x):
            return self._conv_forward(x, 2 * self.weight, self.bias)

    operations = SimpleNamespace(Conv1d=nn.Conv1d, Conv2d=Casting, Conv3d=nn.Conv3d, Linear=nn.Linear)
    operations.GroupNorm, operations.LayerNorm = nn.GroupNorm, nn.LayerNorm
    ours = economical(operations).Conv2d(4, 6, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    expected = nn.functional.conv2d(x, 2 * ours.weight, ours.bias, padding=1)
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (ours(x), expected)))


@pytest.mark.parametrize("frames", [1, 3])
def test_the_unet_of_economical_layers_is_the_unet(frames):
    plain = tiny_unet()
    ours = UNet(CONFIG, operations=LAYERS).eval().requires_grad_(False)
    ours.load_state_dict(plain.state_dict())
    x, timesteps = torch.randn(2, 4, frames, 4, 6), torch.tensor([3, 900])
    context = torch.randn(2, 77, CONFIG.context_dim, requires_grad=True)
    results = [net(x, timesteps, context) for net in (plain, ours)]
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(result.square().mean(), context)[0] for result in results]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_channels_stay_last_throughout(frames):
    """No layer, and nothing between them, brings a picture or a video into another order of memory."""
    unet, found = UNet(CONFIG, operations=LAYERS).eval().requires_grad_(False), {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm | nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(lambda _, given, made, name=name: found.update({name: (*given, made)}))
    x = torch.randn(2, frames, 8, 16, 4).movedim(-1, 1)  # [B, C, F, h, w], the first convolution's input included
    unet(x, torch.tensor([3, 900]), torch.randn(2, 77, CONFIG.context_dim))
    assert len(found) > 50
    moved = [name for name, tensors in found.items() if not all(t.movedim(1, -1).is_contiguous() for t in tensors)]
    assert moved == []


def test_a_feed_forward_in_pieces_is_the_whole(monkeypatch):
    layer = tiny_unet().middle_block[2].transformer_blocks[0].ff
    x = torch.randn(2, 3, 5, layer.net[2].out_features, generator=torch.Generator().manual_seed(0)).requires_grad_()
    monkeypatch.setattr("dreamvideo.models.blocks.WIDTH_IN_CACHE", 1)
    monkeypatch.setattr("dreamvideo.models.blocks.TOKENS_IN_CACHE", 7)
    results = [layer.net(x), layer(x)]
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(result.square().mean(), x)[0] for result in results]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def test_attention_in_pieces_is_the_whole(monkeypatch):
    layer = tiny_unet().middle_block[2].transformer_blocks[0].attn1
    x = torch.randn(2, 3, 5, layer.to_q.in_features, generator=torch.Generator().manual_seed(0)).requires_grad_()
    results = [layer(x)]
    monkeypatch.setattr("dreamvideo.models.blocks.WIDTH_IN_CACHE", 1)
    monkeypatch.setattr("dreamvideo.models.blocks.TOKENS_IN_CACHE", 11)  # two of six rows
    results.append(layer(x))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(result.square().mean(), x)[0] for result in results]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def test_one_frame_needs_no_queries_and_keys_in_time():
    unet, asked = tiny_unet(), []
    block = unet.middle_block[2].transformer_blocks[0]
    for layer in (block.attn1, block.attn2):
        layer.to_q.register_forward_hook(lambda *_: asked.append("q"))
    for frames, wanted in ((1, []), (2, ["q", "q"])):
        asked.clear()
        unet(torch.randn(1, 4, frames, 4, 4), torch.tensor([5]), torch.randn(1, 77, CONFIG.context_dim))
        assert asked == wanted


def test_attention_to_one_token_is_that_token():
    unet = tiny_unet()
    layer = unet.middle_block[2].transformer_blocks[0].attn1
    x = torch.randn(2, 3, 1, layer.to_q.in_features)
    q, k, v = (
        each(x.flatten(0, 1)).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for each in (layer.to_q, layer.to_k, layer.to_v)
    )
    whole = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x), layer.to_out(whole).view_as(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["identity", "motion"])
def test_nothing_before_the_first_adapter_is_kept(kind):
    unet = tiny_unet()
    sites = transformer_sites(CONFIG)
    first = next(site.name for site in sites if site.kind == ("spatial" if kind == "identity" else "temporal"))
    adapter = Adapter(getattr(AdapterConfig, kind)(), CONFIG)
    recorded = {}
    for name, module in unet.named_modules():
        if name.count(".") == 2 and name.startswith("input_blocks"):
            module.register_forward_hook(lambda module, _, out, name=name: recorded.update({name: out.requires_grad}))
    x, context = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 77, CONFIG.context_dim)
    unet(x, torch.tensor([5]), context, AdapterStack([StackEntry(adapter)]))
    names = list(recorded)
    assert names.index(first) == [recorded[name] for name in names].index(True)
    assert not any(recorded[name] for name in names[: names.index(first)]) and all(
        recorded[name] for name in names[names.index(first) :]
    )
